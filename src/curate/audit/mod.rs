//! The audit of diversity and bias: what the rows are like before and after each filter, in `audit.json`.
//!
//! Every row is tallied once, under what became of it; a stage of the audit is the sum of the tallies of all rows that
//! were still there. Counts and distinct n-grams are of all rows (n-grams estimated to 0.8 %); what needs texts side by
//! side is measured on a sample, the rows with the least hashes of their ids, so that it does not depend on their order.
//! Memory does not grow with the rows, except for eight bytes per different subject and key concept.

pub mod lexical;
pub mod semantic;

use std::collections::{BTreeMap, HashSet};

use anyhow::Result;
use rayon::prelude::*;
use serde::Serialize;

use self::lexical::{MAX_N, Ngrams};
use super::{
    lexicon::Lexicon,
    normalize::{Words, hash_word, mix},
    row_words::RowText,
    rows::Row,
    semantic_duplicates::Encoder,
};

/// Rows of the sample.
const SAMPLE: usize = 400;
/// Rows of it for what takes the cube of their number.
const VENDI_SAMPLE: usize = 200;
/// Rows of it for Self-BLEU.
const BLEU_SAMPLE: usize = 200;
/// Clusters of the sample.
const CLUSTERS: usize = 16;
/// Disciplines named one by one.
const MAX_NAMED: usize = 500;

/// What the audit needs of one row.
pub struct RowAudit {
    hash: u64,
    chars: usize,
    words: usize,
    ngrams: [Vec<u64>; MAX_N],
    /// Of every category of the lexicon.
    pub(super) mentions: Vec<u32>,
    discipline: Option<String>,
    subject: Option<u64>,
    concepts: Vec<u64>,
    text: String,
}

impl RowAudit {
    /// Looks at a row: all its turns but the system's.
    pub fn of(row: &Row, text: &RowText, lexicon: &Lexicon) -> Self {
        let words = text.spoken();
        let turns: Vec<&str> =
            row.messages.iter().filter(|turn| turn.role != "system").map(|turn| turn.content.as_str()).collect();
        let text = turns.join("\n");
        let name = |key: &str| row.column(key).and_then(|value| value.as_str()).filter(|name| !name.is_empty());
        let subject =
            name("subject").map(|subject| hash_word(subject) ^ mix(hash_word(name("discipline").unwrap_or(""))));
        Self {
            hash: mix(hash_word(&row.id)),
            chars: text.chars().count(),
            words: words.len(),
            ngrams: lexical::ngram_hashes(&words),
            mentions: lexicon.mentions(&words),
            discipline: name("discipline").map(str::to_owned),
            subject,
            concepts: row
                .concepts()
                .into_iter()
                .map(|concept| hash_word(concept) ^ mix(subject.unwrap_or(0)))
                .collect(),
            text,
        }
    }
}

/// Rows that met the same fate.
#[derive(Clone, Default)]
pub struct Tally {
    rows: usize,
    words: u64,
    chars: u64,
    ngrams: Ngrams,
    /// Per category: rows that mention it, and mentions.
    mentions: Vec<(u64, u64)>,
    disciplines: BTreeMap<String, usize>,
    subjects: HashSet<u64>,
    concepts: HashSet<u64>,
    /// The rows with the least hashes.
    sample: BTreeMap<u64, String>,
}

impl Tally {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Takes a row.
    pub fn add(&mut self, row: RowAudit) {
        self.rows += 1;
        self.words += row.words as u64;
        self.chars += row.chars as u64;
        self.ngrams.add(&row.ngrams);
        self.mentions.resize(row.mentions.len(), (0, 0));
        for (tally, &count) in self.mentions.iter_mut().zip(&row.mentions) {
            *tally = (tally.0 + u64::from(count > 0), tally.1 + u64::from(count));
        }
        if let Some(discipline) = row.discipline {
            *self.disciplines.entry(discipline).or_default() += 1;
        }
        self.subjects.extend(row.subject);
        self.concepts.extend(row.concepts);
        self.keep(row.hash, row.text);
    }

    fn keep(&mut self, hash: u64, text: String) {
        let is_wanted =
            self.sample.len() < SAMPLE || self.sample.last_key_value().is_some_and(|(&most, _)| hash < most);
        if is_wanted {
            self.sample.insert(hash, text);
            if self.sample.len() > SAMPLE {
                self.sample.pop_last();
            }
        }
    }

