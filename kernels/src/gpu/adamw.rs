//! Launches of `adamw` and of the gradient's norm. Nothing here waits for the device.

use candle_core::Result;
use half::bf16;

use super::{Arg, Array, Gpu, Launch, SCRATCH, check_len, launch};
use crate::adamw::AdamW;

const THREADS: usize = 256;
/// Blocks of the sum of squares; fixed, so that the order of summation is the same on every device.
const NORM_BLOCKS: usize = 1024;

/// The gradient's norm and what the gradients are to be multiplied by, on the device.
#[derive(Debug, Clone)]
pub struct Norm {
    /// `[norm, scale]`
    result: Array<f32>,
    sums: Array<f64>,
}

impl Norm {
    /// Norm 0 and scale 1.
    pub fn new(gpu: &Gpu) -> Result<Self> {
        Ok(Self { result: Array::from_slice(gpu, &[0.0, 1.0])?, sums: Array::uninit(gpu, NORM_BLOCKS)? })
    }

    /// The global L2 norm of an arena; gradients are to be scaled to a norm of `largest` where they exceed it.
    pub fn measure(&self, gradients: &Array<f32>, largest: f32) -> Result<()> {
        let (quads, rest) = quads(gradients.len());
        let blocks = quads.div_ceil(THREADS).clamp(1, NORM_BLOCKS);
        let squares = Launch {
            module: "adamw",
            kernel: "adamw_sum_of_squares",
            blocks: [blocks, 1, 1],
            threads: THREADS,
            shared_bytes: SCRATCH * size_of::<f64>(),
            args: &[(&self.sums).into(), gradients.into(), quads.into(), rest.into()],
        };
        let norm = Launch {
            module: "adamw",
            kernel: "adamw_norm",
            blocks: [1, 1, 1],
            threads: THREADS,
            shared_bytes: SCRATCH * size_of::<f64>(),
            args: &[(&self.result).into(), (&self.sums).into(), blocks.into(), largest.into()],
        };
        // SAFETY: there are as many sums as blocks, and as many gradients as the kernel is told.
        unsafe {
            launch(gradients.gpu(), squares)?;
            launch(gradients.gpu(), norm)
        }
    }

    /// The norm, once the device has measured it.
    pub fn value(&self) -> Result<f32> {
        Ok(self.result.to_vec()?[0])
    }

    /// `[1]`
    pub(super) fn scale(&self) -> Result<Array<f32>> {
        self.result.view(1..2)
    }
}

/// One step in place on arenas `[P]`; `copy` gets the new parameters in bf16. `with.gradient_scale` is not read: the scale
/// is that of `norm`.
pub fn step(
    parameters: &Array<f32>,
    copy: Option<&Array<bf16>>,
    gradients: &Array<f32>,
    (first, second): (&Array<f32>, &Array<f32>),
    norm: &Norm,
    with: &AdamW,
) -> Result<()> {
    let count = parameters.len();
    for other in [gradients, first, second] {
        check_len("adamw: arena", other, count)?;
    }
    if let Some(copy) = copy {
        check_len("adamw: copy", copy, count)?;
    }
    let (quads, rest) = quads(count);
    let most = parameters.gpu().multiprocessors() * 16;
    let mut args = vec![
        parameters.into(),
        copy.map_or_else(|| parameters.into(), Arg::from),
        first.into(),
        second.into(),
        gradients.into(),
        (&norm.scale()?).into(),
        quads.into(),
        rest.into(),
        copy.is_some().into(),
    ];
    args.extend(settings(with));
    let launched = Launch {
        module: "adamw",
        kernel: "adamw_step",
        blocks: [quads.div_ceil(THREADS).clamp(1, most), 1, 1],
        threads: THREADS,
        shared_bytes: 0,
        args: &args,
    };
    // SAFETY: all arenas have `count` values.
    unsafe { launch(parameters.gpu(), launched) }
}

/// The scalars of a step, in the kernels' order.
pub(super) fn settings(with: &AdamW) -> [Arg; 8] {
    let step = i32::try_from(with.step).unwrap_or(i32::MAX);
    let rate = with.learning_rate / (1.0 - with.beta1.powi(step));
    let root = 1.0 / (1.0 - with.beta2.powi(step)).sqrt();
    let keep = 1.0 - with.learning_rate * with.weight_decay;
    [rate, root, keep, with.beta1, with.beta2, 1.0 - with.beta1, 1.0 - with.beta2, with.eps]
        .map(|value| Arg::Float(value as f32))
}

/// Whole groups of four values, and what is left over.
fn quads(count: usize) -> (usize, usize) {
    (count / 4, count % 4)
}
