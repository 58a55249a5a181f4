//! Random masks and noise of training: dropout, and the uniform noise of NEFTune.
//!
//! Every number is a hash of a key, a row and a column: a row's noise depends on its own place in the batch alone, not
//! on the cut into micro-batches or the number of threads, and the backward makes the mask again instead of keeping it.
//! Source: splitmix64 (Steele et al. 2014); NEFTune, Jain et al. 2023, algorithm 1.

use candle_core::{Result, Tensor, bail};

use crate::host::{for_row_chunks, read, tensor, write};

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The random numbers of one mask: a key, and the batch row that the tensor's first row is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Noise {
    /// Names the mask: any two keys give unrelated numbers.
    pub key: u64,
    /// Rows of the batch before the tensor's first.
    pub first_row: usize,
}

impl Noise {
    /// The same rows under another key, derived from this one.
    pub fn with(self, index: u64) -> Self {
        Self { key: mix(self.key ^ mix(index.wrapping_add(GOLDEN))), ..self }
    }

    /// Uniform in [0, 1), 24 bits.
    fn uniform(self, row: usize, column: usize) -> f32 {
        let row = mix(self.key ^ mix((self.first_row + row) as u64));
        (mix(row.wrapping_add((column as u64).wrapping_mul(GOLDEN))) >> 40) as f32 / (1u64 << 24) as f32
    }
}

fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(GOLDEN);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Dropout: `x [N, C]` with each value zeroed with probability `p`, the others divided by `1 - p`. Its own backward.
pub fn dropout(x: &Tensor, p: f32, noise: Noise) -> Result<Tensor> {
    if !(0.0..1.0).contains(&p) {
        bail!("dropout: probability {p}")
    }
    let (rows, width) = x.dims2()?;
    let mut y = read(x)?.to_vec();
    let scale = 1.0 / (1.0 - p);
    for_row_chunks(&mut y, width, |first, y| {
        for (row, y) in y.chunks_exact_mut(width).enumerate() {
            for (column, value) in y.iter_mut().enumerate() {
                *value = if noise.uniform(first + row, column) < p { 0.0 } else { *value * scale };
            }
        }
    });
    tensor(y, (rows, width))
}

/// Adds uniform noise in place: row `n` of `x [N, C]` gains numbers within `± magnitudes[n]`.
pub fn add_uniform(x: &Tensor, magnitudes: &[f32], noise: Noise) -> Result<()> {
    let (rows, width) = x.dims2()?;
    if rows != magnitudes.len() {
        bail!("add_uniform: x {:?}, {} magnitudes", x.dims(), magnitudes.len())
    }
    write(x, |x| {
        for_row_chunks(x, width, |first, x| {
            for (row, x) in x.chunks_exact_mut(width).enumerate() {
                for (column, value) in x.iter_mut().enumerate() {
                    *value += (2.0 * noise.uniform(first + row, column) - 1.0) * magnitudes[first + row];
                }
            }
        });
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn dropout_keeps_the_mean_and_a_row_its_mask_wherever_the_batch_is_cut() -> Result<()> {
        let x = Tensor::ones((400, 200), DType::F32, &Device::Cpu)?;
        let noise = Noise { key: 7, first_row: 0 };
        let y = dropout(&x, 0.3, noise)?;
        let kept = y.to_vec2::<f32>()?.iter().flatten().filter(|value| **value > 0.0).count() as f64 / 80_000.0;
        // Four standard deviations of 80,000 draws.
        assert!((kept - 0.7).abs() < 0.0065, "{kept}");
        assert!((y.mean_all()?.to_scalar::<f32>()? - 1.0).abs() < 0.01);
        let tail = dropout(&x.narrow(0, 150, 250)?.contiguous()?, 0.3, Noise { first_row: 150, ..noise })?;
        assert_eq!(tail.to_vec2::<f32>()?, y.narrow(0, 150, 250)?.to_vec2::<f32>()?);
        assert_ne!(dropout(&x, 0.3, noise.with(1))?.to_vec2::<f32>()?, y.to_vec2::<f32>()?);
        assert_eq!(dropout(&x, 0.0, noise)?.to_vec2::<f32>()?, x.to_vec2::<f32>()?);
        Ok(())
    }

    #[test]
    fn uniform_noise_fills_its_range_around_nothing() -> Result<()> {
        let x = Tensor::zeros((2, 50_000), DType::F32, &Device::Cpu)?;
        add_uniform(&x, &[0.5, 0.0], Noise { key: 3, first_row: 9 })?;
        let rows = x.to_vec2::<f32>()?;
        assert!(rows[1].iter().all(|value| *value == 0.0));
        let (least, most) = rows[0].iter().fold((0f32, 0f32), |(least, most), v| (least.min(*v), most.max(*v)));
        assert!((-0.5..-0.49).contains(&least) && (0.49..=0.5).contains(&most), "{least} {most}");
        let mean = rows[0].iter().sum::<f32>() / 50_000.0;
        // Four standard deviations: 0.5 / sqrt(3 · 50,000) · 4.
        assert!(mean.abs() < 0.0052, "{mean}");
        Ok(())
    }
}
