//! Checkpoints: everything that a run needs to go on, whole or not at all.
//!
//! `checkpoint-N/` holds `model.safetensors` (what is trained: all weights, or the adapter), `optimizer.safetensors` (f32,
//! or codes of 8 bits) and `trainer_state.json` with the hashes of the two and of itself. It is written under another name and renamed
//! when it is on disk. A checkpoint whose hashes do not match is passed over for the one before, with a warning.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::{
    arena_file::{self, ArenaFile},
    optimizer::Optimizer,
};
use crate::records::{read_json, write_json};

/// `trainer_state.json`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct TrainerState {
    /// Optimizer steps taken.
    pub global_step: usize,
    /// Passes over the data so far.
    pub epoch: f64,
    /// Sum of the step losses since the start, for the mean.
    pub loss_sum: f64,
    /// Tokens seen.
    pub num_input_tokens_seen: usize,
    /// Tokens that are held at once: the setting, or less where the device ran out of memory.
    pub max_tokens_per_micro_batch: usize,
    /// Running mean of the step losses, for the spike rule.
    #[serde(default)]
    pub loss_average: f64,
    /// Lowest validation loss so far, and the step after which it was measured.
    #[serde(default)]
    pub best: Option<(f64, usize)>,
    /// The newest validation loss, and its step.
    #[serde(default)]
    pub last_evaluation: Option<(f64, usize)>,
    /// Evaluations since the best.
    #[serde(default)]
    pub evaluations_without_improvement: usize,
    /// Hash of configuration and data: a checkpoint of another run is never taken up.
    pub run_hash: String,
    /// Hashes of the two weight files.
    #[serde(default)]
    pub file_hashes: BTreeMap<String, String>,
    /// Hash of everything above: a digit that changed on the disk would otherwise go unseen.
    #[serde(default)]
    pub state_hash: String,
}

impl TrainerState {
    fn file_hash(&self, name: &str) -> Option<&str> {
        self.file_hashes.get(name).map(String::as_str)
    }

    /// The hash that belongs into `state_hash`.
    fn hash(&self) -> Result<String> {
        let plain = Self { state_hash: String::new(), ..self.clone() };
        Ok(blake3::hash(&serde_json::to_vec(&plain)?).to_hex().to_string())
    }
}

const FILES: [&str; 2] = ["model.safetensors", "optimizer.safetensors"];

/// Which checkpoints stay when another one is written.
#[derive(Debug, Clone, Copy)]
pub struct Keep {
    /// The newest so many.
    pub newest: usize,
    /// That of this step too.
    pub best: Option<usize>,
}

/// Writes `checkpoint-N` in `folder` and removes the oldest beyond those that are kept.
pub fn save(folder: &Path, arena: &Tensor, optimizer: &Optimizer, state: &TrainerState, keep: Keep) -> Result<()> {
    let target = folder.join(format!("checkpoint-{}", state.global_step));
    let partial = folder.join(format!(".checkpoint-{}.partial", state.global_step));
    if partial.exists() {
        fs::remove_dir_all(&partial).with_context(|| format!("cannot remove `{}`", partial.display()))?;
    }
    fs::create_dir_all(&partial).with_context(|| format!("cannot create `{}`", partial.display()))?;
    let mut state = state.clone();
    let contents = [vec![("arena".to_owned(), arena.clone())], optimizer.state()?];
    for (name, tensors) in FILES.iter().zip(&contents) {
        state.file_hashes.insert((*name).to_owned(), arena_file::write(&partial.join(name), tensors)?);
    }
    state.state_hash = state.hash()?;
    write_json(&partial.join("trainer_state.json"), &state)?;
    if target.exists() {
        // Only one that was damaged is written again.
        fs::remove_dir_all(&target).with_context(|| format!("cannot replace `{}`", target.display()))?;
    }
    fs::rename(&partial, &target).with_context(|| format!("cannot rename to `{}`", target.display()))?;
    let found = list(folder)?;
    let old = &found[..found.len().saturating_sub(keep.newest.max(1))];
    for (_, path) in old.iter().filter(|(step, _)| keep.best != Some(*step)) {
        fs::remove_dir_all(path).with_context(|| format!("cannot remove `{}`", path.display()))?;
    }
    Ok(())
}

