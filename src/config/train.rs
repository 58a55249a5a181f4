//! `[train]`: rows to a student. Names are Hugging Face `TrainingArguments`'; defaults are the paper's where it speaks.

use std::path::PathBuf;

use clap::ValueEnum;
use glan_kernels::matmul::{BlockFormat, Precision};
use serde::{Deserialize, Serialize};

/// Stage 3.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// What is trained.
    pub method: TrainMethod,
    /// LoRA: rank of the adapters.
    pub lora_r: usize,
    /// LoRA: the adapters' part is scaled by `lora_alpha / lora_r`.
    pub lora_alpha: f64,
    /// LoRA: share of the adapters' inputs that is zeroed in training.
    pub lora_dropout: f64,
    /// LoRA: projections with an adapter, such as `["q_proj", "v_proj"]`; `["all-linear"]` is all seven of a block.
    pub lora_target_modules: Vec<String>,
    /// LoRA: scale by `lora_alpha / sqrt(lora_r)` (rsLoRA).
    pub use_rslora: bool,
    /// LoRA: train a magnitude per output beside the direction (DoRA).
    pub use_dora: bool,
    /// QLoRA: how the frozen matrices of the blocks are held.
    pub base_quantization: BaseQuantization,
    /// LoRA, QLoRA: write the student too, the adapter merged into its (for QLoRA unpacked) base.
    pub merge_adapter: bool,
    /// Where the weights start.
    pub init: TrainInit,
    /// Chat template for conversations; empty takes the model's own, else a plain one.
    pub chat_template: PathBuf,
    /// Train on the assistant's turns alone, as in the paper; off, every token of a conversation counts.
    pub assistant_only_loss: bool,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Floor of the schedule, as a fraction of the peak.
    pub min_lr_ratio: f64,
    /// Shape of the learning rate after warm-up.
    pub lr_scheduler_type: LrSchedule,
    /// Steps of linear warm-up; takes precedence over `warmup_ratio` when above 0.
    pub warmup_steps: usize,
    /// Share of all steps for linear warm-up.
    pub warmup_ratio: f64,
    /// `warmup_stable_decay`: steps of the decay at the end; 0 is a tenth of all steps.
    pub num_decay_steps: usize,
    /// Passes over the rows.
    pub num_train_epochs: f64,
    /// Ends after this many steps; 0 is off.
    pub max_steps: usize,
    /// Conversations per optimizer step; with `packing`, packed rows.
    pub train_batch_size: usize,
    /// Fill rows of `max_length` tokens with conversations (best fit decreasing), which do not see one another.
    pub packing: bool,
    /// Put conversations of similar length into the same batch.
    pub group_by_length: bool,
    /// Most tokens that are held in memory at once; a batch is cut into as many micro-batches as that needs. Does not
    /// change the result beyond rounding: the loss is averaged over the trained tokens of the whole batch.
    pub max_tokens_per_micro_batch: usize,
    /// Longest conversation in tokens; longer ones are cut at the end. 0 takes the model's context.
    pub max_length: usize,
    /// What products multiply: f32, or bf16 with f32 sums, master weights and optimizer state.
    pub precision: TrainPrecision,
    /// Memory for activations: keep all, or the inputs of some blocks alone and compute the blocks again in the backward.
    pub activation_checkpointing: ActivationCheckpointing,
    /// `every_n`: the input of one block in so many is kept.
    pub activation_checkpointing_n: usize,
    /// NEFTune: uniform noise on the embeddings, of this strength (5 in the paper); 0 is off.
    pub neftune_noise_alpha: f64,
    /// How the optimizer holds its two moments.
    pub optimizer: OptimizerKind,
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
    /// Prompts that the student answers at every evaluation and at the end (`samples.jsonl`); 0 is off.
    pub num_samples: usize,
    /// These prompts, as a user's turn each; empty takes the first validation rows'.
    pub sample_prompts: Vec<String>,
    /// Longest of these answers in tokens.
    pub sample_max_new_tokens: usize,
    /// Ends after so many evaluations in a row without a lower validation loss; 0 is off.
    pub early_stopping_patience: usize,
    /// Ends with the weights of the lowest validation loss instead of the last ones.
    pub load_best_model_at_end: bool,
    /// Stops when a step's loss is above so many times the running mean of those before; 0 is off.
    pub loss_spike_factor: f64,
    /// Where the curves go beside `metrics.jsonl`.
    pub report_to: ReportTo,
    /// Steps between checkpoints; 0 keeps only the final model.
    pub save_steps: usize,
    /// Checkpoints kept.
    pub save_total_limit: usize,
    /// GGUF files that are written of the student beside its directory, by their quantisation, such as `["q8_0"]`.
    pub export_gguf: Vec<String>,
    /// Largest file of the student's weights in bytes; a larger model is cut into several.
    pub max_shard_bytes: usize,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            method: TrainMethod::Full,
            lora_r: 16,
            lora_alpha: 32.0,
            lora_dropout: 0.0,
            lora_target_modules: vec!["all-linear".to_owned()],
            use_rslora: false,
            use_dora: false,
            base_quantization: BaseQuantization::Nf4,
            merge_adapter: true,
            init: TrainInit::Checkpoint,
            chat_template: PathBuf::new(),
            assistant_only_loss: true,
            learning_rate: 3e-6,
            min_lr_ratio: 0.0,
            lr_scheduler_type: LrSchedule::Cosine,
            warmup_steps: 0,
            warmup_ratio: 0.03,
            num_decay_steps: 0,
            num_train_epochs: 3.0,
            max_steps: 0,
            train_batch_size: 512,
            packing: false,
            group_by_length: false,
            max_tokens_per_micro_batch: 4096,
            max_length: 0,
            precision: TrainPrecision::F32,
            activation_checkpointing: ActivationCheckpointing::None,
            activation_checkpointing_n: 2,
            neftune_noise_alpha: 0.0,
            optimizer: OptimizerKind::Adamw,
            weight_decay: 0.0,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            max_grad_norm: 1.0,
            logging_steps: 10,
            eval_steps: 0,
            num_samples: 3,
            sample_prompts: Vec::new(),
            sample_max_new_tokens: 64,
            early_stopping_patience: 0,
            load_best_model_at_end: false,
            loss_spike_factor: 0.0,
            report_to: ReportTo::None,
            save_steps: 200,
            save_total_limit: 2,
            export_gguf: Vec::new(),
            max_shard_bytes: 5_000_000_000,
        }
    }
}

