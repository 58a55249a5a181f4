//! `[train]`: rows to a student. Names are Hugging Face `TrainingArguments`'; defaults are the paper's where it speaks.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Stage 3.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// What is trained.
    pub method: TrainMethod,
    /// Where the weights start.
    pub init: TrainInit,
    /// Chat template for conversations; empty takes the model's own, else a plain one.
    pub chat_template: PathBuf,
    /// Train on the assistant's turns alone, as in the paper; off, every token of a conversation counts.
    pub assistant_only_loss: bool,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Floor of the cosine schedule, as a fraction of the peak.
    pub min_lr_ratio: f64,
    /// Shape of the learning rate after warm-up.
    pub lr_scheduler_type: LrSchedule,
    /// Steps of linear warm-up; takes precedence over `warmup_ratio` when above 0.
    pub warmup_steps: usize,
    /// Share of all steps for linear warm-up.
    pub warmup_ratio: f64,
    /// Passes over the rows.
    pub num_train_epochs: f64,
    /// Ends after this many steps; 0 is off.
    pub max_steps: usize,
    /// Conversations per optimizer step.
    pub train_batch_size: usize,
    /// Most tokens that are held in memory at once; a batch is cut into as many micro-batches as that needs. Does not
    /// change the result beyond rounding: the loss is averaged over the trained tokens of the whole batch.
    pub max_tokens_per_micro_batch: usize,
    /// Longest conversation in tokens; longer ones are cut at the end. 0 takes the model's context.
    pub max_length: usize,
    /// Decoupled weight decay, on matrices only.
    pub weight_decay: f64,
    /// AdamW's first-moment decay.
    pub adam_beta1: f64,
    /// AdamW's second-moment decay.
    pub adam_beta2: f64,
    /// AdamW's epsilon.
    pub adam_epsilon: f64,
    /// Clips the gradient's global norm; 0 is off.
    pub max_grad_norm: f64,
    /// Steps between lines of `metrics.jsonl`.
    pub logging_steps: usize,
    /// Steps between validation losses; 0 measures only at the end.
    pub eval_steps: usize,
    /// Steps between checkpoints; 0 keeps only the final model.
    pub save_steps: usize,
    /// Checkpoints kept.
    pub save_total_limit: usize,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            method: TrainMethod::Full,
            init: TrainInit::Checkpoint,
            chat_template: PathBuf::new(),
            assistant_only_loss: true,
            learning_rate: 3e-6,
            min_lr_ratio: 0.0,
            lr_scheduler_type: LrSchedule::Cosine,
            warmup_steps: 0,
            warmup_ratio: 0.03,
            num_train_epochs: 3.0,
            max_steps: 0,
            train_batch_size: 512,
            max_tokens_per_micro_batch: 4096,
            max_length: 0,
            weight_decay: 0.0,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            max_grad_norm: 1.0,
            logging_steps: 10,
            eval_steps: 0,
            save_steps: 200,
            save_total_limit: 2,
        }
    }
}

/// What is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrainMethod {
    /// Every parameter.
    Full,
}

/// Where the weights start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrainInit {
    /// From the model's own weights.
    Checkpoint,
    /// From random numbers of the run's seed; the model directory needs only `config.json` and a tokenizer.
    Random,
}

/// Shape of the learning rate after warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LrSchedule {
    /// Half a cosine down to the floor.
    Cosine,
    /// A straight line down to the floor.
    Linear,
    /// The peak throughout.
    Constant,
}
