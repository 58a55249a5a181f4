//! Puts answers back into the order of the requests and writes them.

use std::{collections::HashMap, time::Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use super::job::{Job, Summary};
use crate::{
    records::{JsonlWriter, Ordered},
    telemetry::Progress,
    tokenizer::Tokenizer,
};

/// A line whose answers are not all here.
pub struct Expected<J: Job> {
    /// The request's id, as given.
    pub id: Value,
    /// What else the rows need.
    pub frame: J::Frame,
    /// Rows that an earlier run has written.
    pub num_kept: usize,
    /// One place per answer.
    pub answers: Vec<Option<J::Answer>>,
}

/// Puts answers in line and writes them.
pub struct Sink<J: Job> {
    writer: JsonlWriter,
    ordered: Ordered<Vec<J::Row>>,
    expected: HashMap<usize, Expected<J>>,
    tokenizer: Tokenizer,
    summary: Summary,
    progress: Progress,
    start: Instant,
    num_new_tokens: usize,
}

impl<J: Job> Sink<J> {
    /// Goes on after the rows that `summary` has counted, towards `num_lines` lines.
    pub fn new(writer: JsonlWriter, tokenizer: Tokenizer, summary: Summary, num_lines: usize) -> Self {
        Self {
            writer,
            tokenizer,
            ordered: Ordered::default(),
            expected: HashMap::new(),
            progress: Progress::new("requests", summary.requests as u64, num_lines as u64),
            start: Instant::now(),
            num_new_tokens: 0,
            summary,
        }
    }

    /// Announces a line whose answers will come; `is_new`: the line is not yet in the summary.
    pub fn expect(&mut self, position: usize, expected: Expected<J>, is_new: bool) {
        self.summary.requests += usize::from(is_new);
        self.expected.insert(position, expected);
    }

    /// Takes an answer and writes every row that is now in line.
    pub fn take(&mut self, position: usize, index: usize, answer: J::Answer) -> Result<()> {
        let line = self.expected.get_mut(&position).context("the model answered a request twice")?;
        line.answers[index] = Some(answer);
        if line.answers.iter().any(Option::is_none) {
            return Ok(());
        }
        let line = self.expected.remove(&position).expect("looked at just above");
        let answers = line.answers.into_iter().flatten().collect();
        let rows = J::rows(line.id, line.frame, answers, &self.tokenizer).into_iter().skip(line.num_kept).collect();
        let Self { writer, ordered, summary, progress, start, num_new_tokens, .. } = self;
        ordered.push(position, rows, |rows: Vec<J::Row>| {
            for row in rows {
                writer.write(&row)?;
                let tally = J::tally(&row);
                summary.count(tally);
                *num_new_tokens += tally.completion_tokens;
            }
            let rate = *num_new_tokens as f64 / start.elapsed().as_secs_f64();
            progress.advance(1, &format!("{rate:.0} tokens/s"));
            Ok(())
        })
    }

    /// Ends the file.
    pub fn finish(self) -> Result<Summary> {
        self.progress.finish();
        self.writer.sync()?;
        Ok(self.summary)
    }
}
