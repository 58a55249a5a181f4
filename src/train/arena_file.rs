//! Arenas on disk: safetensors files that are written and read piece by piece.
//!
//! An arena may be half of what the machine has. Nothing here holds a second one: values go through a small buffer, and
//! the hash that tells a whole file from a damaged one is taken on the way.

use std::{
    fs::File,
    io::{BufReader, Read},
    path::Path,
};

use anyhow::{Context, Result, bail};
use candle_core::{Device, Tensor};
use safetensors::{Dtype, tensor::Metadata};
use serde_json::Map;

use crate::model::{Entry, write_tensors};

/// Values that are converted at a time.
const PIECE: usize = 1 << 18;

/// Writes flat f32 tensors under their names; returns the file's BLAKE3 hash.
pub fn write(path: &Path, tensors: &[(&str, &Tensor)]) -> Result<String> {
    let lengths: Vec<[usize; 1]> = tensors.iter().map(|(_, tensor)| [tensor.elem_count()]).collect();
    let entries: Vec<Entry> = tensors
        .iter()
        .zip(&lengths)
        .map(|((name, tensor), shape)| Entry { name, shape, values: (*tensor).clone() })
        .collect();
    write_tensors(path, &entries, Dtype::F32, &Map::new())
}

fn open(path: &Path) -> Result<File> {
    File::open(path).with_context(|| format!("cannot read `{}`", path.display()))
}

/// Whether a file has this BLAKE3 hash.
///
/// **Errors**: it is missing, or has another one.
pub fn check(path: &Path, hash: Option<&str>) -> Result<()> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(open(path)?).with_context(|| format!("cannot read `{}`", path.display()))?;
    if hash != Some(hasher.finalize().to_hex().as_str()) {
        bail!("`{}` does not match its hash", path.display());
    }
    Ok(())
}

/// Reads the flat f32 tensors of these names and of `len` values each, if the file has this hash.
///
/// **Errors**: a file that is missing, damaged, or of another model.
pub fn read(path: &Path, hash: Option<&str>, names: &[&str], len: usize) -> Result<Vec<Tensor>> {
    check(path, hash)?;
    let mut file = BufReader::with_capacity(1 << 20, open(path)?);
    let mut size = [0; 8];
    file.read_exact(&mut size)?;
    let mut header = Vec::new();
    // Read as far as it goes: a length that is wrong must not be allocated.
    file.by_ref().take(u64::from_le_bytes(size)).read_to_end(&mut header)?;
    // Not with `SafeTensors::read_metadata`, which wants the data behind the header too.
    let metadata: Metadata =
        serde_json::from_slice(&header).with_context(|| format!("`{}` is not a safetensors file", path.display()))?;
    let mut found = Vec::new();
    let mut at = 0;
    for name in names {
        let Some(info) = metadata.info(name) else { bail!("`{}` has no tensor `{name}`", path.display()) };
        if info.shape != [len] || info.dtype != Dtype::F32 || info.data_offsets.0 != at {
            bail!(
                "`{name}` in `{}` is {:?} {:?}, expected {len} values of F32",
                path.display(),
                info.dtype,
                info.shape
            );
        }
        at = info.data_offsets.1;
        let mut values: Vec<f32> = Vec::with_capacity(len);
        let mut bytes = vec![0; 4 * PIECE];
        while values.len() < len {
            let piece = &mut bytes[..4 * PIECE.min(len - values.len())];
            file.read_exact(piece).with_context(|| format!("cannot read `{}`", path.display()))?;
            values.extend(piece.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)));
        }
        found.push(Tensor::from_vec(values, len, &Device::Cpu)?);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use safetensors::SafeTensors;

    use super::*;
    use crate::model::bytes_of;

    #[test]
    fn arenas_come_back_to_the_bit_and_safetensors_reads_the_file() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("arenas.safetensors");
        let len = PIECE + 3;
        let arena = |scale: f32| {
            let values: Vec<f32> = (0..len).map(|i| scale * i as f32).collect();
            Tensor::from_vec(values, len, &Device::Cpu)
        };
        let (first, second) = (arena(0.1)?, arena(-0.3)?);
        let hash = write(&path, &[("first", &first), ("second", &second)])?;
        let bytes = std::fs::read(&path)?;
        assert_eq!(hash, blake3::hash(&bytes).to_hex().as_str());
        let whole = SafeTensors::deserialize(&bytes)?;
        assert_eq!(whole.tensor("second")?.data(), bytes_of(&glan_kernels::to_vec(&second)?, Dtype::F32));
        let again = read(&path, Some(&hash), &["first", "second"], len)?;
        assert_eq!(glan_kernels::to_vec(&again[0])?, glan_kernels::to_vec(&first)?);
        assert_eq!(glan_kernels::to_vec(&again[1])?, glan_kernels::to_vec(&second)?);
        for (names, len) in [(["second"], len), (["first"], len - 1), (["third"], len)] {
            assert!(read(&path, Some(&hash), &names, len).is_err(), "{names:?} {len}");
        }
        Ok(())
    }

    #[test]
    fn a_file_that_is_cut_or_has_another_bit_is_named() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("arenas.safetensors");
        let arena = Tensor::from_vec(vec![1.0f32; 100], 100, &Device::Cpu)?;
        let hash = write(&path, &[("arena", &arena)])?;
        let whole = std::fs::read(&path)?;
        let mut flipped = whole.clone();
        flipped[200] ^= 1;
        for bytes in [&whole[..whole.len() - 1], &whole[..4], &[], &flipped] {
            std::fs::write(&path, bytes)?;
            let error = read(&path, Some(&hash), &["arena"], 100).expect_err("it is damaged").to_string();
            assert!(error.contains("arenas.safetensors") && error.contains("hash"), "{error}");
        }
        std::fs::write(&path, &whole)?;
        assert!(read(&path, None, &["arena"], 100).is_err());
        Ok(())
    }
}
