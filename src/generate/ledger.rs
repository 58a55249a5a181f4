//! What a sub-step has on disk, and where it goes on.
//!
//! Every request ends as one line in the sub-step's own file or in `rejected.jsonl`, after one line in `usage.jsonl`,
//! and always in the order of the work list. So the answered requests are a prefix of the work list, and going on
//! means walking that prefix: no list of ids is held in memory. Ids are hashes of what made a record, its parent's text
//! included, so a row that stands where the work list has another id is out of date: it is moved to
//! `*.set_aside.jsonl`, never deleted.

use std::{
    fs::{File, OpenOptions},
    io::{BufRead, BufReader, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::{stats::StepStats, step::Work, text::Rejection};
use crate::records::{JsonlWriter, write_atomic};

/// A line of `rejected.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RejectedRow {
    /// Id that the record would have had.
    pub id: String,
    /// The sub-step.
    pub stage: String,
    /// Id of what the request was made from.
    pub parent: String,
    /// A short word, such as `malformed_json`.
    pub reason: String,
    /// What was found instead.
    pub evidence: String,
}

/// A line of `usage.jsonl`: the tokens of one request, kept or rejected.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct UsageRow {
    id: String,
    stage: String,
    prompt_tokens: usize,
    completion_tokens: usize,
}

/// The three files of one sub-step, open for appending.
pub struct Ledger {
    step: String,
    kept: (PathBuf, JsonlWriter),
    rejected: (PathBuf, JsonlWriter),
    usage: (PathBuf, JsonlWriter),
}

/// One decided request on its way to disk.
pub struct Decided<R> {
    /// Id of the record, made or not.
    pub id: String,
    /// Id of what the request was made from.
    pub parent: String,
    /// The record, or why there is none.
    pub outcome: Result<R, Rejection>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the completion.
    pub completion_tokens: usize,
}

impl Ledger {
    /// Opens the files of a sub-step; torn last lines are cut.
    pub fn open(folder: &Path, step: &str, file: &str) -> Result<Self> {
        let open = |name: &str| -> Result<(PathBuf, JsonlWriter)> {
            let path = folder.join(name);
            let writer = JsonlWriter::append(&path)?;
            Ok((path, writer))
        };
        Ok(Self {
            step: step.to_owned(),
            kept: open(file)?,
            rejected: open("rejected.jsonl")?,
            usage: open("usage.jsonl")?,
        })
    }

    /// The file of rejections.
    pub fn rejected_file(&self) -> &Path {
        &self.rejected.0
    }

    /// Walks the work list as far as it is answered on disk, counting into `stats`; returns the first request that is
    /// not, and leaves `work` behind it.
    ///
    /// **Errors**: a damaged line, with file and number; a yield under `min_yield`.
    pub fn resume<T>(
        &mut self,
        work: &mut dyn Iterator<Item = Result<Work<T>>>,
        stats: &mut StepStats,
        min_yield: f64,
    ) -> Result<Option<Work<T>>> {
        let mut kept = Rows::open(&self.kept.0, None)?;
        let mut rejected = Rows::open(&self.rejected.0, Some(&self.step))?;
        let mut usage = Rows::open(&self.usage.0, Some(&self.step))?;
        let mut next = None;
        for work in work {
            let work = work?;
            let is_at = |row: Option<&Row>| row.is_some_and(|row| row.line.id == work.id);
            let reason = if is_at(kept.peek()?) {
                kept.take()?;
                None
            } else if is_at(rejected.peek()?) {
                rejected.take()?.map(|row| row.line.reason)
            } else {
                next = Some(work);
                break;
            };
            // A request without its line of usage (somebody removed the file) counts no tokens and is not made again.
            let tokens = if is_at(usage.peek()?) { usage.take()?.map(|row| row.line) } else { None };
            let tokens = tokens.unwrap_or_default();
            stats.count(reason.as_deref(), tokens.prompt_tokens, tokens.completion_tokens);
            stats.check(min_yield, &self.rejected.0)?;
        }
        // A kill between the two writes of one request leaves one line of usage too many: that is nobody's loss.
        usage.cut(None)?;
        for rows in [&mut kept, &mut rejected] {
            let aside = rows.path.with_extension("set_aside.jsonl");
            rows.cut(Some(&aside))?;
        }
        Ok(next)
    }

