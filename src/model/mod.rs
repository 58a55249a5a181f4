//! The decoder: one implementation for inference and training.

mod config;
mod decoder;

pub use self::{
    config::{DecoderConfig, RopeScaling},
    decoder::{Decoder, KvCache, PagedBatch, PagedSequence},
};
