//! Stage 1, `generate`: taxonomy to question-answer pairs.
//!
//! *Reads* the taxonomy and the prompts. *Writes* `generate/`. *Rejects* malformed answers, counted with a reason.
//! *Resumes* at the first record that is not on disk.

use anyhow::Result;

use crate::{config::Config, language_model::ModelLoader, run_dir::RunDir};

/// Runs the stage; the teacher is loaded only when something is left to do.
pub fn run(config: &Config, run_dir: &RunDir, load_teacher: &mut ModelLoader) -> Result<()> {
    let _ = (config, run_dir, load_teacher);
    anyhow::bail!("not here yet")
}
