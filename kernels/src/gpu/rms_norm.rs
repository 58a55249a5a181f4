//! Launches of `rms_norm`: rows, with the addition of a residual on the way in, and their gradients.

use candle_core::Result;

use super::{Array, Float, Launch, SCRATCH, check_len, launch, rows_of, threads_for, values_at_once};

/// Blocks that share the rows of the backward; fixed, so that the order of summation is the same on every device.
const BACKWARD_BLOCKS: usize = 256;

/// Normalises rows: `y = rms_norm(x) · w`; with a residual `(residual, sum)`, `sum = x + residual` is written and normalised.
///
/// **Shapes**: `x`, `residual`, `sum`, `y [N, C]` (`y` and `sum` may be `x`), `w [C]`, `rstd [N]`, kept for the backward where it is wanted.
pub fn forward<F: Float>(
    y: &Array<F>,
    rstd: Option<&Array<f32>>,
    x: &Array<F>,
    residual: Option<(&Array<F>, &Array<F>)>,
    w: &Array<F>,
    eps: f32,
) -> Result<()> {
    let width = w.len();
    let rows = rows_of("rms_norm", x, width)?;
    check_len("rms_norm: y", y, x.len())?;
    let (added, sum) = residual.unwrap_or((x, x));
    check_len("rms_norm: residual", added, x.len())?;
    check_len("rms_norm: sum", sum, x.len())?;
    if let Some(rstd) = rstd {
        check_len("rms_norm: rstd", rstd, rows)?;
    }
    let keep = rstd.map_or_else(|| x.into(), super::Arg::from);
    let at_once = values_at_once(width, &[y, sum, x, added, w]);
    let launched = Launch {
        module: "rms_norm",
        kernel: F::kernel("rms_norm_f32", "rms_norm_bf16"),
        blocks: [rows, 1, 1],
        threads: threads_for(width, at_once, 512),
        shared_bytes: SCRATCH * size_of::<f32>(),
        args: &[
            y.into(),
            sum.into(),
            keep,
            x.into(),
            added.into(),
            w.into(),
            width.into(),
            eps.into(),
            residual.is_some().into(),
            rstd.is_some().into(),
        ],
    };
    // SAFETY: the arrays have the rows and columns that the kernel is told.
    unsafe { launch(x.gpu(), launched) }
}

/// What [`backward`] reads.
#[derive(Debug, Clone, Copy)]
pub struct Given<'a, F> {
    /// `[N, C]`
    pub dy: &'a Array<F>,
    /// The rows that were normalised, `[N, C]`.
    pub x: &'a Array<F>,
    /// `[C]`
    pub w: &'a Array<F>,
    /// `[N]`
    pub rstd: &'a Array<f32>,
    /// Added to `dx`, `[N, C]`.
    pub residual: Option<&'a Array<F>>,
}

/// Gradients: `dx [N, C]` is written (it may be `dy` or the residual), `dw [C]` is added to.
pub fn backward<F: Float>(dx: &Array<F>, dw: &Array<f32>, given: Given<F>) -> Result<()> {
    let Given { dy, x, w, rstd, residual } = given;
    let width = w.len();
    let rows = rows_of("rms_norm", x, width)?;
    check_len("rms_norm: dx", dx, x.len())?;
    check_len("rms_norm: dy", dy, x.len())?;
    check_len("rms_norm: rstd", rstd, rows)?;
    check_len("rms_norm: dw", dw, width)?;
    let added = residual.unwrap_or(x);
    check_len("rms_norm: residual", added, x.len())?;
    let blocks = rows.min(BACKWARD_BLOCKS);
    let partial = Array::<f32>::uninit(x.gpu(), blocks * width)?;
    let at_once = values_at_once(width, &[dx, dy, x, w, added]);
    let rows_launch = Launch {
        module: "rms_norm",
        kernel: F::kernel("rms_norm_backward_f32", "rms_norm_backward_bf16"),
        blocks: [blocks, 1, 1],
        threads: threads_for(width, at_once, 512),
        shared_bytes: (SCRATCH + width) * size_of::<f32>(),
        args: &[
            dx.into(),
            (&partial).into(),
            dy.into(),
            x.into(),
            w.into(),
            rstd.into(),
            added.into(),
            rows.into(),
            width.into(),
            residual.is_some().into(),
        ],
    };
    let sums_launch = Launch {
        module: "rms_norm",
        kernel: "rms_norm_add_partials",
        blocks: [width.div_ceil(256), 1, 1],
        threads: 256,
        shared_bytes: 0,
        args: &[dw.into(), (&partial).into(), blocks.into(), width.into()],
    };
    // SAFETY: the arrays have the rows and columns that the kernels are told.
    unsafe {
        launch(x.gpu(), rows_launch)?;
        launch(x.gpu(), sums_launch)
    }
}
