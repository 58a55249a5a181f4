//! Stage 4, `evaluate`: base and student on the same items.
//!
//! *Reads* the benchmarks and two models: the student before training (plain prompts, and once more with examples)
//! and after it. *Writes* `evaluate/base/`, `evaluate/base_fewshot/`, `evaluate/tuned/` (lm-evaluation-harness's
//! layout), `evaluate/comparison.json`, and `evaluate/weak_nodes.json` with `weak_rows.jsonl`. *Rejects* requests that a model cannot serve: they count as wrong answers.
//! *Resumes* at the first answer that is not on disk; a finished evaluation of the same model and items is kept.

pub mod compare;
pub mod compare_results;
pub mod contamination;
mod data;
mod documents;
mod fewshot;
pub mod golden;
mod groups;
mod hub_data;
pub mod ifeval;
pub mod improvement;
mod inputs;
pub mod judge;
mod metrics;
pub mod paired;
pub mod plan;
mod prefix_tree;
pub mod primer;
mod programs;
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
pub mod weak;

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

pub use self::{
    compare::{Comparison, DisciplineComparison, TaskComparison},
    compare_results::{ResultsComparison, compare_results},
    improvement::{Improvement, improvement},
    stage::{check, plan_model, run, run_model},
    weak::WeakNodes,
};
use crate::{cli::StageArgs, language_model::LanguageModel};

/// Arguments of `glan evaluate`.
#[derive(Debug, Clone, Args)]
pub struct EvaluateArgs {
    /// The configuration and the run directory.
    #[command(flatten)]
    pub stage: StageArgs,
    /// Evaluate this model alone instead of a run's base and student.
    #[arg(long, value_name = "DIR", requires = "output")]
    pub model: Option<String>,
    /// Let this model compare the answers of --model and --against; --tasks names files of questions (`NAME.jsonl`).
    #[arg(long, value_name = "DIR", requires_all = ["model", "against"])]
    pub judge: Option<String>,
    /// The model that --model is compared with by --judge or --contamination.
    #[arg(long, value_name = "DIR", requires = "model")]
    pub against: Option<String>,
    /// Compare losses on training and test splits of the benchmarks under --data, of which a large difference speaks of
    /// contamination.
    #[arg(long, requires_all = ["model", "data"], conflicts_with_all = ["judge", "tasks"])]
    pub contamination: bool,
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
    /// With --apply-chat-template: one turn per example (true), or all of them in one user turn.
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set, requires = "apply_chat_template")]
    pub fewshot_as_multiturn: bool,
    /// Put before everything: a system turn, or plain text glued to the first word as in lm-evaluation-harness.
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub system_instruction: String,
    /// Answers begin after the last of these in what a model writes, such as `</think>`.
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub think_end_token: String,
    /// Compare two evaluations of the same items: results files, their folders, or run directories (their tuned models).
    #[arg(long, value_names = ["A", "B"], num_args = 2, conflicts_with_all = ["model", "tasks", "check_golden"])]
    pub compare: Vec<PathBuf>,
    /// Exit with code 4 where a task is significantly worse than before.
    #[arg(long, conflicts_with_all = ["model", "check_golden"])]
    pub fail_on_regression: bool,
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
    /// The judge of their answers.
    Judge,
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
