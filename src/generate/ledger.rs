//! What a sub-step has on disk, and where it goes on.
//!
//! Every request ends as one line in the sub-step's own file or in `rejected.jsonl`, after one line in `usage.jsonl`,
//! and always in the order of the work list. So the answered requests are a prefix of the work list, and going on
//! means walking that prefix: no list of ids is held in memory. Ids are hashes of what made a record, its parent's text
//! included, so where a row stands that the work list does not have there, something has changed: the rows from there on
//! go to [`Spare`], from which those that are still wanted are taken back without the teacher.

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io::{BufRead, BufReader, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    STEPS,
    spare::{Answered, Spare},
    stats::StepStats,
    step::Work,
    text::Rejection,
};
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
    /// How often it was asked; 1 where it is not written.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub attempts: usize,
}

fn one() -> usize {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature is serde's")]
fn is_one(attempts: &usize) -> bool {
    *attempts == 1
}

/// Reasons that asking again does not change.
const FINAL: [&str; 1] = ["too_long"];

/// Whether a rejected request is worth another attempt.
pub fn is_retried(reason: &str, attempts: usize, max_attempts: usize) -> bool {
    attempts < max_attempts && !FINAL.contains(&reason)
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
    /// How often it was asked.
    pub attempts: usize,
    /// Tokens of the prompts of all attempts.
    pub prompt_tokens: usize,
    /// Tokens of the completions of all attempts.
    pub completion_tokens: usize,
}

impl<R: Serialize> Decided<R> {
    /// The same as a row that is kept elsewhere.
    pub fn into_answered(self, step: &str) -> Result<Answered> {
        let Self { id, parent, outcome, attempts, prompt_tokens, completion_tokens } = self;
        let is_rejected = outcome.is_err();
        let row = match outcome {
            Ok(record) => serde_json::to_value(record)?,
            Err(Rejection { reason, evidence }) => {
                let (id, stage, reason) = (id.clone(), step.to_owned(), reason.to_owned());
                serde_json::to_value(RejectedRow { id, stage, parent, reason, evidence, attempts })?
            }
        };
        Ok(Answered { id, is_rejected, row, prompt_tokens, completion_tokens })
    }
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
    /// not, and leaves `work` behind it. A rejected request that may be asked again (`max_attempts`) is not answered. What
    /// stands behind that place is in the second result.
    ///
    /// **Errors**: a damaged line, with file and number; a yield under `min_yield`.
    pub fn resume<T>(
        &mut self,
        work: &mut dyn Iterator<Item = Result<Work<T>>>,
        stats: &mut StepStats,
        min_yield: f64,
        max_attempts: usize,
    ) -> Result<(Option<Work<T>>, Spare)> {
        let mut spare = Spare::open(self.kept.0.parent().unwrap_or(Path::new("")), &self.step)?;
        let mut kept = Rows::open(&self.kept.0, None)?;
        let mut rejected = Rows::open(&self.rejected.0, Some(&self.step))?;
        let mut usage = Rows::open(&self.usage.0, Some(&self.step))?;
        let mut next = None;
        for work in work {
            let work = work?;
            let is_at = |row: Option<&Row>| row.is_some_and(|row| row.line.id == work.id);
            let is_final = |row: &Row| !is_retried(&row.line.reason, row.line.attempts.max(1), max_attempts);
            let reason = if is_at(kept.peek()?) {
                kept.take()?;
                None
            } else if is_at(rejected.peek()?) && rejected.peek()?.is_some_and(is_final) {
                rejected.take()?.map(|row| row.line.reason)
            } else {
                next = Some(work);
                break;
            };
            spare.forget(&work.id);
            // A request without its line of usage (somebody removed the file) counts no tokens and is not made again.
            let tokens = if is_at(usage.peek()?) { usage.take()?.map(|row| row.line) } else { None };
            let tokens = tokens.unwrap_or_default();
            stats.count(reason.as_deref(), tokens.prompt_tokens, tokens.completion_tokens);
            stats.check(min_yield, &self.rejected.0)?;
        }
        let is_changed = next.is_some() || kept.peek()?.is_some() || rejected.peek()?.is_some();
        // A kill between the two writes of one request leaves one line of usage too many, and that of no row.
        spare.add(&mut answered((kept.rest()?, rejected.rest()?), usage.rest()?)?)?;
        let later = if is_changed { self.spare_later_steps()? } else { Vec::new() };
        kept.cut(&[])?;
        for rows in [&mut usage, &mut rejected] {
            rows.cut(&later)?;
        }
        // A file that was written anew is another one than that which was opened.
        for (path, writer) in [&mut self.kept, &mut self.rejected, &mut self.usage] {
            *writer = JsonlWriter::append(path)?;
        }
        Ok((next, spare))
    }

    /// The files hold sub-step after sub-step, so what follows one that goes on must be written behind it again. Returns
    /// the names of the sub-steps whose rows were moved.
    fn spare_later_steps(&self) -> Result<Vec<&'static str>> {
        let folder = self.kept.0.parent().unwrap_or(Path::new(""));
        let later = STEPS.iter().skip_while(|(step, _)| *step != self.step).skip(1);
        let mut moved = Vec::new();
        for (step, file) in later.filter(|(_, file)| folder.join(file).exists()) {
            let ledger = Self::open(folder, step, file)?;
            let mut rows = rows(&ledger.kept.0, &ledger.rejected.0, &ledger.usage.0, step)?;
            Spare::open(folder, step)?.add(&mut rows)?;
            drop(JsonlWriter::create(&ledger.kept.0)?);
            moved.push(*step);
        }
        Ok(moved)
    }

    /// What a finished sub-step did not take back is set aside.
    pub fn set_aside(&self, spare: Spare) -> Result<()> {
        let aside = |path: &Path| path.with_extension("set_aside.jsonl");
        spare.finish(&aside(&self.kept.0), &aside(&self.rejected.0))
    }

    /// Writes a row that was answered before.
    pub fn write_again(&mut self, answered: &Answered) -> Result<()> {
        self.usage.1.write(&UsageRow {
            id: answered.id.clone(),
            stage: self.step.clone(),
            prompt_tokens: answered.prompt_tokens,
            completion_tokens: answered.completion_tokens,
        })?;
        if answered.is_rejected { self.rejected.1.write(&answered.row) } else { self.kept.1.write(&answered.row) }
    }

    /// All rows of a sub-step in a folder that is finished with.
    pub fn read(folder: &Path, step: &str, file: &str) -> Result<Vec<Answered>> {
        let [kept, rejected, usage] = [file, "rejected.jsonl", "usage.jsonl"].map(|name| folder.join(name));
        rows(&kept, &rejected, &usage, step)?.collect()
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
                attempts: decided.attempts,
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

/// All rows of a sub-step.
fn rows(
    kept: &Path,
    rejected: &Path,
    usage: &Path,
    step: &str,
) -> Result<impl Iterator<Item = Result<Answered>> + use<>> {
    let rows = |path: &Path, stage: Option<&str>| Rows::open(path, stage)?.rest();
    answered((rows(kept, None)?, rows(rejected, Some(step))?), rows(usage, Some(step))?)
}

/// Records and rejections, each with its tokens.
fn answered(
    (kept, rejected): (Values, Values),
    usage: Values,
) -> Result<impl Iterator<Item = Result<Answered>> + use<>> {
    let mut tokens: HashMap<String, (usize, usize)> = HashMap::new();
    for row in usage {
        let row: UsageRow = serde_json::from_value(row?).context("not the expected line of `usage.jsonl`")?;
        tokens.insert(row.id, (row.prompt_tokens, row.completion_tokens));
    }
    let rows = kept.map(|row| (row, false)).chain(rejected.map(|row| (row, true)));
    Ok(rows.map(move |(row, is_rejected)| {
        let row = row?;
        let id = row["id"].as_str().unwrap_or_default().to_owned();
        let (prompt_tokens, completion_tokens) = tokens.get(&id).copied().unwrap_or_default();
        Ok(Answered { id, is_rejected, row, prompt_tokens, completion_tokens })
    }))
}

/// Lines of a file.
type Values = Box<dyn Iterator<Item = Result<Value>>>;

/// What the walk reads of any line; the rest is skipped.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Line {
    id: String,
    stage: String,
    reason: String,
    prompt_tokens: usize,
    completion_tokens: usize,
    attempts: usize,
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
    /// Where the last row of the sub-step that was taken ends.
    end: u64,
    line_number: usize,
    next: Option<Row>,
}

impl Rows {
    fn open(path: &Path, stage: Option<&str>) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot open `{}`", path.display()))?;
        let lines = BufReader::with_capacity(1 << 16, file);
        let stage = stage.map(str::to_owned);
        Ok(Self { path: path.to_owned(), lines, stage, offset: 0, end: 0, line_number: 0, next: None })
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
        if self.peek()?.is_some() {
            self.end = self.offset;
        }
        Ok(self.next.take())
    }

    /// The rows from the next one on.
    fn rest(&mut self) -> Result<Values> {
        let Some(start) = self.peek()?.map(|row| row.start) else { return Ok(Box::new(std::iter::empty())) };
        let (path, stage) = (self.path.clone(), self.stage.clone());
        let context = move || format!("cannot read `{}`", path.display());
        let mut file = File::open(&self.path).with_context(&context)?;
        file.seek(SeekFrom::Start(start)).with_context(&context)?;
        let rows = BufReader::new(file).split(b'\n').filter(|line| !line.as_ref().is_ok_and(|line| line.is_empty()));
        let rows = rows.map(move |line| {
            let line = line.with_context(&context)?;
            serde_json::from_slice::<Value>(&line).with_context(&context)
        });
        let is_own = move |row: &Result<Value>| match (row, &stage) {
            (Ok(row), Some(stage)) => row["stage"] == **stage,
            _ => true,
        };
        Ok(Box::new(rows.filter(is_own)))
    }

    /// Takes the rows from the next one on out of the file, and those of the sub-steps in `with`.
    fn cut(&mut self, with: &[&str]) -> Result<()> {
        let next = self.peek()?.map(|row| row.start);
        let Some(start) = next.or((!with.is_empty()).then_some(self.end)) else { return Ok(()) };
        let context = || format!("cannot cut `{}`", self.path.display());
        let mut file = OpenOptions::new().read(true).write(true).open(&self.path).with_context(context)?;
        file.seek(SeekFrom::Start(start)).with_context(context)?;
        let mut tail = Vec::new();
        file.read_to_end(&mut tail).with_context(context)?;
        let is_cut =
            |line: &Line| self.stage.as_ref().is_none_or(|own| *own == line.stage) || with.contains(&&*line.stage);
        let foreign = |line: &[u8]| serde_json::from_slice::<Line>(line).is_ok_and(|line| !is_cut(&line));
        let others: Vec<u8> =
            tail.split_inclusive(|&byte| byte == b'\n').filter(|line| foreign(line)).flatten().copied().collect();
        if others.is_empty() {
            return file.set_len(start).with_context(context);
        }
        // Rows of other sub-steps stand behind: the file is written anew.
        let mut whole = std::fs::read(&self.path).with_context(context)?;
        whole.truncate(start as usize);
        whole.extend_from_slice(&others);
        write_atomic(&self.path, &whole)
    }
}
