//! Reads safetensors, one file or several, into an arena; a GGUF file is [`GgufTensors`]' to read.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use candle_core::{Device, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use super::{GgufTensors, Layout, NamedTensor};
use crate::{device::DtypeChoice, gguf::is_gguf, records::read_json};

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// All parameters of a model directory or a GGUF file as one f32 arena, `[P]`.
///
/// With `DtypeChoice::Bf16` the values are rounded to bfloat16 (the arithmetic stays in f32).
///
/// **Errors**: name the file and the tensor; a truncated file, a missing tensor, another shape than `config.json` says.
pub fn load_arena(directory: &Path, layout: &Layout, dtype: DtypeChoice) -> Result<Tensor> {
    let mut values =
        if is_gguf(directory) { GgufTensors::open(directory)?.arena(layout)? } else { arena(directory, layout)? };
    if dtype == DtypeChoice::Bf16 {
        values.par_iter_mut().for_each(|value| *value = bf16::from_f32(*value).to_f32());
    }
    Ok(Tensor::from_vec(values, layout.len, &Device::Cpu)?)
}

/// The values of a directory's safetensors files.
fn arena(directory: &Path, layout: &Layout) -> Result<Vec<f32>> {
    let mut values = vec![0f32; layout.len];
    let mut missing: BTreeSet<&str> = layout.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    for path in files(directory)? {
        let file = File::open(&path).with_context(|| format!("cannot open `{}`", path.display()))?;
        // SAFETY: the file is only read; as with every memory map, nobody may cut it while the model loads.
        #[expect(unsafe_code, reason = "weights are mapped, not read twice through the page cache")]
        let bytes = unsafe { memmap2::Mmap::map(&file) }.with_context(|| format!("cannot map `{}`", path.display()))?;
        let tensors = SafeTensors::deserialize(&bytes).with_context(|| {
            format!(
                "`{}` is not a whole safetensors file ({} bytes; was a download cut short? fetch it again)",
                path.display(),
                bytes.len()
            )
        })?;
        let mut rest = values.as_mut_slice();
        let mut parts = Vec::new();
        for tensor in layout.tensors.iter() {
            let (part, tail) = rest.split_at_mut(tensor.len());
            rest = tail;
            if let Ok(view) = tensors.tensor(&tensor.name) {
                missing.remove(tensor.name.as_str());
                parts.push((tensor, part, view));
            }
        }
        parts.into_par_iter().try_for_each(|(tensor, part, view)| {
            fill(tensor, part, &view).with_context(|| format!("in `{}`", path.display()))
        })?;
    }
    if !missing.is_empty() {
        let some: Vec<&str> = missing.iter().take(3).copied().collect();
        bail!(
            "the weights of `{}` lack {} of {} tensors that its config.json asks for, such as `{}`",
            directory.display(),
            missing.len(),
            layout.tensors.len(),
            some.join("`, `")
        );
    }
    Ok(values)
}

/// The safetensors files of a model directory.
fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let index = directory.join("model.safetensors.index.json");
    if index.exists() {
        let index: Index = read_json(&index)?;
        let names: BTreeSet<String> = index.weight_map.into_values().collect();
        return Ok(names.into_iter().map(|name| directory.join(name)).collect());
    }
    let single = directory.join("model.safetensors");
    if !single.exists() {
        bail!(
            "`{}` has neither `model.safetensors` nor `model.safetensors.index.json`; expected a Hugging Face model \
             directory with safetensors weights",
            directory.display()
        );
    }
    Ok(vec![single])
}

fn fill(tensor: &NamedTensor, values: &mut [f32], view: &safetensors::tensor::TensorView) -> Result<()> {
    if view.shape() != tensor.shape {
        bail!("`{}` has shape {:?}, but config.json asks for {:?}", tensor.name, view.shape(), tensor.shape);
    }
    let bytes = view.data();
    match view.dtype() {
        Dtype::F32 => convert(bytes, values, f32::from_le_bytes),
        Dtype::BF16 => convert(bytes, values, |bytes| bf16::from_le_bytes(bytes).to_f32()),
        Dtype::F16 => convert(bytes, values, |bytes| f16::from_le_bytes(bytes).to_f32()),
        other => bail!("`{}` has type {other:?}, supported are F32, BF16 and F16", tensor.name),
    }
    Ok(())
}

fn convert<const W: usize>(bytes: &[u8], values: &mut [f32], from: impl Fn([u8; W]) -> f32) {
    for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<W>().0) {
        *value = from(*bytes);
    }
}
