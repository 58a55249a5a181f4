//! The pass over the rows: read, judge, write. Holds hashes of the rows, never their texts, so a million rows fit.
//!
//! Lines are judged in batches on all cores; duplicates, which depend on the order, are found one row after the other.
//! All files are written under temporary names and renamed at the end: a kill leaves the old files or none.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use rayon::prelude::*;
use serde::Serialize;
use serde_json::{Map, Value};

use super::{
    benchmarks,
    decontaminate::{BenchmarkIndex, IndexCounts},
    dedup::{Dedup, Duplicate, Fingerprint},
    filter::{Filter, Reason, Rejection},
    minhash::MinHash,
    normalize::Words,
    row_words::Conversation,
    rows::{Row, RowFormat},
    split::{Split, shuffled_answers},
};
use crate::{config::CurateConfig, interrupt, records};

/// Lines judged together.
const BATCH: usize = 512;

/// What the stage did; adds up exactly: `rows_in` is `kept` and all of `rejected`, `kept` is all of `splits`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CurateStats {
    /// Lines read, blank ones left out.
    pub rows_in: usize,
    /// Rows rejected, by reason; every reason is there.
    pub rejected: BTreeMap<&'static str, usize>,
    /// Rows kept.
    pub kept: usize,
    /// Kept rows, by split.
    pub splits: SplitCounts,
    /// Whether the answers of the training rows were shuffled (the control experiment).
    pub shuffled_answers: bool,
    /// How near-duplicates were looked for; `null` when that was off.
    pub near_duplicates: Option<NearDuplicateStats>,
    /// What the rows were compared against; `null` when that was off.
    pub benchmarks: Option<IndexCounts>,
}

/// Rows per split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct SplitCounts {
    /// `train.jsonl`
    pub train: usize,
    /// `valid.jsonl`
    pub valid: usize,
    /// `test.jsonl`
    pub test: usize,
}

/// How near-duplicates were looked for.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct NearDuplicateStats {
    /// Least exact Jaccard similarity of two near-duplicates.
    pub threshold: f64,
    /// Bands of the MinHash signature.
    pub bands: usize,
    /// Hashes per band.
    pub rows_per_band: usize,
    /// Probability that a pair whose similarity is the threshold itself is found.
    pub recall_at_threshold: f64,
}

/// One line of `rejected.jsonl`.
#[derive(Debug, Serialize)]
struct Rejected<'a> {
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<&'a str>,
    reason: Reason,
    evidence: &'a str,
}

/// What can be said of a line without its neighbours.
struct Judged {
    id: String,
    parent: Option<String>,
    verdict: Result<(Map<String, Value>, Fingerprint), Rejection>,
}

/// Curates one file into `output`: `train.jsonl`, `valid.jsonl`, `test.jsonl`, `rejected.jsonl`, `stats.json`.
pub fn curate(
    input: &Path,
    format: RowFormat,
    output: &Path,
    config: &CurateConfig,
    run_seed: u64,
    index: Option<&BenchmarkIndex>,
) -> Result<CurateStats> {
    let filter = Filter::new(config)?;
    let mut lines = benchmarks::open(input)?;
    let mut writer = Writer::create(output, config, run_seed)?;
    let mut dedup = Dedup::new(config.near_duplicate_threshold);
    let minhash = dedup.minhash();
    let mut number = 0;
    loop {
        interrupt::check()?;
        let batch =
            read_batch(&mut lines, &mut number).with_context(|| format!("cannot read `{}`", input.display()))?;
        if batch.is_empty() {
            break;
        }
        let judged: Vec<Judged> =
            batch.par_iter().map(|(number, line)| judge(line, *number, format, &filter, index, minhash)).collect();
        for row in judged {
            writer.take(row, &mut dedup)?;
        }
    }
    let near_duplicates = minhash.map(|minhash| NearDuplicateStats {
        threshold: config.near_duplicate_threshold,
        bands: minhash.bands(),
        rows_per_band: minhash.rows_per_band(),
        recall_at_threshold: minhash.probability(config.near_duplicate_threshold),
    });
    writer.finish(near_duplicates, index.map(BenchmarkIndex::counts))
}

/// The next lines that are not blank, with their numbers from 1.
fn read_batch(lines: &mut dyn BufRead, number: &mut usize) -> std::io::Result<Vec<(usize, Vec<u8>)>> {
    let mut batch = Vec::with_capacity(BATCH);
    while batch.len() < BATCH {
        let mut line = Vec::new();
        if lines.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        *number += 1;
        // Some editors put a byte-order mark in front of a file.
        let start = if *number == 1 && line.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 };
        if !line[start..].trim_ascii().is_empty() {
            batch.push((*number, line[start..].to_vec()));
        }
    }
    Ok(batch)
}

fn judge(
    line: &[u8],
    number: usize,
    format: RowFormat,
    filter: &Filter,
    index: Option<&BenchmarkIndex>,
    minhash: Option<MinHash>,
) -> Judged {
    let row = match Row::parse(line, number, format) {
        Ok(row) => row,
        Err(bad) => return Judged { id: bad.id, parent: None, verdict: Err((Reason::Format, bad.evidence)) },
    };
    let question = row.question();
    let words = Words::of(&question);
    let broken_rule = row.turns("assistant").find_map(|answer| filter.check(&question, answer));
    let rejection = broken_rule.or_else(|| {
        let leak = index?.find(&words, &Conversation::of(&row.messages))?;
        Some((Reason::Contaminated, leak.to_string()))
    });
    let verdict = match rejection {
        Some(rejection) => Err(rejection),
        None => {
            let mut system = Words::default();
            row.turns("system").for_each(|turn| system.push_text(turn));
            let fingerprint = Fingerprint::new(&words, &system, minhash);
            Ok((row.output, fingerprint))
        }
    };
    Judged { id: row.id, parent: row.parent, verdict }
}

