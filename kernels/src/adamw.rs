//! AdamW over flat arenas, and the gradient's global norm.
//!
//! Source: Loshchilov & Hutter 2019, algorithm 2, in PyTorch's order of operations: `p -= lr·wd·p`, then
//! `p -= lr / (1 - β1ᵗ) · m / (sqrt(v / (1 - β2ᵗ)) + eps)`. Bytes: reads p, g, m, v and writes p, m, v once.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use crate::{
    host::{read, write},
    simd::{LANES, fma, simd_fn},
};

/// Values per partial sum and per task; fixed, so that the order of summation is.
const CHUNK: usize = 1 << 14;

/// Settings of one step.
#[derive(Debug, Clone, Copy)]
pub struct AdamW {
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Step number, from 1.
    pub step: usize,
    /// Gradients are multiplied by this first (1, or less when the norm is clipped).
    pub gradient_scale: f64,
}

/// Global L2 norm of a flat gradient arena, summed in f64.
pub fn norm(gradients: &Tensor) -> Result<f64> {
    let values = read(gradients)?;
    let sums: Vec<f64> = values.par_chunks(CHUNK).map(sum_of_squares).collect();
    Ok(sums.iter().sum::<f64>().sqrt())
}

simd_fn! {
    fn sum_of_squares(values: &[f32]) -> f64 {
        let _ = FMA;
        let mut lanes = [0f64; LANES];
        let (chunks, tail) = values.as_chunks::<LANES>();
        for chunk in chunks {
            for lane in 0..LANES {
                lanes[lane] += f64::from(chunk[lane]) * f64::from(chunk[lane]);
            }
        }
        lanes.iter().sum::<f64>() + tail.iter().map(|value| f64::from(*value) * f64::from(*value)).sum::<f64>()
    }
}

/// One step in place on a range of the arenas.
///
/// **Shapes**: `parameters`, `gradients`, `first` and `second` moments are all `[P]` views of four different storages.
pub fn step(parameters: &Tensor, gradients: &Tensor, first: &Tensor, second: &Tensor, with: &AdamW) -> Result<()> {
    let count = parameters.elem_count();
    if [gradients, first, second].iter().any(|tensor| tensor.elem_count() != count) {
        bail!("adamw: arenas of different lengths")
    }
    let gradients = read(gradients)?;
    write(parameters, |parameters| {
        write(first, |first| {
            write(second, |second| {
                let chunks = parameters
                    .par_chunks_mut(CHUNK)
                    .zip(gradients.par_chunks(CHUNK))
                    .zip(first.par_chunks_mut(CHUNK).zip(second.par_chunks_mut(CHUNK)));
                chunks.for_each(|((p, g), (m, v))| step_chunk(p, g, m, v, with));
                Ok(())
            })
        })
    })
}

simd_fn! {
    pub(crate) fn step_chunk(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], with: &AdamW) {
        let (beta1, beta2) = (with.beta1 as f32, with.beta2 as f32);
        let (rest1, rest2) = ((1.0 - with.beta1) as f32, (1.0 - with.beta2) as f32);
        let step = i32::try_from(with.step).unwrap_or(i32::MAX);
        let rate = (with.learning_rate / (1.0 - with.beta1.powi(step))) as f32;
        let root = (1.0 / (1.0 - with.beta2.powi(step)).sqrt()) as f32;
        let (keep, scale) = ((1.0 - with.learning_rate * with.weight_decay) as f32, with.gradient_scale as f32);
        let eps = with.eps as f32;
        for i in 0..p.len() {
            let g = g[i] * scale;
            m[i] = fma::<FMA>(beta1, m[i], rest1 * g);
            v[i] = fma::<FMA>(beta2, v[i], rest2 * g * g);
            p[i] = p[i] * keep - rate * m[i] / (v[i].sqrt() * root + eps);
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn steps_equal_the_formula_in_f64() -> Result<()> {
        let zeros = || Tensor::zeros(3, DType::F32, &Device::Cpu);
        let (p, m, v) = (Tensor::new(&[1f32, -2., 0.5], &Device::Cpu)?, zeros()?, zeros()?);
        let (mut pe, mut me, mut ve) = ([1f64, -2., 0.5], [0f64; 3], [0f64; 3]);
        for t in 1..=5 {
            let g = [0.3 * t as f64, -1e-3, 2.0 / t as f64];
            let gradients = Tensor::new(&[g[0] as f32, g[1] as f32, g[2] as f32], &Device::Cpu)?;
            let with = AdamW {
                learning_rate: 0.01,
                beta1: 0.9,
                beta2: 0.99,
                eps: 1e-8,
                weight_decay: 0.1,
                step: t,
                gradient_scale: 0.5,
            };
            step(&p, &gradients, &m, &v, &with)?;
            for i in 0..3 {
                let g = g[i] * 0.5;
                me[i] = 0.9 * me[i] + 0.1 * g;
                ve[i] = 0.99 * ve[i] + 0.01 * g * g;
                let (mh, vh) = (me[i] / (1.0 - 0.9f64.powi(t as i32)), ve[i] / (1.0 - 0.99f64.powi(t as i32)));
                pe[i] -= 0.01 * 0.1 * pe[i];
                pe[i] -= 0.01 * mh / (vh.sqrt() + 1e-8);
            }
        }
        for (got, expected) in p.to_vec1::<f32>()?.iter().zip(pe) {
            assert!((f64::from(*got) - expected).abs() < 1e-6, "{got} {expected}");
        }
        Ok(())
    }

    #[test]
    fn norm_is_the_global_l2_norm() -> Result<()> {
        let values = Tensor::randn(0f32, 1f32, 100_003, &Device::Cpu)?;
        let exact: f64 = values.to_vec1::<f32>()?.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
        assert!((norm(&values)? / exact - 1.0).abs() < 1e-12);
        Ok(())
    }
}
