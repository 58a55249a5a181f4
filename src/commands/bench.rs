//! `glan bench`: how fast this machine is, on models of any weights.

pub mod generate;
mod process;

use anyhow::Result;
use clap::{Args, Subcommand};

/// Arguments of `glan bench`.
#[derive(Debug, Clone, Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Clone, Subcommand)]
enum What {
    /// Tokens per second of batched generation.
    Generate(generate::GenerateArgs),
    /// Tokens per second of fine-tuning on random tokens.
    Train(super::bench_train::BenchTrainArgs),
}

/// Runs the command.
pub fn main(args: &BenchArgs) -> Result<()> {
    match &args.what {
        What::Generate(args) => generate::main(args),
        What::Train(args) => super::bench_train::main(args),
    }
}
