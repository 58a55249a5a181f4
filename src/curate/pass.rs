//! The pass over the rows: read, judge, hand on. Holds hashes of the rows, never their texts, so a million rows fit.
//!
//! Lines are judged in batches on all cores; duplicates, which depend on the order, are found one row after the other.

use std::{collections::BTreeMap, io::BufRead, path::Path};

use anyhow::{Context, Result};
use rayon::prelude::*;
use serde::Serialize;
use serde_json::{Map, Value};

use super::{
    audit::{RowAudit, StageAudit},
    benchmarks,
    columns::{Columns, Threshold},
    decontaminate::{BenchmarkIndex, IndexCounts},
    dedup::{Dedup, Fingerprint},
    export,
    filter::{Filter, Reason, Rejection},
    lexicon::Lexicon,
    minhash::MinHash,
    model_columns::{Measured, ModelColumns},
    row_words::RowText,
    rows::{Row, RowFormat},
    semantic_duplicates::Encoder,
    writer::Writer,
};
use crate::{config::CurateConfig, error::usage, interrupt, records};

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
    /// Rows in which names and pronouns were exchanged.
    pub counterfactual_rows: usize,
}

/// What `audit.json` holds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Audit {
    /// All rows, and what was left after each filter, in order.
    pub stages: Vec<StageAudit>,
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

/// What can be said of a line without its neighbours.
pub(super) struct Judged {
    pub id: String,
    pub parent: Option<String>,
    /// What was measured; `None` of a line that is no row.
    pub measured: Option<(Columns, RowAudit)>,
    pub verdict: Result<Kept, Rejection>,
}

/// A row that nothing speaks against but, perhaps, its likes.
pub(super) struct Kept {
    pub columns: Map<String, Value>,
    /// `columns` as they are written, if nothing changes them.
    pub line: Vec<u8>,
    pub fingerprint: Fingerprint,
    /// Where an encoder is configured.
    pub meaning: Option<Meaning>,
}

/// What a question means.
pub(super) struct Meaning {
    /// Its vector.
    pub vector: Vec<f32>,
    /// Which of the rows before its batch is nearest, and their cosine, if that reaches the threshold.
    pub nearest: Option<(usize, f32)>,
}

/// Rows on disk.
pub(super) struct Source<'a> {
    pub path: &'a Path,
    pub format: RowFormat,
    /// What all rows of a run have in common; `null` for rows from elsewhere.
    pub provenance: &'a Value,
}

/// What every row is held against.
struct Judge<'a> {
    format: RowFormat,
    /// What all rows of a run have in common; `null` for rows from elsewhere.
    provenance: &'a Value,
    filter: Filter,
    thresholds: Vec<Threshold>,
    lexicon: &'a Lexicon,
    index: Option<&'a BenchmarkIndex>,
    minhash: Option<MinHash>,
    encoder: Encoder<'a>,
}

