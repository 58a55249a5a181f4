//! Types of tensors: how values are packed, how far a packed value may lie from the true one.

use std::borrow::Cow;

use anyhow::{Result, anyhow, bail};
use candle_core::{
    CpuStorage, Device, Tensor,
    quantized::{GgmlDType, QTensor},
};
use half::{bf16, f16};
use rayon::prelude::*;

/// Values that one task unpacks or packs: what stays in a core's cache. A multiple of every block length.
const PIECE: usize = 1 << 14;

/// How the values of a tensor are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names are ggml's")]
pub enum TensorType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    /// A type that this program does not unpack, by ggml's number.
    Other(u32),
}

/// Type, ggml's number, ggml's name.
const TYPES: [(TensorType, u32, &str); 13] = [
    (TensorType::F32, 0, "F32"),
    (TensorType::F16, 1, "F16"),
    (TensorType::Q4_0, 2, "Q4_0"),
    (TensorType::Q4_1, 3, "Q4_1"),
    (TensorType::Q5_0, 6, "Q5_0"),
    (TensorType::Q5_1, 7, "Q5_1"),
    (TensorType::Q8_0, 8, "Q8_0"),
    (TensorType::Q2K, 10, "Q2_K"),
    (TensorType::Q3K, 11, "Q3_K"),
    (TensorType::Q4K, 12, "Q4_K"),
    (TensorType::Q5K, 13, "Q5_K"),
    (TensorType::Q6K, 14, "Q6_K"),
    (TensorType::BF16, 30, "BF16"),
];

impl TensorType {
    /// The type of ggml's number.
    pub fn from_id(id: u32) -> Self {
        TYPES.iter().find(|(_, known, _)| *known == id).map_or(Self::Other(id), |(kind, ..)| *kind)
    }

    /// ggml's number.
    pub fn id(self) -> u32 {
        match self {
            Self::Other(id) => id,
            kind => TYPES.iter().find(|(known, ..)| *known == kind).map_or(0, |(_, id, _)| *id),
        }
    }

    /// ggml's name.
    pub fn name(self) -> String {
        match TYPES.iter().find(|(known, ..)| *known == self) {
            Some((.., name)) => (*name).to_owned(),
            None => format!("type {}", self.id()),
        }
    }

    fn candle(self) -> Option<GgmlDType> {
        Some(match self {
            Self::F32 => GgmlDType::F32,
            Self::F16 => GgmlDType::F16,
            Self::BF16 => GgmlDType::BF16,
            Self::Q4_0 => GgmlDType::Q4_0,
            Self::Q4_1 => GgmlDType::Q4_1,
            Self::Q5_0 => GgmlDType::Q5_0,
            Self::Q5_1 => GgmlDType::Q5_1,
            Self::Q8_0 => GgmlDType::Q8_0,
            Self::Q2K => GgmlDType::Q2K,
            Self::Q3K => GgmlDType::Q3K,
            Self::Q4K => GgmlDType::Q4K,
            Self::Q5K => GgmlDType::Q5K,
            Self::Q6K => GgmlDType::Q6K,
            Self::Other(_) => return None,
        })
    }

    /// Values and bytes of one block; `None` for a type that is not known.
    pub fn block(self) -> Option<(usize, usize)> {
        self.candle().map(|kind| (kind.block_size(), kind.type_size()))
    }
}

/// Unpacks `bytes` into `out`.
///
/// **Errors**: a type that is not known; bytes and values that do not belong together.
pub(super) fn dequantize(kind: TensorType, bytes: &[u8], out: &mut [f32]) -> Result<()> {
    let Some((block_len, block_bytes)) = kind.block() else {
        bail!("it has {}, which is not supported; quantise the model again with another type", kind.name());
    };
    if !out.len().is_multiple_of(block_len) || out.len() / block_len * block_bytes != bytes.len() {
        bail!("{} values of {} do not fill {} bytes", out.len(), kind.name(), bytes.len());
    }
    let pieces = out.par_chunks_mut(PIECE).zip(bytes.par_chunks(PIECE / block_len * block_bytes));
    match kind {
        TensorType::F32 => pieces.for_each(|(out, bytes)| convert(bytes, out, f32::from_le_bytes)),
        TensorType::F16 => {
            pieces.for_each(|(out, bytes)| convert(bytes, out, |bytes| f16::from_le_bytes(bytes).to_f32()));
        }
        TensorType::BF16 => {
            pieces.for_each(|(out, bytes)| convert(bytes, out, |bytes| bf16::from_le_bytes(bytes).to_f32()));
        }
        kind => {
            let candle = kind.candle().ok_or_else(|| anyhow!("{} has no blocks", kind.name()))?;
            pieces.try_for_each(|(out, bytes)| -> Result<()> {
                match candle.from_data(Cow::Borrowed(bytes)).dequantize(out.len())? {
                    CpuStorage::F32(values) => out.copy_from_slice(&values),
                    _ => bail!("{} does not unpack to f32", kind.name()),
                }
                Ok(())
            })?;
        }
    }
    Ok(())
}

