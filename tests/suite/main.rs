//! The one integration binary: the real executable, end to end, and the rules of the house.
//!
//! One binary, because every further one would link the whole library again.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test stops at the first surprise, and nobody imports it")]

mod adapters;
mod architecture;
mod bench;
mod chat_templates;
mod cli;
mod code_tasks;
mod curate_kill;
mod evaluate_kill;
mod fetch;
mod fetch_benchmarks;
mod generate_kill;
mod generate_paper;
mod gguf;
mod gpu;
mod grammar;
mod http;
mod improve;
mod judging;
mod lm_eval;
mod parity;
mod pipeline;
mod precision;
mod queue;
mod remote_teacher;
mod resume;
mod sandbox;
mod sandbox_controls;
mod scripted;
mod serve;
mod soak;
mod stages;
mod support;
mod taxonomy;
mod tolerance;
mod train_files;
mod training;