/// Curates one file into `output`: `train.jsonl`, `valid.jsonl`, `test.jsonl`, `rejected.jsonl`, `scores.jsonl`,
/// `audit.json`, `stats.json`.
pub(super) fn curate(
    source: &Source,
    output: &Path,
    config: &CurateConfig,
    run_seed: u64,
    index: Option<&BenchmarkIndex>,
    encoder: Encoder,
) -> Result<CurateStats> {
    let &Source { path: input, format, provenance } = source;
    let thresholds = config.thresholds.iter().map(|text| Threshold::parse(text).map_err(usage));
    let own_lexicon = if config.lexicon.as_os_str().is_empty() { None } else { Some(Lexicon::read(&config.lexicon)?) };
    let lexicon = own_lexicon.as_ref().unwrap_or(Lexicon::built_in());
    let mut dedup = Dedup::new(config.near_duplicate_threshold);
    let judge = Judge {
        format,
        provenance,
        filter: Filter::new(config)?,
        thresholds: thresholds.collect::<Result<_>>()?,
        lexicon,
        index,
        minhash: dedup.minhash(),
        encoder: encoder.filter(|_| config.semantic_duplicate_threshold < 1.0),
    };
    let mut lines = benchmarks::open(input)?;
    let mut model_columns = ModelColumns::open(output, config)?;
    let mut writer = Writer::create(output, config, run_seed, lexicon, encoder)?;
    let mut number = 0;
    loop {
        interrupt::check()?;
        let batch =
            read_batch(&mut lines, &mut number).with_context(|| format!("cannot read `{}`", input.display()))?;
        if batch.is_empty() {
            break;
        }
        let measured: Vec<Measured> = batch.iter().map(|_| model_columns.next_line()).collect::<Result<_>>()?;
        let work = batch.par_iter().zip(&measured);
        let semantic = writer.semantic();
        let judge_line = |((number, line), measured): (&(usize, Vec<u8>), &Measured)| {
            let mut judged = judge.judge(line, *number, measured)?;
            if let Ok(Kept { meaning: Some(meaning), .. }) = &mut judged.verdict {
                meaning.nearest = semantic.find(&meaning.vector, 0);
            }
            Ok(judged)
        };
        let judged: Vec<Judged> = work.map(judge_line).collect::<Result<_>>()?;
        let seen = semantic.next_number();
        for row in judged {
            writer.take(row, seen, &mut dedup)?;
        }
    }
    let near_duplicates = dedup.minhash().map(|minhash| NearDuplicateStats {
        threshold: config.near_duplicate_threshold,
        bands: minhash.bands(),
        rows_per_band: minhash.rows_per_band(),
        recall_at_threshold: minhash.probability(config.near_duplicate_threshold),
    });
    drop(dedup);
    let stats = writer.finish(near_duplicates, index.map(BenchmarkIndex::counts))?;
    if config.dataset {
        export::write(output, &stats)?;
    }
    // Last, since its presence says that the stage is done.
    records::write_json(&output.join("stats.json"), &stats)?;
    Ok(stats)
}

/// The next lines that are not blank, with their numbers from 1.
pub(super) fn read_batch(lines: &mut dyn BufRead, number: &mut usize) -> std::io::Result<Vec<(usize, Vec<u8>)>> {
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

impl Judge<'_> {
    /// `by_models` are the columns that models have measured of this line.
    fn judge(&self, line: &[u8], number: usize, by_models: &Measured) -> Result<Judged> {
        let row = match Row::parse(line, number, self.format) {
            Ok(row) => row.with_provenance(self.provenance),
            Err(bad) => {
                return Ok(Judged {
                    id: bad.id,
                    parent: None,
                    measured: None,
                    verdict: Err((Reason::Format, bad.evidence)),
                });
            }
        };
        let text = RowText::of(&row.messages);
        let audit = RowAudit::of(&row, &text, self.lexicon);
        let mut columns = Columns::of(&row, &text, self.lexicon.toxic_words(&audit.mentions));
        by_models.iter().for_each(|&(column, value)| columns.set(column, value));
        let verdict = match self.reject(&text, &columns) {
            Some(rejection) => Err(rejection),
            None => Ok(Kept {
                fingerprint: Fingerprint::new(&text.asked, &text.system, self.minhash),
                meaning: match self.encoder {
                    Some(encoder) => Some(Meaning { vector: encoder.encode(&text.question)?, nearest: None }),
                    None => None,
                },
                line: line_of(&row.output),
                columns: Map::new(),
            }),
        };
        let verdict = verdict.map(|kept| Kept { columns: row.output, ..kept });
        Ok(Judged { id: row.id, parent: row.parent, measured: Some((columns, audit)), verdict })
    }

    /// Why a row is not used, whatever the others are.
    fn reject(&self, text: &RowText, columns: &Columns) -> Option<Rejection> {
        let question = (text.question.as_ref(), &text.asked);
        let broken = |threshold: &Threshold| threshold.check(|column| columns.get(column));
        let leak = || self.index?.find(&text.asked, &text.conversation);
        text.answers()
            .find_map(|answer| self.filter.check(question, answer))
            .or_else(|| Some((Reason::Threshold, self.thresholds.iter().find_map(broken)?)))
            .or_else(|| Some((Reason::Contaminated, leak()?.to_string())))
    }
}

/// A row as a line of JSON.
pub(super) fn line_of(columns: &Map<String, Value>) -> Vec<u8> {
    let mut line = serde_json::to_vec(columns).expect("maps with text keys are JSON");
    line.push(b'\n');
    line
}
