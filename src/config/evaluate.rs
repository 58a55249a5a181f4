//! `[evaluate]`: base and student on the same items.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::CodeConfig;

/// Stage 4.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvaluateConfig {
    /// Tasks by name. A task whose data is not there is skipped with a warning.
    pub tasks: Vec<String>,
    /// Folder with the benchmarks' files; `primer` and `primer_mc` are built in.
    pub data_dir: PathBuf,
    /// First so many items of every task; 0 takes all.
    pub limit: usize,
    /// Examples before each question; -1 takes the task's own number.
    pub num_fewshot: i64,
    /// Shots of the extra few-shot run of the base model, which shows that the rise is not format alone; 0 leaves it out.
    pub base_fewshot: usize,
    /// Render the student's prompts with its chat template. The base model always gets plain text.
    pub apply_chat_template: bool,
    /// Bootstrap resamples of the paired comparison.
    pub bootstrap_iters: usize,
    /// How model-written programs are run.
    pub code: CodeConfig,
}

impl Default for EvaluateConfig {
    fn default() -> Self {
        Self {
            tasks: vec!["primer".into(), "primer_mc".into()],
            data_dir: PathBuf::new(),
            limit: 0,
            num_fewshot: -1,
            base_fewshot: 3,
            apply_chat_template: true,
            bootstrap_iters: 10_000,
            code: CodeConfig::default(),
        }
    }
}
