//! Activations that are kept in bf16 between forward and backward, and their rounding.
//!
//! Rounding is to nearest, ties to even; NaN stays NaN. Bytes: 6·n to narrow or widen, 8·n to round in place.

use candle_core::{CpuStorage, Device, Result, Storage, Tensor, bail};
use half::bf16;
use rayon::prelude::*;

use crate::{
    host::{for_row_chunks, read, tensor, write},
    simd::simd_fn,
};

/// Values per task.
const CHUNK: usize = 1 << 14;

/// An f32 tensor in bf16.
pub fn narrow(x: &Tensor) -> Result<Tensor> {
    let values = read(x)?;
    let mut narrowed = vec![bf16::ZERO; values.len()];
    narrowed.par_chunks_mut(CHUNK).zip(values.par_chunks(CHUNK)).for_each(|(to, from)| narrow_chunk(from, to));
    Tensor::from_vec(narrowed, x.shape().clone(), &Device::Cpu)
}

/// A bf16 tensor in f32.
pub fn widen(x: &Tensor) -> Result<Tensor> {
    let (guard, layout) = x.storage_and_layout();
    let (Storage::Cpu(CpuStorage::BF16(values)), Some((start, end))) = (&*guard, layout.contiguous_offsets()) else {
        bail!("expected a contiguous bf16 tensor on the CPU, got {:?} of shape {:?}", x.dtype(), x.shape())
    };
    let values = &values[start..end];
    let mut widened = vec![0f32; values.len()];
    widened.par_chunks_mut(CHUNK).zip(values.par_chunks(CHUNK)).for_each(|(to, from)| widen_chunk(from, to));
    tensor(widened, x.shape().clone())
}

/// Rounds f32 values to what bf16 can hold.
pub fn round_in_place(x: &Tensor) -> Result<()> {
    write(x, |values| {
        for_row_chunks(values, 1, |_, values| round_chunk(values));
        Ok(())
    })
}

simd_fn! {
    fn narrow_chunk(from: &[f32], to: &mut [bf16]) {
        let _ = FMA;
        to.iter_mut().zip(from).for_each(|(to, from)| *to = bf16::from_bits((rounded(*from) >> 16) as u16));
    }
}

simd_fn! {
    fn widen_chunk(from: &[bf16], to: &mut [f32]) {
        let _ = FMA;
        to.iter_mut().zip(from).for_each(|(to, from)| *to = f32::from_bits(u32::from(from.to_bits()) << 16));
    }
}

simd_fn! {
    fn round_chunk(values: &mut [f32]) {
        let _ = FMA;
        values.iter_mut().for_each(|value| *value = f32::from_bits(rounded(*value) & 0xffff_0000));
    }
}

/// The bits of the nearest bf16 (ties to even) in the upper half; the lower half is rubbish. NaN stays NaN.
#[inline(always)]
pub(crate) fn rounded(value: f32) -> u32 {
    let bits = value.to_bits();
    if value.is_nan() { bits | 0x0040_0000 } else { bits.wrapping_add(0x7fff + (bits >> 16 & 1)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_that_of_the_half_crate_and_widening_brings_it_back() -> Result<()> {
        let mut values: Vec<f32> = (0..70_001u32).map(|i| f32::from_bits(i.wrapping_mul(0x9e37_79b9))).collect();
        values.extend([0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MAX, 1.003_906_3, 1.011_718_8]);
        let expected: Vec<u32> = values.iter().map(|value| bf16::from_f32(*value).to_f32().to_bits()).collect();
        let bits = |x: &Tensor| -> Result<Vec<u32>> { Ok(read(x)?.iter().map(|value| value.to_bits()).collect()) };
        let x = Tensor::from_vec(values.clone(), values.len(), &Device::Cpu)?;
        assert_eq!(bits(&widen(&narrow(&x)?)?)?, expected);
        round_in_place(&x)?;
        assert_eq!(bits(&x)?, expected);
        assert!(widen(&x).is_err());
        Ok(())
    }
}