    /// Writes one decided request. The line of usage goes first: a record on disk is a finished request.
    pub fn write<R: Serialize>(&mut self, decided: &Decided<R>) -> Result<()> {
        self.usage.1.write(&UsageRow {
            id: decided.id.clone(),
            stage: self.step.clone(),
            prompt_tokens: decided.prompt_tokens,
            completion_tokens: decided.completion_tokens,
        })?;
        match &decided.outcome {
            Ok(record) => self.kept.1.write(record),
            Err(rejection) => self.rejected.1.write(&RejectedRow {
                id: decided.id.clone(),
                stage: self.step.clone(),
                parent: decided.parent.clone(),
                reason: rejection.reason.to_owned(),
                evidence: rejection.evidence.clone(),
            }),
        }
    }

    /// Hands everything to the disk.
    pub fn sync(&self) -> Result<()> {
        self.usage.1.sync()?;
        self.rejected.1.sync()?;
        self.kept.1.sync()
    }
}

/// What the walk reads of any line; the rest is skipped.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Line {
    id: String,
    stage: String,
    reason: String,
    prompt_tokens: usize,
    completion_tokens: usize,
}

struct Row {
    /// Byte at which the line begins.
    start: u64,
    line: Line,
}

/// The rows of one sub-step in a file, one at a time, with a look at the next.
struct Rows {
    path: PathBuf,
    lines: BufReader<File>,
    /// Rows of other sub-steps are passed over. `None`: the file is the sub-step's own.
    stage: Option<String>,
    offset: u64,
    line_number: usize,
    next: Option<Row>,
}

impl Rows {
    fn open(path: &Path, stage: Option<&str>) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot open `{}`", path.display()))?;
        let lines = BufReader::with_capacity(1 << 16, file);
        let stage = stage.map(str::to_owned);
        Ok(Self { path: path.to_owned(), lines, stage, offset: 0, line_number: 0, next: None })
    }

    fn peek(&mut self) -> Result<Option<&Row>> {
        let mut buffer = Vec::new();
        while self.next.is_none() {
            buffer.clear();
            let read = self
                .lines
                .read_until(b'\n', &mut buffer)
                .with_context(|| format!("cannot read `{}`", self.path.display()))?;
            if read == 0 {
                break;
            }
            let start = self.offset;
            self.offset += read as u64;
            self.line_number += 1;
            if buffer.trim_ascii().is_empty() {
                continue;
            }
            let line: Line = serde_json::from_slice(&buffer).with_context(|| {
                format!(
                    "`{}` line {}: not the expected JSON record (mend or remove this line)",
                    self.path.display(),
                    self.line_number
                )
            })?;
            if self.stage.as_ref().is_none_or(|stage| *stage == line.stage) {
                self.next = Some(Row { start, line });
            }
        }
        Ok(self.next.as_ref())
    }

    fn take(&mut self) -> Result<Option<Row>> {
        self.peek()?;
        Ok(self.next.take())
    }

    /// Takes the rows from the next one on out of the file, into `aside` if it is given.
    fn cut(&mut self, aside: Option<&Path>) -> Result<()> {
        let Some(start) = self.peek()?.map(|row| row.start) else { return Ok(()) };
        let context = || format!("cannot cut `{}`", self.path.display());
        let mut file = OpenOptions::new().read(true).write(true).open(&self.path).with_context(context)?;
        file.seek(SeekFrom::Start(start)).with_context(context)?;
        let mut tail = Vec::new();
        file.read_to_end(&mut tail).with_context(context)?;
        let (mut own, mut others) = (Vec::new(), Vec::new());
        for line in tail.split_inclusive(|&byte| byte == b'\n') {
            let foreign = self
                .stage
                .as_ref()
                .is_some_and(|stage| serde_json::from_slice::<Line>(line).is_ok_and(|line| line.stage != *stage));
            if foreign { others.extend_from_slice(line) } else { own.extend_from_slice(line) }
        }
        if let Some(aside) = aside {
            let lines = own.iter().filter(|&&byte| byte == b'\n').count();
            tracing::warn!(
                "{lines} rows at the end of `{}` do not belong to the work list as it is now; they are moved to `{}` \
                 and made again",
                self.path.display(),
                aside.display()
            );
            let mut to = OpenOptions::new().append(true).create(true).open(aside).with_context(context)?;
            to.write_all(&own).and_then(|()| to.sync_data()).with_context(context)?;
        }
        if others.is_empty() {
            return file.set_len(start).with_context(context);
        }
        // Rows of other sub-steps stand behind (somebody removed a file by hand): the file is written anew.
        let mut whole = std::fs::read(&self.path).with_context(context)?;
        whole.truncate(start as usize);
        whole.extend_from_slice(&others);
        write_atomic(&self.path, &whole)
    }
}
