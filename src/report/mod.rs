//! Stage 5, `report`: reads artefacts, writes one self-contained HTML file.

use std::path::PathBuf;

use anyhow::Result;

use crate::{config::Config, run_dir::RunDir};

/// Runs the stage; returns the page's path.
pub fn run(config: &Config, run_dir: &RunDir) -> Result<PathBuf> {
    let _ = (config, run_dir);
    anyhow::bail!("not here yet")
}
