//! The files of the stage while they are made.
//!
//! All files are written under temporary names and renamed at the end: a kill leaves the old files or none. What is kept
//! goes to one file first when its split depends on all rows (quotas, concepts held out), and is dealt out at the end.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::{Map, Value};

use super::{
    audit::{self, RowAudit, Tally},
    columns::Columns,
    decontaminate::IndexCounts,
    dedup::{Dedup, Duplicate},
    filter::{Reason, Rejection},
    lexicon::Lexicon,
    pass::{Audit, CurateStats, Judged, Kept, Meaning, NearDuplicateStats, SplitCounts, line_of},
    plan::{Fate, KeptRow, Plan},
    row_words::RowText,
    rows::{Row, RowFormat},
    semantic_duplicates::{Encoder, SemanticIndex},
    split::{Split, is_counterfactual, shuffled_answers},
};
use crate::{config::CurateConfig, records};

/// One line of `rejected.jsonl`.
#[derive(Debug, Serialize)]
struct Rejected<'a> {
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<&'a str>,
    reason: Reason,
    evidence: &'a str,
}

/// One line of `scores.jsonl`.
#[derive(Debug, Serialize)]
struct Scored<'a> {
    id: &'a str,
    outcome: &'a str,
    #[serde(flatten)]
    columns: &'a Columns,
}

/// The files of the stage while they are made.
pub(super) struct Writer<'a> {
    config: &'a CurateConfig,
    run_seed: u64,
    lexicon: &'a Lexicon,
    encoder: Encoder<'a>,
    output: PathBuf,
    train: PendingFile,
    valid: PendingFile,
    test: PendingFile,
    rejected: PendingFile,
    scores: PendingFile,
    /// Kept rows whose split is not known yet, with what decides it.
    undecided: Option<(PendingFile, Plan)>,
    /// Rows by the reason that removed them, in the order of [`Reason::ALL`]; the kept ones last.
    tallies: Vec<Tally>,
    counterfactual_rows: usize,
    /// Of every row without an earlier one in its words: its id, or that of the row that means the same.
    kept_ids: Ids,
    rows_in: usize,
    semantic: SemanticIndex,
    /// Number among `kept_ids` of each vector of `semantic`.
    semantic_rows: Vec<u32>,
    /// Where each line of `train` begins; kept only when answers are to be shuffled.
    train_offsets: Vec<u64>,
    splits: SplitCounts,
    rejections: BTreeMap<&'static str, usize>,
}

/// The ids of all kept rows, one after the other.
#[derive(Default)]
struct Ids {
    text: String,
    ends: Vec<usize>,
}

impl Ids {
    fn push(&mut self, id: &str) {
        self.text.push_str(id);
        self.ends.push(self.text.len());
    }

    fn of(&self, row: usize) -> &str {
        let start = if row == 0 { 0 } else { self.ends[row - 1] };
        &self.text[start..self.ends[row]]
    }
}

impl<'a> Writer<'a> {
    pub fn create(
        output: &Path,
        config: &'a CurateConfig,
        run_seed: u64,
        lexicon: &'a Lexicon,
        encoder: Encoder<'a>,
    ) -> Result<Self> {
        fs::create_dir_all(output).with_context(|| format!("cannot create folder `{}`", output.display()))?;
        Ok(Self {
            config,
            run_seed,
            lexicon,
            encoder,
            output: output.to_owned(),
            train: PendingFile::create(output, "train.jsonl")?,
            valid: PendingFile::create(output, "valid.jsonl")?,
            test: PendingFile::create(output, "test.jsonl")?,
            rejected: PendingFile::create(output, "rejected.jsonl")?,
            scores: PendingFile::create(output, "scores.jsonl")?,
            undecided: match Plan::is_needed(config) {
                true => Some((PendingFile::create(output, "kept.jsonl")?, Plan::default())),
                false => None,
            },
            tallies: vec![Tally::default(); Reason::ALL.len() + 1],
            counterfactual_rows: 0,
            kept_ids: Ids::default(),
            rows_in: 0,
            semantic: SemanticIndex::new(config.semantic_duplicate_threshold),
            semantic_rows: Vec::new(),
            train_offsets: Vec::new(),
            splits: SplitCounts::default(),
            rejections: Reason::ALL.iter().map(|reason| (reason.name(), 0)).collect(),
        })
    }

