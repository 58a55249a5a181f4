//! Writes safetensors files value by value: a file may be as large as the memory, and no second copy of it is made.

use std::{io::Write, path::Path};

use anyhow::{Context, Result, bail};
use candle_core::{DType, Tensor};
use half::{bf16, f16};
use safetensors::Dtype;
use serde_json::{Map, Value, json};

use crate::records::write_atomic_with;

/// Values that are converted at a time.
const PIECE: usize = 1 << 18;

/// A tensor of a file.
pub struct Entry<'a> {
    /// Its name there.
    pub name: &'a str,
    /// Its shape there.
    pub shape: &'a [usize],
    /// Its values on the CPU, flat: f32, or bytes, which stay bytes.
    pub values: Tensor,
}

/// Bytes of a value of a type that can be written.
pub fn bytes_per_value(dtype: Dtype) -> Result<usize> {
    match dtype {
        Dtype::F32 => Ok(4),
        Dtype::BF16 | Dtype::F16 => Ok(2),
        other => bail!("weights are written as F32, BF16 or F16, not {other:?}"),
    }
}

/// Writes tensors, those of f32 as `dtype`, in their order; returns the file's BLAKE3 hash. The file is whole or not there.
///
/// **Errors**: a full disk; a type that is not written.
pub fn write_tensors(path: &Path, entries: &[Entry], dtype: Dtype, metadata: &Map<String, Value>) -> Result<String> {
    let mut header = Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".to_owned(), Value::Object(metadata.clone()));
    }
    let mut end = 0;
    for entry in entries {
        let (name, size) = match entry.values.dtype() {
            DType::U8 => ("U8".to_owned(), 1),
            _ => (format!("{dtype:?}"), bytes_per_value(dtype)?),
        };
        let len: usize = entry.shape.iter().product();
        if entry.values.elem_count() != len {
            bail!(
                "`{}` has {} values, its shape {:?} asks for {len}",
                entry.name,
                entry.values.elem_count(),
                entry.shape
            );
        }
        let start = end;
        end += size * len;
        let described = json!({"dtype": name, "shape": entry.shape, "data_offsets": [start, end]});
        header.insert(entry.name.to_owned(), described);
    }
    let mut header = serde_json::to_vec(&header)?;
    // The format aligns the data to eight bytes.
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut hasher = blake3::Hasher::new();
    write_atomic_with(path, |file| {
        let mut put = |bytes: &[u8]| -> Result<()> {
            hasher.update(bytes);
            file.write_all(bytes).with_context(|| format!("cannot write `{}` (is the disk full?)", path.display()))
        };
        put(&(header.len() as u64).to_le_bytes())?;
        put(&header)?;
        entries.iter().try_for_each(|entry| match entry.values.dtype() {
            DType::U8 => put(&entry.values.to_vec1::<u8>()?),
            _ => for_pieces(&entry.values, |values| put(&bytes_of(values, dtype))),
        })
    })?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// Calls `body` with a flat tensor's values, piece by piece.
pub fn for_pieces(tensor: &Tensor, mut body: impl FnMut(&[f32]) -> Result<()>) -> Result<()> {
    let len = tensor.elem_count();
    for start in (0..len).step_by(PIECE) {
        body(&glan_kernels::to_vec(&tensor.narrow(0, start, PIECE.min(len - start))?)?)?;
    }
    Ok(())
}

/// Values as they stand in a file; types that are not written count as f32.
pub fn bytes_of(values: &[f32], dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::BF16 => values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
    }
}
