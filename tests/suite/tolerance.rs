//! How close is close enough, with the reasons. NaN never passes.

/// Logits against transformers in f32: sums of a few hundred products in another order; the fixtures' own f32-to-f64
/// difference is up to 2.6e-5 at values of up to 8.
pub const LOGITS: f32 = 1e-4;

/// Gradients against PyTorch, relative L2 norm: f32 against f64 differ by up to 3.2e-6 there.
pub const GRADIENT: f64 = 1e-4;

/// Logits in bf16 against f32, relative L2 norm: operands are rounded to 8 bits (an error of up to 2^-9 each, 2^-10 on
/// average), and a few layers of such products add up.
pub const BF16_LOGITS: f64 = 2e-2;

/// The same on a GPU, where activations and the cache are rounded to bf16 too, after every operation.
pub const GPU_BF16_LOGITS: f64 = 4e-2;

/// Losses of ten bf16 training steps, relative: PyTorch's own in bf16 lie up to 0.9 % from its f32 ones there, and so may
/// ours, on the other side.
pub const BF16_LOSS: f64 = 2e-2;

/// Losses of ten steps with moments in 8 bits, relative: a moment is off by up to 7 % (half the gap between two codes at
/// the lower end of a decade), an update likewise, and the updates of ten steps add up.
pub const MOMENTS_8BIT_LOSS: f64 = 2e-2;

/// Every element within `tolerance`.
pub fn close(what: &str, got: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!((got - expected).abs() <= tolerance, "{what}: element {i} is {got}, expected {expected}");
    }
}

/// Relative L2 norm of the difference within `tolerance`, and no element off by more than 1 % of the largest.
pub fn close_relative(what: &str, got: &[f32], expected: &[f32], tolerance: f64) {
    close_norm(what, got, expected, tolerance);
    let largest = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    for (got, expected) in got.iter().zip(expected) {
        assert!((got - expected).abs() <= 0.01 * largest, "{what}: {got} against {expected}");
    }
}

/// Relative L2 norm of the difference within `tolerance`.
pub fn close_norm(what: &str, got: &[f32], expected: &[f32], tolerance: f64) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let scale = norm(&mut expected.iter().map(|value| f64::from(*value)));
    let error = norm(&mut got.iter().zip(expected).map(|(a, b)| f64::from(a - b)));
    assert!(error <= tolerance * scale, "{what}: relative error {}", error / scale);
}
