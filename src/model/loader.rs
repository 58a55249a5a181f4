//! Reads the tensors of a model: safetensors, one file or several, mapped and never read as a whole; a GGUF file is
//! [`GgufTensors`]' to read.

use std::{
    collections::BTreeSet,
    fs::File,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use candle_core::{Device, Tensor};
use half::{bf16, f16};
use memmap2::Mmap;
use rayon::prelude::*;
use safetensors::{Dtype, SafeTensors, tensor::Metadata};
use serde::Deserialize;

use super::{GgufTensors, Layout, NamedTensor};
use crate::{
    device::DtypeChoice,
    gguf::{TensorType, is_gguf},
    records::read_json,
};

/// Where a model's named tensors come from.
pub trait TensorSource: Sync {
    /// Writes rows of a tensor (slices along its first dimension), from `first_row` on, as f32.
    ///
    /// `values` is whole rows. Called from several threads, for small parts of large tensors.
    ///
    /// **Errors**: name the file and the tensor.
    fn read_rows(&self, tensor: &NamedTensor, first_row: usize, values: &mut [f32]) -> Result<()>;

    /// The blocks of a tensor as the file holds them, where it holds this type.
    fn read_blocks(&self, _tensor: &NamedTensor, _kind: TensorType) -> Result<Option<Vec<u8>>> {
        Ok(None)
    }
}

/// The safetensors files of a model directory, mapped.
pub struct Safetensors {
    files: Vec<MappedFile>,
}

struct MappedFile {
    path: PathBuf,
    bytes: Mmap,
    metadata: Metadata,
    /// Where the tensors begin, after the header.
    data: usize,
}

#[derive(Deserialize)]
struct Index {
    weight_map: std::collections::BTreeMap<String, String>,
}

impl Safetensors {
    /// Maps the files and checks that every tensor of `layout` is there with its shape.
    ///
    /// **Errors**: name the file and the tensor; a truncated file, a missing tensor, another shape than `config.json`
    /// says.
    pub fn open(directory: &Path, layout: &Layout) -> Result<Self> {
        let source = Self { files: files(directory)?.into_iter().map(map).collect::<Result<_>>()? };
        let missing: Vec<&str> = layout
            .tensors
            .iter()
            .map(|tensor| tensor.name.as_str())
            .filter(|name| source.files.iter().all(|file| file.metadata.info(name).is_none()))
            .collect();
        if !missing.is_empty() {
            bail!(
                "the weights of `{}` lack {} of {} tensors that its config.json asks for, such as `{}`",
                directory.display(),
                missing.len(),
                layout.tensors.len(),
                missing[..missing.len().min(3)].join("`, `")
            );
        }
        for tensor in layout.tensors.iter() {
            source.check(tensor)?;
        }
        Ok(source)
    }

    fn find(&self, name: &str) -> Result<(&MappedFile, &safetensors::tensor::TensorInfo)> {
        let found = self.files.iter().find_map(|file| Some((file, file.metadata.info(name)?)));
        found.with_context(|| format!("the weights have no tensor `{name}`"))
    }

    fn check(&self, tensor: &NamedTensor) -> Result<()> {
        let (file, info) = self.find(&tensor.name)?;
        if info.shape != tensor.shape {
            bail!(
                "in `{}`: `{}` has shape {:?}, but config.json asks for {:?}",
                file.path.display(),
                tensor.name,
                info.shape,
                tensor.shape
            );
        }
        if !matches!(info.dtype, Dtype::F32 | Dtype::BF16 | Dtype::F16) {
            bail!(
                "in `{}`: `{}` has type {:?}, supported are F32, BF16 and F16",
                file.path.display(),
                tensor.name,
                info.dtype
            );
        }
        Ok(())
    }
}

impl TensorSource for GgufTensors {
    fn read_rows(&self, tensor: &NamedTensor, first_row: usize, values: &mut [f32]) -> Result<()> {
        GgufTensors::read_rows(self, tensor, first_row, values)
    }

    fn read_blocks(&self, tensor: &NamedTensor, kind: TensorType) -> Result<Option<Vec<u8>>> {
        GgufTensors::read_blocks(self, tensor, kind)
    }
}

impl TensorSource for Safetensors {
    fn read_rows(&self, tensor: &NamedTensor, first_row: usize, values: &mut [f32]) -> Result<()> {
        let (file, info) = self.find(&tensor.name)?;
        let first = first_row * tensor.shape[1..].iter().product::<usize>();
        let width = if info.dtype == Dtype::F32 { 4 } else { 2 };
        let start = file.data + info.data_offsets.0 + first * width;
        let end = start + values.len() * width;
        if end > file.data + info.data_offsets.1 {
            bail!("in `{}`: rows {first_row}.. of `{}` end past the tensor", file.path.display(), tensor.name);
        }
        let bytes = &file.bytes[start..end];
        match info.dtype {
            Dtype::F32 => convert(bytes, values, f32::from_le_bytes),
            Dtype::BF16 => convert(bytes, values, |bytes| bf16::from_le_bytes(bytes).to_f32()),
            _ => convert(bytes, values, |bytes| f16::from_le_bytes(bytes).to_f32()),
        }
        Ok(())
    }
}

/// The tensors of a model directory or of a GGUF file, which all of `layout` are in.
///
/// **Errors**: name the file and the tensor; a truncated file, a missing tensor, another shape than the configuration
/// asks for.
pub fn open(model: &Path, layout: &Layout) -> Result<Box<dyn TensorSource>> {
    if is_gguf(model) {
        let tensors = GgufTensors::open(model)?;
        tensors.check(layout)?;
        return Ok(Box::new(tensors));
    }
    Ok(Box::new(Safetensors::open(model, layout)?))
}

/// All parameters of a model directory or a GGUF file as one f32 arena, `[P]`.
///
/// With `DtypeChoice::Bf16` the values are rounded to bfloat16 (the arithmetic stays in f32).
///
/// **Errors**: those of [`open`].
pub fn load_arena(model: &Path, layout: &Layout, dtype: DtypeChoice) -> Result<Tensor> {
    let arena = read_arena(open(model, layout)?.as_ref(), layout)?;
    if dtype == DtypeChoice::Bf16 {
        glan_kernels::bf16::round_in_place(&arena)?;
    }
    Ok(arena)
}

/// All tensors of `layout` out of `source`, `[P]`.
pub(super) fn read_arena(source: &dyn TensorSource, layout: &Layout) -> Result<Tensor> {
    let mut values = vec![0f32; layout.len];
    let mut rest = values.as_mut_slice();
    let mut parts = Vec::new();
    for tensor in layout.tensors.iter() {
        let (part, tail) = rest.split_at_mut(tensor.len());
        rest = tail;
        parts.push((tensor, part));
    }
    parts.into_par_iter().try_for_each(|(tensor, part)| source.read_rows(tensor, 0, part))?;
    Ok(Tensor::from_vec(values, layout.len, &Device::Cpu)?)
}

fn map(path: PathBuf) -> Result<MappedFile> {
    let file = File::open(&path).with_context(|| format!("cannot open `{}`", path.display()))?;
    // SAFETY: the file is only read; as with every memory map, nobody may cut it while the model loads.
    #[expect(unsafe_code, reason = "weights are mapped, not read twice through the page cache")]
    let bytes = unsafe { Mmap::map(&file) }.with_context(|| format!("cannot map `{}`", path.display()))?;
    let (header, metadata) = SafeTensors::read_metadata(&bytes).with_context(|| {
        format!(
            "`{}` is not a whole safetensors file ({} bytes; was a download cut short? fetch it again)",
            path.display(),
            bytes.len()
        )
    })?;
    // The header is preceded by its length in 8 bytes.
    Ok(MappedFile { path, bytes, metadata, data: 8 + header })
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

fn convert<const W: usize>(bytes: &[u8], values: &mut [f32], from: impl Fn([u8; W]) -> f32) {
    for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<W>().0) {
        *value = from(*bytes);
    }
}
