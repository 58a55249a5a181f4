//! `[evaluate.judge]`: a model that compares the answers of base and student.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::device::DtypeChoice;

/// The judge, and what it is shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JudgeConfig {
    /// A directory, or `org/name` in the Hugging Face cache; empty judges nothing.
    pub model: String,
    /// Type of the judge's weights; `auto` is f32 on the CPU and bf16 on a GPU.
    pub dtype: DtypeChoice,
    /// Longest sequence in tokens; 0 takes the model's own limit.
    pub max_model_len: usize,
    /// A Jinja file with `question`, `answer_1` and `answer_2`; empty takes the built-in one.
    pub template: PathBuf,
    /// 0 is greedy.
    pub temperature: f64,
    /// Most tokens of a verdict.
    pub max_tokens: usize,
    /// Most tokens of an answer that is judged.
    pub max_answer_tokens: usize,
    /// First so many test questions of every discipline; 0 takes all. The paper asks 50 of each of its 126.
    pub questions_per_discipline: usize,
}

impl Default for JudgeConfig {
    fn default() -> Self {
        Self {
            model: String::new(),
            dtype: DtypeChoice::default(),
            max_model_len: 0,
            template: PathBuf::new(),
            temperature: 0.0,
            max_tokens: 256,
            max_answer_tokens: 512,
            questions_per_discipline: 50,
        }
    }
}
