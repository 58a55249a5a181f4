//! Arenas on disk: safetensors files that are written and read piece by piece.
//!
//! An arena may be half of what the machine has. Nothing here holds a second one: values go through a small buffer, and
//! the hash that tells a whole file from a damaged one is taken on the way.

use std::{
    fs::File,
    io::{BufReader, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use candle_core::{Device, Tensor};
use safetensors::{Dtype, tensor::Metadata};
use serde_json::Map;

use crate::model::{Entry, write_tensors};

/// Values that are converted at a time.
const PIECE: usize = 1 << 18;

/// Writes flat tensors, f32 or bytes, under their names; returns the file's BLAKE3 hash.
pub fn write(path: &Path, tensors: &[(String, Tensor)]) -> Result<String> {
    let lengths: Vec<[usize; 1]> = tensors.iter().map(|(_, tensor)| [tensor.elem_count()]).collect();
    let entries: Vec<Entry> = tensors
        .iter()
        .zip(&lengths)
        .map(|((name, tensor), shape)| Entry { name, shape, values: tensor.clone() })
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

/// A whole file, its header read.
pub struct ArenaFile {
    path: PathBuf,
    metadata: Metadata,
    /// Where the tensors' bytes begin.
    start: u64,
}

impl ArenaFile {
    /// Opens a file if it has this hash.
    ///
    /// **Errors**: a file that is missing, damaged, or no safetensors file.
    pub fn open(path: &Path, hash: Option<&str>) -> Result<Self> {
        check(path, hash)?;
        let mut file = open(path)?;
        let mut size = [0; 8];
        file.read_exact(&mut size)?;
        let mut header = Vec::new();
        // Read as far as it goes: a length that is wrong must not be allocated.
        file.take(u64::from_le_bytes(size)).read_to_end(&mut header)?;
        // Not with `SafeTensors::read_metadata`, which wants the data behind the header too.
        let metadata = serde_json::from_slice(&header)
            .with_context(|| format!("`{}` is not a safetensors file", path.display()))?;
        Ok(Self { path: path.to_owned(), metadata, start: 8 + header.len() as u64 })
    }

    /// The flat tensor of this name, f32 or bytes.
    ///
    /// **Errors**: there is none, or it is of another type.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let place = self.path.display();
        let Some(info) = self.metadata.info(name) else { bail!("`{place}` has no tensor `{name}`") };
        let [len] = info.shape[..] else {
            bail!("`{name}` in `{place}` has the shape {:?}, expected one number", info.shape)
        };
        let mut file = BufReader::with_capacity(1 << 20, open(&self.path)?);
        file.seek(SeekFrom::Start(self.start + info.data_offsets.0 as u64))?;
        let unreadable = || format!("cannot read `{place}`");
        match info.dtype {
            Dtype::U8 => {
                let mut bytes = vec![0; len];
                file.read_exact(&mut bytes).with_context(unreadable)?;
                Ok(Tensor::from_vec(bytes, len, &Device::Cpu)?)
            }
            Dtype::F32 => {
                let mut values: Vec<f32> = Vec::with_capacity(len);
                let mut bytes = vec![0; 4 * PIECE];
                while values.len() < len {
                    let piece = &mut bytes[..4 * PIECE.min(len - values.len())];
                    file.read_exact(piece).with_context(unreadable)?;
                    values.extend(piece.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)));
                }
                Ok(Tensor::from_vec(values, len, &Device::Cpu)?)
            }
            other => bail!("`{name}` in `{place}` is {other:?}, expected F32 or U8"),
        }
    }
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
        let codes = Tensor::from_iter((0..7u8).map(|code| 3 * code), &Device::Cpu)?;
        let tensors = [("first", arena(0.1)?), ("codes", codes), ("second", arena(-0.3)?)];
        let tensors = tensors.map(|(name, tensor)| (name.to_owned(), tensor));
        let hash = write(&path, &tensors)?;
        let bytes = std::fs::read(&path)?;
        assert_eq!(hash, blake3::hash(&bytes).to_hex().as_str());
        let whole = SafeTensors::deserialize(&bytes)?;
        assert_eq!(whole.tensor("second")?.data(), bytes_of(&glan_kernels::to_vec(&tensors[2].1)?, Dtype::F32));
        assert_eq!(whole.tensor("codes")?.data(), tensors[1].1.to_vec1::<u8>()?);
        let file = ArenaFile::open(&path, Some(&hash))?;
        for (name, tensor) in tensors.iter().filter(|(name, _)| name != "codes") {
            assert_eq!(glan_kernels::to_vec(&file.tensor(name)?)?, glan_kernels::to_vec(tensor)?);
        }
        assert_eq!(file.tensor("codes")?.to_vec1::<u8>()?, tensors[1].1.to_vec1::<u8>()?);
        assert!(file.tensor("third").is_err());
        Ok(())
    }

    #[test]
    fn a_file_that_is_cut_or_has_another_bit_is_named() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("arenas.safetensors");
        let arena = Tensor::from_vec(vec![1.0f32; 100], 100, &Device::Cpu)?;
        let hash = write(&path, &[("arena".to_owned(), arena)])?;
        let whole = std::fs::read(&path)?;
        let mut flipped = whole.clone();
        flipped[200] ^= 1;
        for bytes in [&whole[..whole.len() - 1], &whole[..4], &[], &flipped] {
            std::fs::write(&path, bytes)?;
            let error = ArenaFile::open(&path, Some(&hash)).err().context("it is damaged")?.to_string();
            assert!(error.contains("arenas.safetensors") && error.contains("hash"), "{error}");
        }
        std::fs::write(&path, &whole)?;
        assert!(ArenaFile::open(&path, None).is_err());
        Ok(())
    }
}
