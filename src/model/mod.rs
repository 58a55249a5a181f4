//! The decoder: one implementation for inference and training.
//!
//! Activations are packed, `[N, C]` without batch dimension or padding. Attention alone knows about sequences, through
//! its context: packed bounds (training, scoring) or the paged cache (engine). Parameters, gradients and optimizer
//! state are flat arenas of the same [`Layout`], so that a checkpoint tensor is a contiguous slice and q/k/v and gate/up
//! are fused views without copies. Forward and backward are explicit ([`layer`]); Candle's autograd is not used.

mod config;
mod decoder;
mod export;
mod gguf;
mod layer;
mod layout;
mod loader;
mod rope;
mod train_step;

pub use self::{
    config::{DecoderConfig, RopeScaling},
    decoder::{Decoder, KvCache, PagedBatch, PagedSequence},
    export::{export, write_config},
    gguf::{GgufPlan, GgufTensors, Quantization},
    layout::{Layout, NamedTensor, Weights},
    loader::load_arena,
    train_step::{Microbatch, evaluate_loss, loss_and_gradients},
};
