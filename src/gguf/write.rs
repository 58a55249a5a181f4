//! Writes a GGUF file of version 3, tensor by tensor.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::Path,
};

use anyhow::{Context, Result, anyhow, bail};

use super::{
    blocks::TensorType,
    metadata::{Metadata, Value},
};

/// Where tensors may begin; the format's default.
const ALIGNMENT: usize = 32;

/// A tensor that is to be written.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorPlan {
    /// Its name in the file.
    pub name: String,
    /// Rows first.
    pub shape: Vec<usize>,
    /// How its values are packed.
    pub kind: TensorType,
}

impl TensorPlan {
    fn num_bytes(&self) -> Result<usize> {
        let (block_len, block_bytes) =
            self.kind.block().ok_or_else(|| anyhow!("nothing packs {}", self.kind.name()))?;
        Ok(self.shape.iter().product::<usize>() / block_len * block_bytes)
    }
}

/// Writes `path` and hands it to the disk; `data` gives the packed bytes of one tensor at a time, by its number.
///
/// **Errors**: a full disk names the file; bytes that are not as many as the plan says.
pub fn write(
    path: &Path,
    metadata: &Metadata,
    tensors: &[TensorPlan],
    mut data: impl FnMut(usize) -> Result<Vec<u8>>,
) -> Result<()> {
    let cannot_write = || format!("cannot write `{}` (is the disk full?)", path.display());
    let header = header(metadata, tensors)?;
    let mut file = BufWriter::new(File::create(path).with_context(cannot_write)?);
    file.write_all(&header).with_context(cannot_write)?;
    for (number, tensor) in tensors.iter().enumerate() {
        let bytes = data(number).with_context(|| format!("tensor `{}`", tensor.name))?;
        if bytes.len() != tensor.num_bytes()? {
            bail!("tensor `{}` has {} bytes, planned were {}", tensor.name, bytes.len(), tensor.num_bytes()?);
        }
        file.write_all(&bytes).with_context(cannot_write)?;
        file.write_all(&[0; ALIGNMENT][..padding(bytes.len())]).with_context(cannot_write)?;
    }
    let file = file.into_inner().map_err(|error| error.into_error()).with_context(cannot_write)?;
    file.sync_all().with_context(cannot_write)
}

/// Everything before the first tensor, padding included.
fn header(metadata: &Metadata, tensors: &[TensorPlan]) -> Result<Vec<u8>> {
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata.iter() {
        put_text(&mut out, key);
        put_value(&mut out, value).with_context(|| format!("metadata key `{key}`"))?;
    }
    let mut offset = 0;
    for tensor in tensors {
        put_text(&mut out, &tensor.name);
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        for size in tensor.shape.iter().rev() {
            out.extend((*size as u64).to_le_bytes());
        }
        out.extend(tensor.kind.id().to_le_bytes());
        out.extend((offset as u64).to_le_bytes());
        let size = tensor.num_bytes()?;
        offset += size + padding(size);
    }
    out.resize(out.len() + padding(out.len()), 0);
    Ok(out)
}

fn padding(len: usize) -> usize {
    len.next_multiple_of(ALIGNMENT) - len
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) -> Result<()> {
    let mut kind = |id: u32| out.extend(id.to_le_bytes());
    match value {
        Value::Unsigned(number) => match u32::try_from(*number) {
            Ok(number) => {
                kind(4);
                out.extend(number.to_le_bytes());
            }
            Err(_) => {
                kind(10);
                out.extend(number.to_le_bytes());
            }
        },
        Value::Signed(number) => match i32::try_from(*number) {
            Ok(number) => {
                kind(5);
                out.extend(number.to_le_bytes());
            }
            Err(_) => {
                kind(11);
                out.extend(number.to_le_bytes());
            }
        },
        Value::Float(number) => {
            kind(6);
            out.extend((*number as f32).to_le_bytes());
        }
        Value::Bool(flag) => {
            kind(7);
            out.push(u8::from(*flag));
        }
        Value::Text(text) => {
            kind(8);
            put_text(out, text);
        }
        Value::Texts(texts) => {
            put_array(out, 8, texts.len());
            texts.iter().for_each(|text| put_text(out, text));
        }
        Value::Integers(numbers) => {
            put_array(out, 5, numbers.len());
            for number in numbers {
                out.extend(i32::try_from(*number).context("an array holds a number beyond i32")?.to_le_bytes());
            }
        }
        Value::Floats(numbers) => {
            put_array(out, 6, numbers.len());
            numbers.iter().for_each(|number| out.extend((*number as f32).to_le_bytes()));
        }
    }
    Ok(())
}

fn put_array(out: &mut Vec<u8>, element: u32, len: usize) {
    out.extend(9u32.to_le_bytes());
    out.extend(element.to_le_bytes());
    out.extend((len as u64).to_le_bytes());
}
