//! Checkpoints: everything that a run needs to go on, whole or not at all.
//!
//! `checkpoint-N/` holds `model.safetensors` (what is trained: all weights, or the adapter), `optimizer.safetensors` (f32, or
//! codes of 8 bits) and `trainer_state.json` with the hashes of the two. It is written under another name and renamed when it is on disk. A checkpoint whose hashes do not
//! match is passed over for the one before, with a warning.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, Tensor};
use glan_kernels::to_vec;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize};

use super::optimizer::Optimizer;
use crate::records::{read_json, write_atomic, write_json};

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
    pub file_hashes: HashMap<String, String>,
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
        let bytes = serialise(tensors)?;
        state.file_hashes.insert((*name).to_owned(), blake3::hash(&bytes).to_hex().to_string());
        write_atomic(&partial.join(name), &bytes)?;
    }
    write_json(&partial.join("trainer_state.json"), &state)?;
    if target.exists() {
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

/// Takes up the newest whole checkpoint of this run, if there is one: its state and the trained arena.
pub fn resume(folder: &Path, optimizer: &mut Optimizer, run_hash: &str) -> Result<Option<(TrainerState, Tensor)>> {
    for (_, path) in list(folder)?.into_iter().rev() {
        match load(&path, optimizer, run_hash) {
            Ok(Some(found)) => return Ok(Some(found)),
            Ok(None) => {
                tracing::warn!("`{}` belongs to another configuration or other data; passed over", path.display());
            }
            Err(error) => tracing::warn!("`{}` is damaged, trying the one before: {error:#}", path.display()),
        }
    }
    Ok(None)
}

/// The trained arena of one checkpoint.
///
/// **Errors**: it is missing, damaged, or of another run.
pub fn load_arena(folder: &Path, step: usize, optimizer: &mut Optimizer, run_hash: &str) -> Result<Tensor> {
    let path = folder.join(format!("checkpoint-{step}"));
    match load(&path, optimizer, run_hash)? {
        Some((_, arena)) => Ok(arena),
        None => bail!("`{}` belongs to another run; expected the best checkpoint of this one", path.display()),
    }
}

/// Removes all checkpoints.
pub fn remove_all(folder: &Path) -> Result<()> {
    for (_, path) in list(folder)? {
        fs::remove_dir_all(&path).with_context(|| format!("cannot remove `{}`", path.display()))?;
    }
    Ok(())
}

fn load(path: &Path, optimizer: &mut Optimizer, run_hash: &str) -> Result<Option<(TrainerState, Tensor)>> {
    let state: TrainerState = read_json(&path.join("trainer_state.json"))?;
    if state.run_hash != run_hash {
        return Ok(None);
    }
    let read = |name: &str| -> Result<Vec<u8>> {
        let file = path.join(name);
        let bytes = fs::read(&file).with_context(|| format!("cannot read `{}`", file.display()))?;
        if state.file_hashes.get(name).map(String::as_str) != Some(blake3::hash(&bytes).to_hex().as_str()) {
            bail!("`{}` does not match its hash", file.display());
        }
        Ok(bytes)
    };
    let (weights, moments) = (read(FILES[0])?, read(FILES[1])?);
    let arena = values(&SafeTensors::deserialize(&weights)?, "arena")?;
    let moments = SafeTensors::deserialize(&moments)?;
    optimizer.restore(state.global_step, |name| values(&moments, name))?;
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

fn serialise(tensors: &[(String, Tensor)]) -> Result<Vec<u8>> {
    let bytes: Vec<(&str, Dtype, usize, Vec<u8>)> = tensors
        .iter()
        .map(|(name, tensor)| {
            let (dtype, bytes) = match tensor.dtype() {
                DType::U8 => (Dtype::U8, tensor.to_vec1()?),
                _ => (Dtype::F32, to_vec(tensor)?.iter().flat_map(|value| value.to_le_bytes()).collect()),
            };
            Ok((name.as_str(), dtype, tensor.elem_count(), bytes))
        })
        .collect::<Result<_>>()?;
    let views = bytes
        .iter()
        .map(|(name, dtype, len, bytes)| Ok((*name, TensorView::new(*dtype, vec![*len], bytes)?)))
        .collect::<Result<Vec<_>>>()?;
    Ok(safetensors::serialize(views, None)?)
}

fn values(tensors: &SafeTensors, name: &str) -> Result<Tensor> {
    let view = tensors.tensor(name)?;
    if view.dtype() == Dtype::U8 {
        return Ok(Tensor::new(view.data(), &Device::Cpu)?);
    }
    let values: Vec<f32> = view.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    Ok(Tensor::new(values, &Device::Cpu)?)
}
