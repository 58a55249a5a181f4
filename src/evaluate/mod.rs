//! Stage 4, `evaluate`: base and student on the same items.
//!
//! *Reads* the benchmarks and two models: the student before training (plain prompts, and once more with examples)
//! and after it. *Writes* `evaluate/base/`, `evaluate/base_fewshot/`, `evaluate/tuned/` (lm-evaluation-harness's
//! layout) and `evaluate/comparison.json`. *Rejects* requests that a model cannot serve: they count as wrong answers.
//! *Resumes* at the first answer that is not on disk; a finished evaluation of the same model and items is kept.

pub mod compare;
mod data;
mod fewshot;
pub mod golden;
mod groups;
pub mod ifeval;
mod inputs;
mod metrics;
pub mod plan;
mod prefix_tree;
pub mod primer;
pub mod prompt;
mod responses;
mod results;
pub mod sandbox;
#[cfg(test)]
mod scripted;
#[cfg(test)]
mod shared_fixtures;
mod stage;
pub mod stats;
pub mod table;
pub mod task;
pub mod tasks;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

pub use self::{
    compare::{Comparison, DisciplineComparison, TaskComparison},
    stage::{check, plan_model, run, run_model},
};
use crate::{cli::StageArgs, language_model::LanguageModel};

/// Arguments of `glan evaluate`.
#[derive(Debug, Clone, Args)]
pub struct EvaluateArgs {
    /// The configuration and the run directory.
    #[command(flatten)]
    pub stage: StageArgs,
    /// Evaluate this model alone instead of a run's base and student.
    #[arg(long, value_name = "DIR", requires_all = ["tasks", "output"])]
    pub model: Option<String>,
    /// Tasks, separated by commas.
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    pub tasks: Vec<String>,
    /// Folder with the benchmarks' files.
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Where results and samples go.
    #[arg(long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// First so many items of every task.
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Examples before each question; the task's own number by default.
    #[arg(long, value_name = "N")]
    pub num_fewshot: Option<usize>,
    /// Render prompts with the model's chat template.
    #[arg(long)]
    pub apply_chat_template: bool,
    /// Compare prompts, scores and verdicts with a folder of files that lm-evaluation-harness made.
    #[arg(long, value_name = "DIR", requires = "benchmarks", conflicts_with_all = ["model", "tasks"])]
    pub check_golden: Option<PathBuf>,
    /// Folder with the benchmarks' files, for --check-golden.
    #[arg(long, value_name = "DIR", requires = "check_golden")]
    pub benchmarks: Option<PathBuf>,
}

/// Which model of a run is evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The student before training.
    Base,
    /// The student after training.
    Tuned,
}

/// The verdict of a run: accuracies as fractions.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Verdict {
    /// The headline task.
    pub task: String,
    /// Base model, no examples.
    pub base: f64,
    /// Base model with examples before each question.
    pub base_fewshot: Option<f64>,
    /// Tuned model, no examples.
    pub tuned: f64,
    /// Two-sided paired test of tuned against base.
    pub p_value: f64,
}

/// Loads one model of the run, when something is left to do.
pub type RoleLoader<'a> = dyn FnMut(Role) -> Result<Box<dyn LanguageModel>> + 'a;