    /// The meanings of the rows so far.
    pub fn semantic(&self) -> &SemanticIndex {
        &self.semantic
    }

    /// What of the earlier rows a row repeats, in words or in meaning; otherwise it is one of them from now on.
    fn repeats(&mut self, id: &str, kept: &mut Kept, seen: usize, dedup: &mut Dedup) -> Option<Rejection> {
        match dedup.push(&kept.fingerprint) {
            Some(Duplicate::Exact(row)) => return Some((Reason::ExactDuplicate, self.kept_ids.of(row).to_owned())),
            Some(Duplicate::Near(row, similarity)) => {
                let evidence = format!("{} (jaccard {similarity:.3})", self.kept_ids.of(row));
                return Some((Reason::NearDuplicate, evidence));
            }
            None => {}
        }
        if let Some(Meaning { vector, nearest }) = kept.meaning.take() {
            // The batch's own rows came after the search.
            let own = self.semantic.find(&vector, seen);
            let nearest = nearest.filter(|(_, most)| own.is_none_or(|(_, cosine)| cosine <= *most)).or(own);
            if let Some((number, cosine)) = nearest {
                let same = self.kept_ids.of(self.semantic_rows[number] as usize).to_owned();
                self.kept_ids.push(&same);
                return Some((Reason::SemanticDuplicate, format!("{same} (cosine {cosine:.3})")));
            }
            self.semantic.push(vector);
            self.semantic_rows.push(u32::try_from(self.kept_ids.ends.len()).ok()?);
        }
        self.kept_ids.push(id);
        None
    }

    /// Takes the next row of the input; its batch began when `seen` meanings were known.
    pub fn take(&mut self, row: Judged, seen: usize, dedup: &mut Dedup) -> Result<()> {
        let Judged { id, parent, measured, verdict } = row;
        self.rows_in += 1;
        let outcome = verdict.and_then(|mut kept| match self.repeats(&id, &mut kept, seen, dedup) {
            Some(rejection) => Err(rejection),
            None => Ok(kept),
        });
        let reason = outcome.as_ref().err().map(|(reason, _)| *reason);
        if let Some((columns, audit)) = measured {
            let name = reason.map_or("kept", Reason::name);
            self.scores.write(&Scored { id: &id, outcome: name, columns: &columns })?;
            let place = reason.map_or(Reason::ALL.len(), |reason| reason as usize);
            self.tallies[place].add(audit);
        }
        let Kept { columns, line, .. } = match outcome {
            Ok(kept) => kept,
            Err((reason, evidence)) => return self.reject(&id, parent.as_deref(), reason, &evidence),
        };
        match &mut self.undecided {
            Some((file, plan)) => {
                plan.push(KeptRow::of(&id, &columns, self.run_seed));
                file.write_line(&line)?;
            }
            None => self.write(Split::of(&id, self.run_seed, self.config), &id, columns, line)?,
        }
        Ok(())
    }

    /// Writes a row; `line` is what `columns` look like.
    fn write(&mut self, split: Split, id: &str, mut columns: Map<String, Value>, mut line: Vec<u8>) -> Result<()> {
        let is_counterfactual = is_counterfactual(id, self.run_seed, self.config.counterfactual_fraction);
        if split == Split::Train && is_counterfactual && exchange(&mut columns, self.lexicon) {
            self.counterfactual_rows += 1;
            line = line_of(&columns);
        }
        let (file, rows) = match split {
            Split::Train => (&mut self.train, &mut self.splits.train),
            Split::Valid => (&mut self.valid, &mut self.splits.valid),
            Split::Test => (&mut self.test, &mut self.splits.test),
        };
        if split == Split::Train && self.config.shuffle_answers {
            self.train_offsets.push(file.bytes);
        }
        *rows += 1;
        file.write_line(&line)
    }

