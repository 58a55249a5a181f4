//! Llama 3's rotary scaling as GGUF files keep it: one divisor per frequency instead of four parameters.

use super::super::RopeScaling;

/// The divisors of a scaling, `[D/2]`; `None` where no such tensor belongs into a file.
///
/// **Source**: `generate_extra_tensors` of llama.cpp's converter.
pub(super) fn divisors(scaling: &RopeScaling, theta: f64, head_dim: usize) -> Option<Vec<f32>> {
    let RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } = *scaling
    else {
        return None;
    };
    let original = original_max_position_embeddings as f64;
    let divisor = |wavelength: f64| {
        if wavelength < original / high_freq_factor {
            1.0
        } else if wavelength > original / low_freq_factor {
            factor
        } else {
            let smooth = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    };
    Some(wavelengths(theta, head_dim).map(|wavelength| divisor(wavelength) as f32).collect())
}

/// The parameters behind divisors: those of the ramp through them, checked against every one of them.
///
/// `low_freq_factor` and the original length are only known as a quotient; 1 is assumed, which is what all of the
/// family have. `None` where the divisors are no such ramp.
pub(super) fn scaling(divisors: &[f32], theta: f64, head_dim: usize) -> Option<RopeScaling> {
    if divisors.len() != head_dim / 2 {
        return None;
    }
    if divisors.iter().all(|divisor| *divisor == 1.0) {
        return Some(RopeScaling::None);
    }
    let factor = f64::from(divisors.iter().copied().fold(1f32, f32::max));
    // (1 / wavelength, smooth) of every frequency between the two ends.
    let ramp: Vec<(f64, f64)> = wavelengths(theta, head_dim)
        .zip(divisors)
        .map(|(wavelength, divisor)| {
            (1.0 / wavelength, (1.0 / f64::from(*divisor) - 1.0 / factor) / (1.0 - 1.0 / factor))
        })
        .filter(|(_, smooth)| (1e-5..1.0 - 1e-5).contains(smooth))
        .collect();
    let candidates = match (ramp.first(), ramp.last()) {
        // smooth = (original / wavelength - 1) / (high - 1): a line in 1 / wavelength.
        (Some(first), Some(last)) if ramp.len() > 1 => {
            let slope = (first.1 - last.1) / (first.0 - last.0);
            let intercept = first.1 - slope * first.0;
            let high = 1.0 - 1.0 / intercept;
            vec![(slope * (high - 1.0), high)]
        }
        (Some(only), _) => vec![((only.1 * 3.0 + 1.0) / only.0, 4.0)],
        // Nothing on the ramp: any length whose ramp lies between the two groups.
        _ => {
            let kept = |(wavelength, divisor): (f64, &f32)| (*divisor == 1.0).then_some(wavelength);
            let longest = wavelengths(theta, head_dim).zip(divisors).filter_map(kept).fold(1.0, f64::max);
            (2..64).map(|step| (longest * f64::from(step), 4.0)).collect()
        }
    };
    candidates.into_iter().find_map(|(original, high)| {
        let found = RopeScaling::Llama3 {
            factor: tidy(factor),
            low_freq_factor: 1.0,
            high_freq_factor: tidy(high),
            original_max_position_embeddings: original.round().max(1.0) as usize,
        };
        let again = self::divisors(&found, theta, head_dim)?;
        again.iter().zip(divisors).all(|(again, asked)| (again - asked).abs() <= 2e-4 * asked).then_some(found)
    })
}

/// 2π over the unscaled frequencies.
fn wavelengths(theta: f64, head_dim: usize) -> impl Iterator<Item = f64> {
    (0..head_dim / 2).map(move |i| 2.0 * std::f64::consts::PI * theta.powf((2 * i) as f64 / head_dim as f64))
}

/// A number that is a whole one but for the rounding of f32.
fn tidy(number: f64) -> f64 {
    if (number - number.round()).abs() < 1e-3 { number.round() } else { number }
}
