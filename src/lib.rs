//! glan: taxonomy to instruction data to a fine-tuned, measured student, in one program on one workstation.
//!
//! The method is GLAN ("Synthetic Data (Almost) from Scratch", arXiv 2402.13064). Five verbs are the pipeline
//! ([`generate`], [`curate`], [`train`], [`evaluate`], [`report`]); they never import one another and meet only through
//! the files of a run directory ([`run_dir`]). Two nouns are the machinery: [`engine`] (batched inference) and [`model`]
//! (the decoder, forward and backward), on top of the `glan-kernels` crate. Everything else is ground.

pub mod chat_template;
pub mod cli;
pub mod commands;
pub mod config;
pub mod curate;
pub mod device;
pub mod engine;
pub mod error;
pub mod evaluate;
pub mod generate;
pub mod gguf;
pub mod interrupt;
pub mod language_model;
pub mod model;
pub mod model_dir;
pub mod records;
pub mod report;
pub mod requests;
pub mod row_source;
pub mod run_dir;
pub mod seed;
pub mod serve;
pub mod telemetry;
pub mod tokenizer;
pub mod train;
