//! Runs a file of requests into a file of results: in order, streamed, and again from where it was killed.

use std::{
    cell::RefCell,
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
    time::Instant,
};

use anyhow::{Context, Result};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{
    fields::Fields,
    lines::{Line, Lines, Rows, WAY_OUT},
    sink::{Expected, Sink},
};
use crate::{
    error::usage,
    language_model::{LanguageModel, ModelLoader},
    records::JsonlWriter,
    tokenizer::Tokenizer,
};

/// Takes an answer: the request's id, which of its answers this is, the answer.
pub type OnAnswer<'a, A> = dyn FnMut(&str, usize, A) -> Result<()> + 'a;

/// What is done with every line of a file.
pub trait Job {
    /// A line's content.
    type Parsed;
    /// What the model is asked.
    type Request;
    /// What it answers.
    type Answer;
    /// A line of the output.
    type Row: Serialize + DeserializeOwned;
    /// What of a line its rows are made with, beside the answers.
    type Frame;

    /// The field that holds a line's id.
    const ID_FIELD: &'static str = "id";

    /// Reads the fields of a line, all but its id, which is given.
    fn parse(id: &Value, fields: &mut Fields) -> Result<Self::Parsed>;

    /// How many answers the model will give.
    fn num_answers(parsed: &Self::Parsed) -> usize;

    /// How many rows they make.
    fn num_rows(parsed: &Self::Parsed) -> usize {
        Self::num_answers(parsed)
    }

    /// What the rows will need.
    fn frame(line: &Line<Self::Parsed>) -> Self::Frame;

    /// The requests for the model, under ids of the engine's own that begin with `id`: ids of the file need not be
    /// unique.
    fn prepare(parsed: Self::Parsed, id: String, tokenizer: &Tokenizer) -> Result<Vec<Self::Request>>;

    /// Has the model answer the requests.
    fn serve(
        model: &mut dyn LanguageModel,
        requests: &mut dyn Iterator<Item = Self::Request>,
        on_answer: &mut OnAnswer<Self::Answer>,
    ) -> Result<()>;

    /// The rows of a line whose answers are all here, in order.
    fn rows(id: Value, frame: Self::Frame, answers: Vec<Self::Answer>, tokenizer: &Tokenizer) -> Vec<Self::Row>;

    /// The answer to a line (by its number) that cannot be served.
    fn failed(line_number: usize, error: &anyhow::Error) -> Self::Answer;

    /// What the summary and a resume look at.
    fn tally(row: &Self::Row) -> Tally<'_>;
}

/// What the summary and a resume see of a row.
#[derive(Debug, Clone, Copy)]
pub struct Tally<'a> {
    /// The request's id.
    pub id: &'a Value,
    /// Which of the request's answers.
    pub index: Option<usize>,
    /// Whether the request could not be served.
    pub is_error: bool,
    /// Tokens read.
    pub prompt_tokens: usize,
    /// Tokens generated or scored.
    pub completion_tokens: usize,
}

/// The result of a whole file; counts cover kept rows too.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Summary {
    /// Lines.
    pub requests: usize,
    /// Rows without an error.
    pub completed: usize,
    /// Rows with one.
    pub errors: usize,
    /// Tokens of all prompts.
    pub prompt_tokens: usize,
    /// Tokens of all answers.
    pub completion_tokens: usize,
    /// Wall time of this run.
    pub seconds: f64,
}

impl Summary {
    /// Adds a row.
    pub fn count(&mut self, row: Tally) {
        if row.is_error {
            self.errors += 1;
        } else {
            self.completed += 1;
        }
        self.prompt_tokens += row.prompt_tokens;
        self.completion_tokens += row.completion_tokens;
    }
}

