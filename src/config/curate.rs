//! `[curate]`: pairs to training rows.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Stage 2.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CurateConfig {
    /// Fewest characters of a question.
    pub min_question_chars: usize,
    /// Most characters of a question.
    pub max_question_chars: usize,
    /// Fewest characters of an answer.
    pub min_answer_chars: usize,
    /// Most characters of an answer.
    pub max_answer_chars: usize,
    /// Jaccard similarity of questions (word 3-grams) from which two rows count as near-duplicates; 1 is off.
    pub near_duplicate_threshold: f64,
    /// Encoder of the BERT family (a directory or `org/name`) that finds questions of one meaning, and whose vectors the
    /// audit's semantic measures are of; empty takes none.
    pub encoder_model: String,
    /// Cosine of two questions' vectors from which on the second is dropped; 1 drops none.
    pub semantic_duplicate_threshold: f64,
    /// Compare rows against the evaluation sets and drop those that contain an item.
    pub decontaminate: bool,
    /// Words per n-gram of the decontamination index.
    pub decontaminate_ngram: usize,
    /// An answer must match this regular expression; empty asks for nothing.
    pub answer_pattern: String,
    /// Model (a directory or `org/name`) whose perplexities make the column `ifd`, best the student; empty measures none.
    pub ifd_model: String,
    /// Model that scores every answer from 1 to 10 in the column `judge_score`; empty measures none.
    pub judge_model: String,
    /// A Jinja file with `question` and `answer` that the judge is shown; empty takes the built-in one.
    pub judge_template: PathBuf,
    /// Most tokens of a judge's verdict.
    pub judge_max_tokens: usize,
    /// Conditions on the columns of `scores.jsonl`, such as `arithmetic_wrong <= 0`; rows that break one are rejected.
    pub thresholds: Vec<String>,
    /// Word lists of the audit, written as `configs/lexicons/audit.toml`; empty takes the built-in ones.
    pub lexicon: PathBuf,
    /// Most rows of one discipline, so that none outweighs the others; 0 is no limit. Which stay is drawn by the seed.
    pub max_rows_per_discipline: usize,
    /// Share of the training rows in which names and pronouns of one gender are exchanged for the other's.
    pub counterfactual_fraction: f64,
    /// Share of rows for validation.
    pub valid_fraction: f64,
    /// Share of rows for the test set.
    pub test_fraction: f64,
    /// Test rows of each discipline, of key concepts that no training row has; 0 draws `test_fraction` of the rows instead.
    pub test_per_discipline: usize,
    /// Also write `dataset/`: Parquet, Alpaca, ShareGPT, a card and the descriptions that trainers read.
    pub dataset: bool,
    /// Control experiment: shuffle the answers among the questions, so that nothing but the format can be learnt.
    pub shuffle_answers: bool,
}

impl Default for CurateConfig {
    fn default() -> Self {
        Self {
            min_question_chars: 8,
            max_question_chars: 8000,
            min_answer_chars: 1,
            max_answer_chars: 32000,
            near_duplicate_threshold: 0.8,
            encoder_model: String::new(),
            semantic_duplicate_threshold: 0.95,
            decontaminate: true,
            decontaminate_ngram: 13,
            answer_pattern: String::new(),
            ifd_model: String::new(),
            judge_model: String::new(),
            judge_template: PathBuf::new(),
            judge_max_tokens: 64,
            thresholds: Vec::new(),
            lexicon: PathBuf::new(),
            max_rows_per_discipline: 0,
            counterfactual_fraction: 0.0,
            valid_fraction: 0.02,
            test_fraction: 0.02,
            test_per_discipline: 0,
            dataset: true,
            shuffle_answers: false,
        }
    }
}