    fn reject(&mut self, id: &str, parent: Option<&str>, reason: Reason, evidence: &str) -> Result<()> {
        *self.rejections.entry(reason.name()).or_default() += 1;
        self.rejected.write(&Rejected { id, parent, reason, evidence })
    }

    /// Deals out the rows whose split depends on all of them.
    fn decide(&mut self) -> Result<()> {
        let Some((mut kept, plan)) = self.undecided.take() else { return Ok(()) };
        let rows = self.tallies.pop().unwrap_or_default();
        debug_assert_eq!(rows.rows(), plan.len(), "one kept row each");
        self.tallies.push(Tally::default());
        kept.file.flush().with_context(|| kept.complaint())?;
        let mut lines = BufReader::new(File::open(&kept.temporary).with_context(|| kept.complaint())?);
        for fate in plan.decide(self.config, self.run_seed) {
            let mut line = Vec::new();
            lines.read_until(b'\n', &mut line).with_context(|| kept.complaint())?;
            let columns: Map<String, Value> = serde_json::from_slice(&line)?;
            let text = |key: &str| columns.get(key).and_then(Value::as_str).map(str::to_owned);
            let (id, parent) = (text("id").unwrap_or_default(), text("parent"));
            let audit = audit_of(&line, self.lexicon)?;
            let place = match &fate {
                Fate::Write(_) => Reason::ALL.len(),
                Fate::Reject(reason, _) => *reason as usize,
            };
            self.tallies[place].add(audit);
            match fate {
                Fate::Write(split) => self.write(split, &id, columns, line)?,
                Fate::Reject(reason, evidence) => self.reject(&id, parent.as_deref(), reason, &evidence)?,
            }
        }
        Ok(())
    }

    /// Writes what is left and gives all files their names.
    pub fn finish(
        mut self,
        near_duplicates: Option<NearDuplicateStats>,
        benchmarks: Option<IndexCounts>,
    ) -> Result<CurateStats> {
        let rows_in = self.rows_in;
        self.decide()?;
        if self.config.shuffle_answers {
            self.train = shuffle(self.train, &self.output, &self.train_offsets, self.run_seed)?;
        }
        let splits = self.splits;
        let stats = CurateStats {
            rows_in,
            rejected: self.rejections,
            kept: splits.train + splits.valid + splits.test,
            splits,
            shuffled_answers: self.config.shuffle_answers,
            near_duplicates,
            benchmarks,
            counterfactual_rows: self.counterfactual_rows,
        };
        debug_assert_eq!(stats.rows_in, stats.kept + stats.rejected.values().sum::<usize>());
        let kept = self.tallies.pop().unwrap_or_default();
        let removed: Vec<(&str, Tally)> = Reason::ALL.iter().map(|reason| reason.name()).zip(self.tallies).collect();
        let mut audit = Audit { stages: audit::stages(&removed, &kept, self.lexicon, self.encoder)? };
        if stats.counterfactual_rows > 0 {
            audit.stages.push(audit_written(
                [&mut self.valid, &mut self.test, &mut self.train],
                self.lexicon,
                self.encoder,
            )?);
        }
        for file in [self.train, self.valid, self.test, self.rejected, self.scores] {
            file.finish()?;
        }
        records::write_json(&self.output.join("audit.json"), &audit)?;
        Ok(stats)
    }
}

fn audit_of(line: &[u8], lexicon: &Lexicon) -> Result<RowAudit> {
    let row = Row::parse(line, 0, RowFormat::Messages)
        .map_err(|bad| anyhow::anyhow!("a row that was just written is none: {}", bad.evidence))?;
    Ok(RowAudit::of(&row, &RowText::of(&row.messages), lexicon))
}

/// The second audit, of the rows as they are written after a rewrite.
fn audit_written(files: [&mut PendingFile; 3], lexicon: &Lexicon, encoder: Encoder) -> Result<audit::StageAudit> {
    let mut tally = Tally::default();
    for file in files {
        file.file.flush().with_context(|| complaint(&file.target))?;
        let lines = BufReader::new(File::open(&file.temporary).with_context(|| file.complaint())?);
        for line in lines.lines() {
            tally.add(audit_of(line.with_context(|| file.complaint())?.as_bytes(), lexicon)?);
        }
    }
    audit::measure("written", &tally, &tally, lexicon, encoder)
}

