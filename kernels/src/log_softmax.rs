//! What a row of logits is asked for: its likeliest token, and the log-probability of any.
//!
//! `log softmax(x)_i = (x_i - max) - ln Σ_j e^(x_j - max)`. Two passes over the row `[V]`, exponentials in f32, their sum
//! in f64 in one fixed order (lanes, then the tail).

use crate::simd::{LANES, exp, simd_fn};

simd_fn! {
    /// Place and value of the largest logit, of equals the first; none where a logit is NaN or +inf, or the row is empty.
    ///
    /// **Shapes**: `row [V]`. -inf is a legal "never".
    pub fn largest(row: &[f32]) -> Option<(usize, f32)> {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let mut is_broken = [false; LANES];
        let (chunks, tail) = row.as_chunks::<LANES>();
        for chunk in chunks {
            for lane in 0..LANES {
                is_broken[lane] |= chunk[lane].is_nan() | (chunk[lane] == f32::INFINITY);
                lanes[lane] = if chunk[lane] > lanes[lane] { chunk[lane] } else { lanes[lane] };
            }
        }
        let max = lanes.iter().chain(tail).fold(f32::NEG_INFINITY, |max, &value| if value > max { value } else { max });
        if is_broken.iter().any(|&it| it) || tail.iter().any(|&value| value.is_nan() || value == f32::INFINITY) {
            return None;
        }
        // Whole chunks first: the place is found without looking at every value alone.
        let chunk = chunks.iter().position(|chunk| chunk.iter().fold(false, |found, &value| found | (value == max)));
        let first = chunk.unwrap_or(chunks.len()) * LANES;
        row[first..].iter().position(|&value| value == max).map(|place| (first + place, max))
    }
}

simd_fn! {
    /// `ln Σ_j e^(row_j - max)`, where `max` is the row's largest value.
    ///
    /// **Shapes**: `row [V]` without NaN.
    pub fn log_sum_exp_below(row: &[f32], max: f32) -> f64 {
        let mut lanes = [0f64; LANES];
        let (chunks, tail) = row.as_chunks::<LANES>();
        for chunk in chunks {
            for lane in 0..LANES {
                lanes[lane] += f64::from(exp::<FMA>(chunk[lane] - max));
            }
        }
        let sum: f64 = lanes.iter().sum();
        tail.iter().fold(sum, |sum, value| sum + f64::from(exp::<FMA>(value - max))).ln()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(len: usize, seed: u64) -> Vec<f32> {
        (0..len as u64)
            .map(|place| {
                let hash = (place + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15 ^ seed).rotate_left(29);
                ((hash >> 40) as f32 / 8_388_608.0 - 1.0) * 12.0
            })
            .collect()
    }

    #[test]
    fn the_largest_is_the_first_of_equals_at_every_length() {
        for len in [1, 2, 15, 16, 17, 31, 33, 100, 1003] {
            let mut row = row(len, len as u64);
            for place in (0..len).rev() {
                row[place] = 20.0;
                assert_eq!(largest(&row), Some((place, 20.0)), "{len}");
            }
        }
        assert_eq!(largest(&[]), None);
        assert_eq!(largest(&[f32::NEG_INFINITY; 40]), Some((0, f32::NEG_INFINITY)));
    }

    #[test]
    fn a_broken_value_anywhere_is_found() {
        for broken in [f32::NAN, f32::INFINITY] {
            for place in 0..37 {
                let mut row = row(37, 5);
                row[place] = broken;
                assert_eq!(largest(&row), None, "{broken} at {place}");
            }
        }
    }

    #[test]
    fn the_sum_agrees_with_f64_and_never_counts_what_cannot_be() {
        for len in [1, 7, 16, 50, 4099] {
            let mut row = row(len, 3);
            if len > 3 {
                row[2] = f32::NEG_INFINITY;
            }
            let (_, max) = largest(&row).unwrap();
            let expected: f64 = row.iter().map(|&x| (f64::from(x) - f64::from(max)).exp()).sum::<f64>().ln();
            let got = log_sum_exp_below(&row, max);
            assert!((got - expected).abs() <= 1e-6 * expected.abs().max(1.0), "{len}: {got} instead of {expected}");
        }
    }
}
