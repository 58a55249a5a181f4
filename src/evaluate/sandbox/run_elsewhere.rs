//! Where there is no sandbox: every program is refused.

use std::path::Path;

use anyhow::{Result, bail};
use clap::Args;
use serde_json::Value;

use super::{Layer, Outcome};
use crate::config::CodeConfig;

const REASON: &str = "the code sandbox needs Linux; run code benchmarks there";

/// Arguments of the hidden subcommand `sandbox-child`.
#[derive(Debug, Clone, Args)]
pub struct ChildArgs {
    stage: String,
    setup: String,
}

/// Refuses; there is nothing to set up.
pub fn child_main(_args: &ChildArgs) -> u8 {
    125
}

/// Cannot be opened here.
#[derive(Debug, Clone)]
pub struct Sandbox {
    nothing: std::convert::Infallible,
}

impl Sandbox {
    /// **Errors**: always.
    pub fn open(_config: &CodeConfig, _launcher: &Path) -> Result<Self> {
        bail!(REASON)
    }

    /// The interpreter, the limits and the layers.
    pub fn description(&self) -> Value {
        match self.nothing {}
    }

    /// The layers that stand.
    pub fn layers(&self) -> &[Layer] {
        match self.nothing {}
    }

    /// The same without a layer.
    #[must_use]
    pub fn without(&self, _layer: Layer) -> Self {
        match self.nothing {}
    }

    /// Runs a program.
    pub fn run(&self, _program: &str) -> Result<Outcome> {
        match self.nothing {}
    }

    /// Runs many programs.
    pub fn run_all(&self, _programs: &[String]) -> Result<Vec<Outcome>> {
        match self.nothing {}
    }
}

/// Every layer.
pub fn missing_layers(_launcher: &Path) -> Result<Vec<(Layer, String)>> {
    Ok(Layer::ALL.map(|layer| (layer, REASON.to_owned())).into())
}
