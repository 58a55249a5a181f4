//! The decoder: one implementation for inference and training.
//!
//! Activations are packed, `[N, C]` without batch dimension or padding. Attention alone knows about sequences, through
//! its context: packed bounds (training, scoring) or the paged cache (engine). Parameters, gradients and optimizer
//! state are flat arenas of the same [`Layout`], so that a checkpoint tensor is a contiguous slice and q/k/v and gate/up
//! are fused views without copies. Forward and backward are explicit ([`layer`]); Candle's autograd is not used.

mod config;
mod decoder;
mod export;
mod layer;
mod layout;
mod loader;
mod lora;
mod peft;
mod rope;
mod train_step;

pub use self::{
    config::{DecoderConfig, RopeScaling},
    decoder::{Decoder, KvCache, PagedBatch, PagedSequence},
    export::{export, write_config},
    layout::{Layout, NamedTensor, Weights},
    lora::{Adapter, AdapterShape, Projection},
    peft::{adapter_base, load_adapter, save_adapter},
    train_step::{
        Microbatch, StepOptions, Trained, evaluate_adapted_loss, evaluate_loss, loss_and_gradients, train_step,
    },
};
