//! The decoder, for training ([`Decoder`]) and for inference ([`InferenceDecoder`]), on the same operations.
//!
//! Activations are packed, `[N, C]` without batch dimension or padding. Attention alone knows about sequences: by packed
//! bounds in training, through the paged cache in the engine. In training, parameters, gradients and optimizer state are
//! flat f32 arenas of the same [`Layout`], so that a checkpoint tensor is a contiguous slice and q/k/v and gate/up are
//! fused views without copies. For inference the matrices are packed once, in f32 or bf16, and never change. Forward and backward are explicit ([`layer`]); Candle's autograd is not used.

mod config;
mod decoder;
mod export;
mod gguf;
mod gpu_decoder;
mod greedy;
mod inference;
mod layer;
mod layout;
mod loader;
mod lora;
mod matrix;
mod peft;
mod rope;
mod tensor_file;
mod text_encoder;
mod train_step;

pub use self::{
    config::{DecoderConfig, RopeScaling},
    decoder::Decoder,
    export::{MAX_SHARD_BYTES, export, export_sharded, write_config},
    gguf::{GgufPlan, GgufTensors, Quantization},
    gpu_decoder::{GpuCache, GpuDecoder},
    greedy::greedy,
    inference::{InferenceDecoder, KvCache, PagedBatch, PagedSequence},
    layout::{Layout, NamedTensor, Weights},
    loader::load_arena,
    lora::{Adapter, AdapterShape, Projection},
    peft::{adapter_base, load_adapter, save_adapter},
    tensor_file::{Entry, bytes_of, for_pieces, write_tensors},
    text_encoder::BertEncoder,
    train_step::{
        Microbatch, StepOptions, Trained, evaluate_adapted_loss, evaluate_loss, loss_and_gradients, train_step,
    },
};