/// What is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrainMethod {
    /// Every parameter.
    Full,
    /// Low-rank adapters beside frozen weights.
    Lora,
    /// The same beside matrices that are frozen in blocks of few bits.
    QLora,
}

/// How a frozen matrix is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
pub enum BaseQuantization {
    /// bitsandbytes' 4-bit NormalFloat, in blocks of 64 values.
    #[serde(rename = "nf4")]
    Nf4,
    /// ggml's 8 bits, in blocks of 32 values.
    #[serde(rename = "q8_0")]
    #[value(name = "q8_0")]
    Q8_0,
    /// ggml's 4 bits, in blocks of 256 values.
    #[serde(rename = "q4_k")]
    #[value(name = "q4_k")]
    Q4K,
}

impl BaseQuantization {
    /// The format of the blocks.
    pub fn format(self) -> BlockFormat {
        match self {
            Self::Nf4 => BlockFormat::Nf4,
            Self::Q8_0 => BlockFormat::Q8_0,
            Self::Q4K => BlockFormat::Q4K,
        }
    }
}

/// The optimizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
pub enum OptimizerKind {
    /// AdamW, moments in f32.
    #[serde(rename = "adamw", alias = "adamw_torch")]
    Adamw,
    /// AdamW, moments in 8 bits for tensors of at least 4,096 values.
    #[serde(rename = "adamw_8bit", alias = "adamw_bnb_8bit")]
    #[value(name = "adamw_8bit")]
    Adamw8bit,
}

/// What products multiply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum TrainPrecision {
    /// f32.
    #[serde(alias = "fp32", alias = "float32")]
    F32,
    /// bf16 operands and activations; sums, master weights, gradients and optimizer state are f32.
    #[serde(alias = "bfloat16")]
    Bf16,
}

/// What of a forward pass is kept for the backward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActivationCheckpointing {
    /// Everything.
    None,
    /// The inputs of the blocks.
    Block,
    /// The input of every n-th block.
    EveryN,
}

impl TrainConfig {
    /// Blocks that are computed again from one kept input; 0 where everything is kept.
    pub fn recompute_blocks(&self) -> usize {
        match self.activation_checkpointing {
            ActivationCheckpointing::None => 0,
            ActivationCheckpointing::Block => 1,
            ActivationCheckpointing::EveryN => self.activation_checkpointing_n,
        }
    }

    /// What the model multiplies.
    pub fn precision(&self) -> Precision {
        match self.precision {
            TrainPrecision::F32 => Precision::F32,
            TrainPrecision::Bf16 => Precision::Bf16,
        }
    }
}

/// Where the curves of a run go beside its own files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReportTo {
    /// Nowhere else.
    None,
    /// Event files for TensorBoard in `tensorboard/`.
    Tensorboard,
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
    #[serde(alias = "cosine_with_min_lr")]
    Cosine,
    /// A straight line down to the floor.
    Linear,
    /// The peak throughout.
    #[serde(alias = "constant_with_warmup")]
    Constant,
    /// The peak until the last steps, then half a cosine down to the floor.
    #[serde(rename = "warmup_stable_decay")]
    WarmupStableDecay,
}
