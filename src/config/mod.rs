//! The configuration: one TOML file per run, one struct, every key checked once.
//!
//! A key that does not exist is an error that names the nearest one that does. `--set table.key=value` overrides any
//! key. The resolved configuration (every default filled in) is saved in the run directory and can be fed back.
//!
//! Each table has its own file here. The keys that exist are read off the TOML of [`Config::default`], so every key
//! must have a default that TOML can write: no `Option` fields, but 0, -1 or an empty string with a documented meaning.

mod code;
mod curate;
mod engine;
mod evaluate;
mod generate;
mod improve;
mod judge;
mod keys;
mod load;
mod report;
mod thresholds;
mod train;
mod validate;

use serde::{Deserialize, Serialize};

pub use self::{
    code::{CodeConfig, SandboxLayer},
    curate::CurateConfig,
    engine::EngineConfig,
    evaluate::EvaluateConfig,
    generate::{Balance, BuildTaxonomyConfig, GenerateConfig, SamplingConfig, VaryConfig},
    improve::ImproveConfig,
    judge::JudgeConfig,
    load::load,
    report::ReportConfig,
    thresholds::{COLUMNS, Threshold},
    train::{
        ActivationCheckpointing, BaseQuantization, LrSchedule, OptimizerKind, ReportTo, TrainConfig, TrainInit,
        TrainMethod, TrainPrecision,
    },
};
use crate::device::DeviceKind;

/// Everything a run depends on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Root of every random choice of the run.
    pub seed: u64,
    /// Where tensors live.
    pub device: DeviceKind,
    /// The model that writes the data.
    pub teacher: ModelConfig,
    /// The model that answers the questions, where it is another one (in the paper GPT-3.5, where GPT-4 asks); without a
    /// `model` the teacher answers.
    pub answerer: ModelConfig,
    /// The model that scores the pairs, from 1 to 10; without a `model` they have no score.
    pub judge: ModelConfig,
    /// The model that learns from it.
    pub student: ModelConfig,
    /// Batched inference.
    pub engine: EngineConfig,
    /// Stage 1: taxonomy to question-answer pairs.
    pub generate: GenerateConfig,
    /// Stage 2: pairs to training rows.
    pub curate: CurateConfig,
    /// Stage 3: rows to a student.
    pub train: TrainConfig,
    /// Stage 4: base and student on the same items.
    pub evaluate: EvaluateConfig,
    /// The closed loop: what is weak, and how much more of it is made.
    pub improve: ImproveConfig,
    /// Stage 5: the page that people read.
    pub report: ReportConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            seed: 0,
            device: DeviceKind::Auto,
            teacher: ModelConfig::default(),
            answerer: ModelConfig::default(),
            judge: ModelConfig::default(),
            student: ModelConfig::default(),
            engine: EngineConfig::default(),
            generate: GenerateConfig::default(),
            curate: CurateConfig::default(),
            train: TrainConfig::default(),
            evaluate: EvaluateConfig::default(),
            improve: ImproveConfig::default(),
            report: ReportConfig::default(),
        }
    }
}

impl Config {
    /// The configuration as TOML, every default filled in; [`load`] reads it back to an equal value.
    ///
    /// **Errors**: a seed above 2^63 - 1 does not fit TOML's integers; [`load`] lets none through.
    pub fn to_toml(&self) -> anyhow::Result<String> {
        toml::to_string(self).map_err(|error| anyhow::anyhow!("the configuration does not fit TOML: {error}"))
    }

    /// The configuration as a TOML table.
    pub fn to_table(&self) -> anyhow::Result<toml::Table> {
        // Through text, because a direct conversion widens f32 values to digits that nobody wrote.
        toml::from_str(&self.to_toml()?).map_err(|error| anyhow::anyhow!("the configuration does not parse: {error}"))
    }

    /// Every dotted key with its value, in order.
    pub fn entries(&self) -> anyhow::Result<Vec<(String, toml::Value)>> {
        Ok(keys::flatten(&self.to_table()?))
    }
}

/// Which model, and how its weights are held.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelConfig {
    /// A directory, or `org/name` in the Hugging Face cache; with an `endpoint` the name that it knows the model by.
    pub model: String,
    /// Base address of an OpenAI-compatible service, such as `http://127.0.0.1:8000/v1`, that stage 1 asks in place of a model
    /// on this machine; its key is read from the environment variable `OPENAI_API_KEY`. Empty: no network.
    pub endpoint: String,
    /// Type of the weights; `auto` is f32 on the CPU and bf16 on a GPU.
    pub dtype: crate::device::DtypeChoice,
    /// Longest sequence in tokens; 0 takes the model's own limit.
    pub max_model_len: usize,
}