/// The files of the stage while they are made.
struct Writer<'a> {
    config: &'a CurateConfig,
    run_seed: u64,
    output: PathBuf,
    train: PendingFile,
    valid: PendingFile,
    test: PendingFile,
    rejected: PendingFile,
    kept_ids: Vec<Box<str>>,
    /// Where each line of `train` begins; kept only when answers are to be shuffled.
    train_offsets: Vec<u64>,
    splits: SplitCounts,
    rejections: BTreeMap<&'static str, usize>,
}

impl<'a> Writer<'a> {
    fn create(output: &Path, config: &'a CurateConfig, run_seed: u64) -> Result<Self> {
        fs::create_dir_all(output).with_context(|| format!("cannot create folder `{}`", output.display()))?;
        Ok(Self {
            config,
            run_seed,
            output: output.to_owned(),
            train: PendingFile::create(output, "train.jsonl")?,
            valid: PendingFile::create(output, "valid.jsonl")?,
            test: PendingFile::create(output, "test.jsonl")?,
            rejected: PendingFile::create(output, "rejected.jsonl")?,
            kept_ids: Vec::new(),
            train_offsets: Vec::new(),
            splits: SplitCounts::default(),
            rejections: Reason::ALL.iter().map(|reason| (reason.name(), 0)).collect(),
        })
    }

    fn take(&mut self, row: Judged, dedup: &mut Dedup) -> Result<()> {
        let Judged { id, parent, verdict } = row;
        let (columns, fingerprint) = match verdict {
            Ok(kept) => kept,
            Err((reason, evidence)) => return self.reject(&id, parent.as_deref(), reason, &evidence),
        };
        match dedup.push(&fingerprint) {
            Some(Duplicate::Exact(kept)) => {
                let evidence = self.kept_ids[kept].clone();
                return self.reject(&id, parent.as_deref(), Reason::ExactDuplicate, &evidence);
            }
            Some(Duplicate::Near(kept, similarity)) => {
                let evidence = format!("{} (jaccard {similarity:.3})", self.kept_ids[kept]);
                return self.reject(&id, parent.as_deref(), Reason::NearDuplicate, &evidence);
            }
            None => {}
        }
        match Split::of(&id, self.run_seed, self.config) {
            Split::Train => {
                if self.config.shuffle_answers {
                    self.train_offsets.push(self.train.bytes);
                }
                self.splits.train += 1;
                self.train.write(&columns)?;
            }
            Split::Valid => {
                self.splits.valid += 1;
                self.valid.write(&columns)?;
            }
            Split::Test => {
                self.splits.test += 1;
                self.test.write(&columns)?;
            }
        }
        self.kept_ids.push(id.into_boxed_str());
        Ok(())
    }

    fn reject(&mut self, id: &str, parent: Option<&str>, reason: Reason, evidence: &str) -> Result<()> {
        *self.rejections.entry(reason.name()).or_default() += 1;
        self.rejected.write(&Rejected { id, parent, reason, evidence })
    }

    fn finish(
        mut self,
        near_duplicates: Option<NearDuplicateStats>,
        benchmarks: Option<IndexCounts>,
    ) -> Result<CurateStats> {
        if self.config.shuffle_answers {
            self.train = shuffle(self.train, &self.output, &self.train_offsets, self.run_seed)?;
        }
        let stats = CurateStats {
            rows_in: self.kept_ids.len() + self.rejections.values().sum::<usize>(),
            rejected: self.rejections,
            kept: self.kept_ids.len(),
            splits: self.splits,
            shuffled_answers: self.config.shuffle_answers,
            near_duplicates,
            benchmarks,
        };
        debug_assert_eq!(stats.kept, stats.splits.train + stats.splits.valid + stats.splits.test);
        for file in [self.train, self.valid, self.test, self.rejected] {
            file.finish()?;
        }
        // Last, since its presence says that the stage is done.
        records::write_json(&self.output.join("stats.json"), &stats)?;
        Ok(stats)
    }
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
struct PendingFile {
    temporary: PathBuf,
    target: PathBuf,
    file: BufWriter<File>,
    bytes: u64,
}

impl PendingFile {
    fn create(folder: &Path, name: &str) -> Result<Self> {
        let temporary = folder.join(format!(".{name}.partial"));
        let file = File::create(&temporary).with_context(|| format!("cannot create `{}`", temporary.display()))?;
        Ok(Self { temporary, target: folder.join(name), file: BufWriter::with_capacity(1 << 16, file), bytes: 0 })
    }

    fn write<T: Serialize>(&mut self, record: &T) -> Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        self.bytes += line.len() as u64;
        self.file.write_all(&line).with_context(|| self.complaint())
    }

    fn finish(mut self) -> Result<()> {
        self.file.flush().with_context(|| self.complaint())?;
        self.file.get_ref().sync_all().with_context(|| self.complaint())?;
        fs::rename(&self.temporary, &self.target).with_context(|| self.complaint())
    }

    fn complaint(&self) -> String {
        format!(
            "cannot write `{}` (is the disk full? free some space and run the command again)",
            self.target.display()
        )
    }
}

impl Drop for PendingFile {
    fn drop(&mut self) {
        // After a rename there is nothing left to remove; after a failure the leftover is of no use to anybody.
        let _ = fs::remove_file(&self.temporary);
    }
}
