//! The numeric operations of glan's decoder, forward and backward.
//!
//! One op is one file. Tensors are Candle's, used as typed device buffers: packed activations `[N, …]` without batch
//! dimension or padding, always contiguous, f32. On the CPU every op runs a fused, multi-threaded version chosen at run
//! time for the processor; the plain reference that defines the op (a few Candle lines) stands in the op's tests and is
//! their oracle, together with Candle's autograd.
//!
//! Two promises hold for every op: a row's bits depend on that row alone, never on how many rows stand beside it
//! (so batched inference is reproducible), and a sum over rows has one fixed order whatever the number of threads (so
//! training is). Shape letters: `N` rows (tokens), `C` hidden, `F` feed-forward, `H` query heads, `K` key/value heads,
//! `D` head dim, `V` vocabulary, `S` keys, `P` cache blocks, `Z` block size.

#![expect(unsafe_code, reason = "vector instructions and the gemm crate are reached through unsafe calls")]

pub mod adamw;
pub mod adamw_8bit;
pub mod attention;
pub mod bf16;
pub mod cross_entropy;
pub mod embedding;
pub mod gpu;
pub mod log_softmax;
pub mod lora;
pub mod matmul;
pub mod minhash;
pub mod noise;
pub mod rms_norm;
pub mod rope;
pub mod swiglu;

mod host;
mod simd;

pub use candle_core::{Error, Result, Tensor};
pub use host::{fill_zero, to_vec};