fn convert<const W: usize>(bytes: &[u8], values: &mut [f32], from: impl Fn([u8; W]) -> f32) {
    for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<W>().0) {
        *value = from(*bytes);
    }
}

/// Packs rows of `row_len` values.
///
/// **Errors**: a value that is not finite or, in F16, too large; rows that are no whole number of blocks.
pub fn quantize(kind: TensorType, values: &[f32], row_len: usize) -> Result<Vec<u8>> {
    let Some((block_len, block_bytes)) = kind.block() else { bail!("nothing packs {}", kind.name()) };
    if !row_len.is_multiple_of(block_len) || !values.len().is_multiple_of(row_len) {
        bail!("{} values in rows of {row_len} do not fill blocks of {block_len}", values.len());
    }
    if let Some(at) = values.par_iter().position_any(|value| !value.is_finite()) {
        bail!("value {at} is {}, which no packed type can hold", values[at]);
    }
    let mut out = vec![0; values.len() / block_len * block_bytes];
    let pieces = out.par_chunks_mut(PIECE / block_len * block_bytes).zip(values.par_chunks(PIECE));
    pieces.try_for_each(|(out, values)| -> Result<()> {
        match kind {
            TensorType::F32 => spread(values, out, f32::to_le_bytes),
            TensorType::F16 => spread(values, out, |value| f16::from_f32(value).to_le_bytes()),
            TensorType::BF16 => spread(values, out, |value| bf16::from_f32(value).to_le_bytes()),
            kind => {
                let candle = kind.candle().ok_or_else(|| anyhow!("{} has no blocks", kind.name()))?;
                let tensor = Tensor::from_slice(values, (values.len() / block_len, block_len), &Device::Cpu)?;
                let packed = if matches!(kind, TensorType::Q4K | TensorType::Q5K) {
                    // Candle's plain search for scales is a coarse one; with weights it is that of llama.cpp.
                    QTensor::quantize_imatrix(&tensor, &[1.0; 256], candle)?
                } else {
                    QTensor::quantize(&tensor, candle)?
                };
                out.copy_from_slice(&packed.data()?);
            }
        }
        Ok(())
    })?;
    let largest = values.par_iter().map(|value| value.abs()).reduce(|| 0.0, f32::max);
    if kind == TensorType::F16 && largest > f16::MAX.to_f32() {
        bail!("the value {largest} is beyond the range of F16; export as bf16 or f32");
    }
    Ok(out)
}

fn spread<const W: usize>(values: &[f32], bytes: &mut [u8], to: impl Fn(f32) -> [u8; W]) {
    for (value, bytes) in values.iter().zip(bytes.as_chunks_mut::<W>().0) {
        *bytes = to(*value);
    }
}

/// How far a value of this block may lie from what was packed.
///
/// Simple blocks (Q4_0 to Q8_0) round to a grid over the block's own range, so one step bounds them. K-quants choose
/// scales that make the *mean* error small, at the cost of the largest values, and round the scales too: three steps
/// of the super-block's range.
pub fn error_bound(kind: TensorType, block: &[f32]) -> f32 {
    let largest = block.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    let high = block.iter().fold(0f32, |high, value| high.max(*value));
    let low = block.iter().fold(0f32, |low, value| low.min(*value));
    // Scales are f16, which has 11 bits.
    let rounded = largest / 1024.0;
    match kind {
        TensorType::F32 | TensorType::Other(_) => 0.0,
        TensorType::F16 => largest / 2048.0 + 6e-8,
        TensorType::BF16 => largest / 256.0,
        TensorType::Q8_0 => largest / 254.0 + rounded,
        TensorType::Q4_0 => largest / 8.0 + rounded,
        TensorType::Q5_0 => largest / 16.0 + rounded,
        TensorType::Q4_1 => (high - low) / 15.0 + rounded,
        TensorType::Q5_1 => (high - low) / 31.0 + rounded,
        TensorType::Q2K => 3.0 * (high - low) / 3.0,
        TensorType::Q3K => 3.0 * largest / 4.0,
        TensorType::Q4K => 3.0 * (high - low) / 15.0 + rounded,
        TensorType::Q5K => 3.0 * (high - low) / 31.0 + rounded,
        TensorType::Q6K => 3.0 * largest / 32.0 + rounded,
    }
}