/// Removes what a kill in the middle of [`save`] left behind.
fn remove_partial(folder: &Path) -> Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list `{}`", folder.display()))? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| name.starts_with(".checkpoint-") && name.ends_with(".partial")) {
            let path = entry.path();
            fs::remove_dir_all(&path).with_context(|| format!("cannot remove `{}`", path.display()))?;
        }
    }
    Ok(())
}

/// Takes up the newest whole checkpoint of this run, if there is one: its state and the trained arena.
///
/// With `needs_best`, one whose best checkpoint is damaged is passed over too: from further back the run makes it again.
pub fn resume(
    folder: &Path,
    optimizer: &mut Optimizer,
    run_hash: &str,
    needs_best: bool,
) -> Result<Option<(TrainerState, Tensor)>> {
    remove_partial(folder)?;
    for (step, path) in list(folder)?.into_iter().rev() {
        let best = if needs_best { check_best(folder, step) } else { Ok(()) };
        let found = best.and_then(|()| load(&path, optimizer, run_hash));
        match found {
            Ok(Some(found)) => return Ok(Some(found)),
            Ok(None) => {
                tracing::warn!("`{}` belongs to another configuration or other data; passed over", path.display());
            }
            Err(error) => tracing::warn!("`{}` is damaged, trying the one before: {error:#}", path.display()),
        }
    }
    Ok(None)
}

/// Compares the hashes of the checkpoint that was the best one when the checkpoint of `step` was written.
fn check_best(folder: &Path, step: usize) -> Result<()> {
    let path = |step: usize| folder.join(format!("checkpoint-{step}"));
    let Some((_, best)) = load_state(&path(step))?.best.filter(|(_, best)| *best != step) else { return Ok(()) };
    let check = || {
        let state = load_state(&path(best))?;
        FILES.iter().try_for_each(|name| arena_file::check(&path(best).join(name), state.file_hash(name)))
    };
    check().with_context(|| format!("the best one before it, `checkpoint-{best}`"))
}

/// The trained arena of one checkpoint.
///
/// **Errors**: it is missing, damaged, or of another run.
pub fn load_arena(folder: &Path, step: usize, optimizer: &mut Optimizer, run_hash: &str) -> Result<Tensor> {
    let path = folder.join(format!("checkpoint-{step}"));
    let found = load(&path, optimizer, run_hash).context(
        "the best checkpoint cannot be read; run the same command again: it goes on from before it and makes it anew",
    )?;
    match found {
        Some((_, arena)) => Ok(arena),
        None => bail!("`{}` belongs to another run; expected the best checkpoint of this one", path.display()),
    }
}

/// Removes all checkpoints.
pub fn remove_all(folder: &Path) -> Result<()> {
    remove_partial(folder)?;
    for (_, path) in list(folder)? {
        fs::remove_dir_all(&path).with_context(|| format!("cannot remove `{}`", path.display()))?;
    }
    Ok(())
}

fn load_state(path: &Path) -> Result<TrainerState> {
    let file = path.join("trainer_state.json");
    let state: TrainerState = read_json(&file)?;
    if state.state_hash != state.hash()? {
        bail!("`{}` does not match its hash", file.display());
    }
    Ok(state)
}

fn load(path: &Path, optimizer: &mut Optimizer, run_hash: &str) -> Result<Option<(TrainerState, Tensor)>> {
    let state = load_state(path)?;
    if state.run_hash != run_hash {
        return Ok(None);
    }
    let open = |name: &str| ArenaFile::open(&path.join(name), state.file_hash(name));
    let (weights, moments) = (open(FILES[0])?, open(FILES[1])?);
    let arena = weights.tensor("arena")?;
    optimizer.restore(state.global_step, |name| moments.tensor(name))?;
    Ok(Some((state, arena)))
}

/// Checkpoints in a folder, by step.
fn list(folder: &Path) -> Result<Vec<(usize, PathBuf)>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list `{}`", folder.display()))? {
        let entry = entry?;
        let name = entry.file_name();
        if let Some(step) = name.to_str().and_then(|name| name.strip_prefix("checkpoint-")?.parse().ok()) {
            found.push((step, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}
