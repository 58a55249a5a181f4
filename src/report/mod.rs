//! Stage 5, `report`: reads artefacts, writes one self-contained HTML file.
//!
//! *Reads* whatever the other stages left. *Writes* `report.html`: no scripts, nothing loaded from elsewhere, the same
//! bytes for the same run. *Rejects* nothing: what is missing is a line that names the command which makes it. *Resumes*
//! by running again.

mod artefacts;
mod audit;
mod charts;
mod improvement;
mod page;

use std::path::PathBuf;

use anyhow::{Context, Result};
use minijinja::{AutoEscape, Environment};

use crate::{config::Config, records, run_dir::RunDir};

/// Runs the stage; returns the page's path.
///
/// **Errors**: the page cannot be written.
pub fn run(config: &Config, run_dir: &RunDir) -> Result<PathBuf> {
    let path = run_dir.root().join("report.html");
    records::write_atomic(&path, render(config, run_dir)?.as_bytes())?;
    Ok(path)
}

/// The page as HTML.
fn render(config: &Config, run_dir: &RunDir) -> Result<String> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.add_template("page", include_str!("page.html")).context("the report's template is damaged")?;
    let template = environment.get_template("page").context("the report's template is damaged")?;
    template.render(page::build(config, run_dir)).context("cannot fill the report's template")
}

#[cfg(test)]
mod tests;
