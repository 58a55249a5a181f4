//! The GGUF container of llama.cpp: metadata and tensors in one file, read by memory map and written natively.
//!
//! Ground: it knows the file, not what a model or a tokenizer makes of it ([`crate::model`] and [`crate::tokenizer`]
//! do). Nothing in a file is trusted: every count is held against the bytes that are left before anything is allocated.
//! Block formats are packed and unpacked by Candle's `k_quants`, a piece at a time, so that a tensor is never held twice.
//!
//! **Source**: the GGUF specification (`docs/gguf.md` of ggml), versions 2 and 3.

mod blocks;
mod file;
mod metadata;
mod write;

pub use self::{
    blocks::{TensorType, error_bound, quantize},
    file::{GgufFile, Header, TensorInfo},
    metadata::{Metadata, Value},
    write::{TensorPlan, write},
};

/// The key of a model's chat template.
pub const CHAT_TEMPLATE: &str = "tokenizer.chat_template";

/// Whether a path names a GGUF file by its ending.
pub fn is_gguf(path: &std::path::Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

#[cfg(test)]
mod tests;