/// Exchanges the words of one gender for those of the other in all turns; whether there were any.
fn exchange(columns: &mut Map<String, Value>, lexicon: &Lexicon) -> bool {
    let mut changed = false;
    let turns = columns.get_mut("messages").and_then(Value::as_array_mut);
    for turn in turns.into_iter().flatten() {
        if let Some(other) = turn["content"].as_str().and_then(|text| lexicon.counterfactual(text)) {
            turn["content"] = Value::String(other);
            changed = true;
        }
    }
    changed
}

/// Writes the training rows again, each with the last answer of another one, whose id goes into `answer_from`.
fn shuffle(mut train: PendingFile, output: &Path, offsets: &[u64], run_seed: u64) -> Result<PendingFile> {
    train.file.flush().with_context(|| train.complaint())?;
    let mut reader = BufReader::new(File::open(&train.temporary).with_context(|| train.complaint())?);
    let mut row_at = |offset: u64| -> Result<Map<String, Value>> {
        let mut line = Vec::new();
        reader.seek(SeekFrom::Start(offset))?;
        reader.by_ref().read_until(b'\n', &mut line)?;
        Ok(serde_json::from_slice(&line)?)
    };
    let mut shuffled = PendingFile::create(output, "train.jsonl.shuffled")?;
    shuffled.target = train.target.clone();
    for (row, answer) in shuffled_answers(offsets.len(), run_seed).into_iter().enumerate() {
        let mut columns = row_at(offsets[row])?;
        let mut donor = row_at(offsets[answer])?;
        let content = |columns: &mut Map<String, Value>| -> Option<Value> {
            Some(columns.get_mut("messages")?.as_array_mut()?.last_mut()?.get_mut("content")?.take())
        };
        let answer = content(&mut donor).context("a row that was just written has lost its answer")?;
        if let Some(last) = columns.get_mut("messages").and_then(Value::as_array_mut).and_then(|turns| turns.last_mut())
        {
            last["content"] = answer;
        }
        columns.insert("answer_from".into(), donor["id"].take());
        shuffled.write(&columns)?;
    }
    Ok(shuffled)
}

/// A file that appears under its name only when it is whole.
pub(super) struct PendingFile {
    temporary: PathBuf,
    target: PathBuf,
    file: BufWriter<File>,
    bytes: u64,
}

impl PendingFile {
    /// Begins a file.
    pub fn create(folder: &Path, name: &str) -> Result<Self> {
        let temporary = folder.join(format!(".{name}.partial"));
        let file = File::create(&temporary).with_context(|| format!("cannot create `{}`", temporary.display()))?;
        Ok(Self { temporary, target: folder.join(name), file: BufWriter::with_capacity(1 << 16, file), bytes: 0 })
    }

    /// Adds a record as a line.
    pub fn write<T: Serialize>(&mut self, record: &T) -> Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        self.write_line(&line)
    }

    /// Adds a line that ends with its line end.
    pub fn write_line(&mut self, line: &[u8]) -> Result<()> {
        self.bytes += line.len() as u64;
        self.file.write_all(line).with_context(|| self.complaint())
    }

    /// Gives the file its name.
    pub fn finish(mut self) -> Result<()> {
        self.file.flush().with_context(|| self.complaint())?;
        self.file.get_ref().sync_all().with_context(|| self.complaint())?;
        fs::rename(&self.temporary, &self.target).with_context(|| self.complaint())
    }

    fn complaint(&self) -> String {
        complaint(&self.target)
    }
}

/// What is said when a file cannot be written.
pub(super) fn complaint(target: &Path) -> String {
    format!("cannot write `{}` (is the disk full? free some space and run the command again)", target.display())
}

impl Drop for PendingFile {
    fn drop(&mut self) {
        // After a rename there is nothing left to remove; after a failure the leftover is of no use to anybody.
        let _ = fs::remove_file(&self.temporary);
    }
}
