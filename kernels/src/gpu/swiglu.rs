//! Launches of `swiglu`.

use candle_core::Result;

use super::{Array, Float, Launch, check_len, launch, rows_of, threads_for, values_at_once};

/// **Shapes**: `gate_up [N, 2F]` → `y [N, F]`.
pub fn forward<F: Float>(y: &Array<F>, gate_up: &Array<F>, half: usize) -> Result<()> {
    let rows = rows_of("swiglu", gate_up, 2 * half)?;
    check_len("swiglu: y", y, rows * half)?;
    let at_once = values_at_once(half, &[y, gate_up]);
    let threads = threads_for(half, at_once, 256);
    let launched = Launch {
        module: "swiglu",
        kernel: F::kernel("swiglu_f32", "swiglu_bf16"),
        blocks: [rows, half.div_ceil(threads * at_once), 1],
        threads,
        shared_bytes: 0,
        args: &[y.into(), gate_up.into(), half.into()],
    };
    // SAFETY: the arrays have the rows and columns that the kernel is told.
    unsafe { launch(y.gpu(), launched) }
}

/// Gradient: `dy [N, F]`, `gate_up [N, 2F]` → `gradient [N, 2F]` (it may be `gate_up`).
pub fn backward<F: Float>(gradient: &Array<F>, dy: &Array<F>, gate_up: &Array<F>, half: usize) -> Result<()> {
    let rows = rows_of("swiglu", gate_up, 2 * half)?;
    check_len("swiglu: dy", dy, rows * half)?;
    check_len("swiglu: gradient", gradient, gate_up.len())?;
    let at_once = values_at_once(half, &[gradient, dy, gate_up]);
    let threads = threads_for(half, at_once, 256);
    let launched = Launch {
        module: "swiglu",
        kernel: F::kernel("swiglu_backward_f32", "swiglu_backward_bf16"),
        blocks: [rows, half.div_ceil(threads * at_once), 1],
        threads,
        shared_bytes: 0,
        args: &[gradient.into(), dy.into(), gate_up.into(), half.into()],
    };
    // SAFETY: as above.
    unsafe { launch(dy.gpu(), launched) }
}