    /// Takes the rows of another tally.
    pub fn merge(&mut self, other: &Self) {
        self.rows += other.rows;
        self.words += other.words;
        self.chars += other.chars;
        self.ngrams.merge(&other.ngrams);
        self.mentions.resize(self.mentions.len().max(other.mentions.len()), (0, 0));
        for (own, other) in self.mentions.iter_mut().zip(&other.mentions) {
            *own = (own.0 + other.0, own.1 + other.1);
        }
        for (discipline, rows) in &other.disciplines {
            *self.disciplines.entry(discipline.clone()).or_default() += rows;
        }
        self.subjects.extend(&other.subjects);
        self.concepts.extend(&other.concepts);
        other.sample.iter().for_each(|(&hash, text)| self.keep(hash, text.clone()));
    }
}

/// One stage of the audit.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StageAudit {
    /// `all`, `after REASON`, or `written`.
    pub stage: String,
    /// Rows, and the means of their lengths.
    pub rows: usize,
    /// Mean words of a row.
    pub mean_words: f64,
    /// Mean characters of a row.
    pub mean_chars: f64,
    /// Different n-grams over all, n from 1 to 4.
    pub distinct_n: [f64; MAX_N],
    /// Their sum.
    pub ngram_diversity: f64,
    /// Rows of the sample that the next six are measured on.
    pub sample_rows: usize,
    /// Bytes over packed bytes; higher is more repetitive.
    pub compression_ratio: f64,
    /// How many other texts share a text's 4-grams, as a logarithm.
    pub self_repetition: f64,
    /// BLEU of each text against the others.
    pub self_bleu: f64,
    /// Effective number of different texts, of the `vendi_rows` first of the sample.
    pub vendi_score: f64,
    /// Rows that the Vendi score is of.
    pub vendi_rows: usize,
    /// Mean similarity to the nearest other text.
    pub nearest_neighbour: f64,
    /// How even the sizes of 16 clusters are.
    pub cluster_entropy: f64,
    /// What of the taxonomy is there.
    pub coverage: Coverage,
    /// Whose vectors the Vendi score, the neighbours and the clusters are of: an encoder's name, or `hashed words`.
    pub vectors: String,
    /// Group -> category -> how often it is spoken of.
    pub representation: BTreeMap<String, Representation>,
}

/// What of the taxonomy is there.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Coverage {
    /// Disciplines, and the share of those of all rows.
    pub disciplines: usize,
    /// Share of the disciplines of all rows.
    pub disciplines_share: f64,
    /// How even their rows are: 1 when every discipline has as many.
    pub disciplines_entropy: f64,
    /// Rows of each discipline (of the first 500 by name).
    pub rows_by_discipline: BTreeMap<String, usize>,
    /// Different subjects.
    pub subjects: usize,
    /// Share of the subjects of all rows.
    pub subjects_share: f64,
    /// Different key concepts.
    pub key_concepts: usize,
    /// Share of the key concepts of all rows.
    pub key_concepts_share: f64,
}

/// How often the categories of one group are spoken of.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Representation {
    /// How even the mentions are: 1 when every category is mentioned as often.
    pub entropy: f64,
    /// Category -> rows that mention it, all mentions, share of the group's mentions.
    pub categories: BTreeMap<String, Mentions>,
}

/// Mentions of one category.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Mentions {
    /// Rows that mention it.
    pub rows: u64,
    /// All mentions.
    pub mentions: u64,
    /// Share of its group's mentions.
    pub share: f64,
}

/// The stages of `tallies`, each a name and what was removed there, in order; the rows of `kept` were never removed.
///
/// **Errors**: those of the encoder.
pub fn stages(removed: &[(&str, Tally)], kept: &Tally, lexicon: &Lexicon, encoder: Encoder) -> Result<Vec<StageAudit>> {
    let mut left: Vec<Tally> = vec![kept.clone()];
    for (_, tally) in removed.iter().rev() {
        let mut sum = left.last().cloned().unwrap_or_default();
        sum.merge(tally);
        left.push(sum);
    }
    left.reverse();
    let mut stages = vec![measure("all", &left[0], &left[0], lexicon, encoder)?];
    for ((name, tally), after) in removed.iter().zip(&left[1..]) {
        let stage = format!("after {name}");
        let before = stages.last().filter(|_| tally.rows == 0).cloned();
        stages.push(match before {
            Some(before) => StageAudit { stage, ..before },
            None => measure(&stage, after, &left[0], lexicon, encoder)?,
        });
    }
    Ok(stages)
}

