//! Tables of rotary angles.

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

use super::{DecoderConfig, RopeScaling};

/// Cosines and sines of every position, `[max positions, D/2]` each.
///
/// **Source**: Su et al. 2021; the Llama-3 ramp after transformers' `_compute_llama3_parameters`.
pub fn tables(config: &DecoderConfig, positions: usize) -> Result<(Tensor, Tensor)> {
    let half = config.head_dim / 2;
    let frequencies: Vec<f64> = (0..half)
        .map(|i| scale(config.rope_theta.powf(-((2 * i) as f64) / config.head_dim as f64), &config.rope_scaling))
        .collect();
    let mut cos = vec![0f32; positions * half];
    let mut sin = vec![0f32; positions * half];
    cos.par_chunks_mut(half).zip(sin.par_chunks_mut(half)).enumerate().for_each(|(position, (cos, sin))| {
        for ((cos, sin), frequency) in cos.iter_mut().zip(sin).zip(&frequencies) {
            let (s, c) = (position as f64 * frequency).sin_cos();
            (*cos, *sin) = (c as f32, s as f32);
        }
    });
    let shape = (positions, half);
    Ok((Tensor::from_vec(cos, shape, &Device::Cpu)?, Tensor::from_vec(sin, shape, &Device::Cpu)?))
}

fn scale(frequency: f64, scaling: &RopeScaling) -> f64 {
    match *scaling {
        RopeScaling::None => frequency,
        RopeScaling::Linear { factor } => frequency / factor,
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            let original = original_max_position_embeddings as f64;
            let wavelength = 2.0 * std::f64::consts::PI / frequency;
            if wavelength < original / high_freq_factor {
                frequency
            } else if wavelength > original / low_freq_factor {
                frequency / factor
            } else {
                let smooth = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                (1.0 - smooth) * frequency / factor + smooth * frequency
            }
        }
    }
}
