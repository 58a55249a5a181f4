//! Answered requests that do not stand where the work list has them: rows behind a place that changed, and the pilot's.
//!
//! When something in the middle of a work list is made anew (a line was removed, a branch regenerated, a rejected request is
//! tried again), the rows behind it are as good as they were. They are moved here, and every request is looked up before
//! the teacher is asked. What nobody asks for in the end is set aside, never deleted.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{BufRead, BufReader, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::records::JsonlWriter;

/// An answered request as it is kept here: a line of `STEP.spare.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answered {
    /// Id of the record, made or not.
    pub id: String,
    /// Whether `row` is a line of `rejected.jsonl`.
    pub is_rejected: bool,
    /// The line itself.
    pub row: Value,
    /// Tokens of its prompts.
    pub prompt_tokens: usize,
    /// Tokens of its completions.
    pub completion_tokens: usize,
}

impl Answered {
    /// A text of the row; empty where it has none.
    fn text(&self, key: &str) -> &str {
        self.row[key].as_str().unwrap_or_default()
    }

    /// Why the request was rejected.
    pub fn reason(&self) -> Option<String> {
        self.is_rejected.then(|| self.text("reason").to_owned())
    }

    /// How often it was asked.
    pub fn attempts(&self) -> usize {
        self.row["attempts"].as_u64().map_or(1, |attempts| attempts as usize)
    }
}

/// The store of one sub-step: an index in memory (some 80 bytes per row), the rows on disk.
pub struct Spare {
    path: PathBuf,
    file: Option<File>,
    index: HashMap<String, u64>,
    /// Rows of the pilot; they stay where they are.
    pilot: HashMap<String, Answered>,
}

impl Spare {
    /// What a process before this one left; usually nothing.
    pub fn open(folder: &Path, step: &str) -> Result<Self> {
        let path = folder.join(format!("{step}.spare.jsonl"));
        let mut spare = Self { path, file: None, index: HashMap::new(), pilot: HashMap::new() };
        if spare.path.exists() {
            spare.load()?;
        }
        Ok(spare)
    }

    /// Takes rows in.
    pub fn add(&mut self, rows: &mut dyn Iterator<Item = Result<Answered>>) -> Result<()> {
        let mut rows = rows.peekable();
        if rows.peek().is_none() {
            return Ok(());
        }
        let mut writer = JsonlWriter::append(&self.path)?;
        for row in rows {
            writer.write(&row?)?;
        }
        writer.sync()?;
        self.load()
    }

    /// Offers the pilot's rows too.
    pub fn add_pilot(&mut self, rows: Vec<Answered>) {
        self.pilot.extend(rows.into_iter().map(|row| (row.id.clone(), row)));
    }

    fn load(&mut self) -> Result<()> {
        // Cuts what a kill tore.
        drop(JsonlWriter::append(&self.path)?);
        let context = || format!("cannot read `{}`", self.path.display());
        let mut lines = BufReader::new(File::open(&self.path).with_context(context)?);
        let (mut offset, mut line) = (0, Vec::new());
        loop {
            line.clear();
            let read = lines.read_until(b'\n', &mut line).with_context(context)?;
            if read == 0 {
                break;
            }
            #[derive(Deserialize)]
            struct Id {
                id: String,
            }
            let id: Id = serde_json::from_slice(&line).with_context(context)?;
            self.index.insert(id.id, offset);
            offset += read as u64;
        }
        self.file = Some(File::open(&self.path).with_context(context)?);
        Ok(())
    }

    /// The row of a request, which is not offered again.
    pub fn take(&mut self, id: &str) -> Result<Option<Answered>> {
        if let Some(offset) = self.index.remove(id) {
            let context = || format!("cannot read `{}`", self.path.display());
            let file = self.file.as_mut().with_context(context)?;
            file.seek(SeekFrom::Start(offset)).with_context(context)?;
            let mut line = Vec::new();
            BufReader::new(file).read_until(b'\n', &mut line).with_context(context)?;
            let row: Answered = serde_json::from_slice(&line).with_context(context)?;
            ensure!(row.id == id, "`{}` was changed while it was read", self.path.display());
            return Ok(Some(row));
        }
        Ok(self.pilot.remove(id))
    }

    /// The request stands where it belongs: its row here is of no use.
    pub fn forget(&mut self, id: &str) {
        self.index.remove(id);
    }

    /// Whether a row may be found here.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty() && self.pilot.is_empty()
    }

    /// Sets aside what nobody asked for: records in `kept`, rejections in `rejected`.
    pub fn finish(mut self, kept: &Path, rejected: &Path) -> Result<()> {
        if self.file.is_none() {
            return Ok(());
        }
        let mut offsets: Vec<(u64, String)> = self.index.iter().map(|(id, offset)| (*offset, id.clone())).collect();
        offsets.sort_unstable();
        if !offsets.is_empty() {
            tracing::warn!(
                "{} rows do not belong to the work list as it is now; they are moved to `{}` and its like",
                offsets.len(),
                kept.display()
            );
            let mut writers = [JsonlWriter::append(kept)?, JsonlWriter::append(rejected)?];
            for (_, id) in offsets {
                let Some(row) = self.take(&id)? else { continue };
                writers[usize::from(row.is_rejected)].write(&row.row)?;
            }
            writers.iter().try_for_each(JsonlWriter::sync)?;
        }
        fs::remove_file(&self.path).with_context(|| format!("cannot remove `{}`", self.path.display()))
    }
}