/// Measures the rows of one tally; `all` are those that shares refer to.
///
/// **Errors**: those of the encoder.
pub fn measure(stage: &str, tally: &Tally, all: &Tally, lexicon: &Lexicon, encoder: Encoder) -> Result<StageAudit> {
    let texts: Vec<&str> = tally.sample.values().map(String::as_str).collect();
    let words: Vec<Words> = texts.iter().map(|text| Words::of(text)).collect();
    let vectors = match encoder {
        Some(encoder) => texts.par_iter().map(|text| encoder.encode(text)).collect::<Result<_>>()?,
        None => semantic::vectors(&words),
    };
    let vendi_rows = vectors.len().min(VENDI_SAMPLE);
    let per_row = |sum: u64| round(sum as f64 / tally.rows.max(1) as f64);
    let distinct_n = tally.ngrams.distinct_n();
    Ok(StageAudit {
        stage: stage.to_owned(),
        rows: tally.rows,
        mean_words: per_row(tally.words),
        mean_chars: per_row(tally.chars),
        distinct_n: distinct_n.map(round),
        ngram_diversity: round(distinct_n.iter().sum()),
        sample_rows: texts.len(),
        compression_ratio: round(lexical::compression_ratio(&texts)),
        self_repetition: round(lexical::self_repetition(&words)),
        self_bleu: round(lexical::self_bleu(&words[..words.len().min(BLEU_SAMPLE)])),
        vendi_score: round(semantic::vendi(&vectors[..vendi_rows])),
        vendi_rows,
        nearest_neighbour: round(semantic::nearest_neighbour(&vectors)),
        cluster_entropy: round(semantic::cluster_entropy(&vectors, CLUSTERS)),
        coverage: coverage(tally, all),
        representation: representation(tally, lexicon),
        vectors: encoder.map_or_else(|| "hashed words".to_owned(), |encoder| encoder.identity().name.clone()),
    })
}

fn coverage(tally: &Tally, all: &Tally) -> Coverage {
    let share = |part: usize, whole: usize| if whole == 0 { 0.0 } else { round(part as f64 / whole as f64) };
    let rows: Vec<usize> = tally.disciplines.values().copied().collect();
    Coverage {
        disciplines: rows.len(),
        disciplines_share: share(rows.len(), all.disciplines.len()),
        disciplines_entropy: evenness(&rows),
        rows_by_discipline: tally
            .disciplines
            .iter()
            .take(MAX_NAMED)
            .map(|(name, rows)| (name.clone(), *rows))
            .collect(),
        subjects: tally.subjects.len(),
        subjects_share: share(tally.subjects.len(), all.subjects.len()),
        key_concepts: tally.concepts.len(),
        key_concepts_share: share(tally.concepts.len(), all.concepts.len()),
    }
}

fn representation(tally: &Tally, lexicon: &Lexicon) -> BTreeMap<String, Representation> {
    let mut counts = tally.mentions.iter().copied().chain(std::iter::repeat((0, 0)));
    let mut groups = BTreeMap::new();
    for (group, categories) in lexicon.groups() {
        let counts: Vec<(u64, u64)> = counts.by_ref().take(categories.len()).collect();
        let total: u64 = counts.iter().map(|(_, mentions)| mentions).sum();
        let mentions: Vec<usize> = counts.iter().map(|&(_, mentions)| mentions as usize).collect();
        let categories = categories.iter().zip(&counts).map(|(category, &(rows, mentions))| {
            let share = round(mentions as f64 / total.max(1) as f64);
            (category.clone(), Mentions { rows, mentions, share })
        });
        groups.insert(group.clone(), Representation { entropy: evenness(&mentions), categories: categories.collect() });
    }
    groups
}

/// Entropy over the greatest possible; 0 for fewer than two classes.
fn evenness(counts: &[usize]) -> f64 {
    // The entropy of a single class is -0, which is added away.
    if counts.len() < 2 { 0.0 } else { round(semantic::entropy(counts) / (counts.len() as f64).ln()) + 0.0 }
}

/// Six decimals: enough to compare, and the same on every machine.
fn round(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}

#[cfg(test)]
mod audit_tests;
