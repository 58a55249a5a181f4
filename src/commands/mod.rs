//! Commands beside the stages, and the pipeline that runs the stages one after another.

pub mod bench;
pub mod bench_train;
pub mod chat;
pub mod complete;
pub mod doctor;
pub mod export;
pub mod fetch;
pub mod generate;
pub mod improve;
pub mod inspect;
pub mod pipeline;
pub mod remote;
pub mod score;
pub mod selftest;
pub mod serve;
pub mod taxonomy;
