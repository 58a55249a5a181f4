//! `[evaluate]`: base and student on the same items.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{CodeConfig, JudgeConfig};

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
    /// With a chat template: one turn per example, as in lm-evaluation-harness; false puts all of them in one user turn.
    pub fewshot_as_multiturn: bool,
    /// Put before everything, for both models: a system turn, or plain text glued to the first word. Empty: none.
    pub system_instruction: String,
    /// What ends the thinking of models that think, such as `</think>`: an answer begins after the last of it. Empty
    /// cuts nothing.
    pub think_end_token: String,
    /// Bootstrap resamples of the paired comparison.
    pub bootstrap_iters: usize,
    /// Items of each split for the table of losses on training and test splits of benchmarks; 0 leaves it out.
    pub contamination_items: usize,
    /// How model-written programs are run.
    pub code: CodeConfig,
    /// A model that compares answers of base and student to the held-out questions (GLAN-Test).
    pub judge: JudgeConfig,
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
            fewshot_as_multiturn: true,
            system_instruction: String::new(),
            think_end_token: String::new(),
            bootstrap_iters: 10_000,
            contamination_items: 0,
            code: CodeConfig::default(),
            judge: JudgeConfig::default(),
        }
    }
}