/// Runs a job from file to file. The model is loaded only when something is left to do.
///
/// **Errors**: a missing file of requests, an output that belongs to other requests, a full disk, the model's own.
pub fn run<J: Job>(load: &mut ModelLoader, requests: &Path, output: &Path) -> Result<Summary> {
    let start = Instant::now();
    if same_file(requests, output) {
        return Err(usage(format!(
            "`{}` is both the requests and the output; name another --output",
            output.display()
        )));
    }
    let mut lines = Lines::<J>::open(requests)?;
    let mut summary = Summary::default();
    let unfinished = skip_finished(&mut lines, output, &mut summary)?;
    let num_kept_rows = summary.completed + summary.errors;
    if num_kept_rows > 0 {
        tracing::info!("`{}`: {num_kept_rows} finished rows are kept", output.display());
    }
    let first = match unfinished {
        Some(unfinished) => Some(unfinished),
        None => lines.next().transpose()?.map(|line| (line, 0)),
    };
    match first {
        Some(first) => {
            let todo = std::iter::once(Ok(first)).chain(lines.map(|line| line.map(|line| (line, 0))));
            let mut model = load()?;
            let sink =
                Sink::new(JsonlWriter::append(output)?, model.tokenizer().clone(), summary, count_lines(requests)?);
            summary = serve_lines::<J>(model.as_mut(), todo, sink)?;
        }
        // Makes an empty output of an empty file, and cuts a torn row that nothing asks for.
        None => drop(JsonlWriter::append(output)?),
    }
    summary.seconds = start.elapsed().as_secs_f64();
    Ok(summary)
}

/// Lines for the progress bar; a pipe can be read only once, so it has none.
fn count_lines(path: &Path) -> Result<usize> {
    let is_file = path.metadata().is_ok_and(|metadata| metadata.is_file());
    if !is_file {
        return Ok(0);
    }
    let file = BufReader::new(File::open(path)?);
    Ok(file.split(b'\n').map_while(Result::ok).filter(|line| !line.trim_ascii().is_empty()).count())
}

fn same_file(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// Passes over the lines whose rows are all there. Returns the line that has only some of its rows, with their number.
fn skip_finished<J: Job>(
    lines: &mut Lines<J>,
    output: &Path,
    summary: &mut Summary,
) -> Result<Option<(Line<J::Parsed>, usize)>> {
    let mut rows = Rows::<J::Row>::open(output)?;
    let mut row = rows.next_row()?;
    while row.is_some() {
        let Some(line) = lines.next().transpose()? else {
            return Err(usage(format!("`{}` has rows past the last request; {}", output.display(), WAY_OUT)));
        };
        for index in 0..line.num_rows::<J>() {
            let Some(found) = row else {
                summary.requests += 1;
                return Ok(Some((line, index)));
            };
            let tally = J::tally(&found);
            if *tally.id != line.id || tally.index.unwrap_or(0) != index {
                return Err(usage(format!(
                    "`{}` does not belong to these requests: line {} asks for id {}, the row there has {}; {}",
                    output.display(),
                    line.number,
                    line.id,
                    tally.id,
                    WAY_OUT
                )));
            }
            summary.count(tally);
            row = rows.next_row()?;
        }
        summary.requests += 1;
    }
    Ok(None)
}

/// Serves lines (each with the number of its rows that are there already) and writes their rows in order.
fn serve_lines<J: Job>(
    model: &mut dyn LanguageModel,
    lines: impl Iterator<Item = Result<(Line<J::Parsed>, usize)>>,
    sink: Sink<J>,
) -> Result<Summary> {
    let tokenizer = model.tokenizer().clone();
    let sink = RefCell::new(sink);
    // The model pulls requests through an iterator that knows no errors: one ends the pulling and is handed on below.
    let failure = RefCell::new(None);
    let mut next_position = 0;
    let mut requests = lines.map_while(|line| {
        let step = line.and_then(|(line, num_kept)| {
            let position = next_position;
            next_position += 1;
            let num_answers = line.num_answers::<J>();
            let frame = J::frame(&line);
            let prepared = line.parsed.and_then(|parsed| J::prepare(parsed, position.to_string(), &tokenizer));
            let mut sink = sink.borrow_mut();
            let answers = (0..num_answers).map(|_| None).collect();
            sink.expect(position, Expected { id: line.id, frame, num_kept, answers }, num_kept == 0);
            match prepared {
                Ok(requests) => Ok(requests),
                Err(error) => {
                    for index in 0..num_answers {
                        sink.take(position, index, J::failed(line.number, &error))?;
                    }
                    Ok(Vec::new())
                }
            }
        });
        step.map_err(|error| *failure.borrow_mut() = Some(error)).ok()
    });
    let mut requests = requests.by_ref().flatten();
    J::serve(model, &mut requests, &mut |id, index, answer| {
        let position = id.parse().context("the model answered under an id that it was not given")?;
        sink.borrow_mut().take(position, index, answer)
    })?;
    if let Some(error) = failure.take() {
        return Err(error);
    }
    sink.into_inner().finish()
}

#[cfg(test)]
mod tests;
