//! Launches of `cross_entropy`, on logits that the head's product has made.

use candle_core::{Result, bail};

use super::{Array, Float, Gpu, Launch, SCRATCH, check_len, launch, rows_of, threads_for, values_at_once};

/// The tokens that rows are to predict, checked and on the device.
#[derive(Debug, Clone)]
pub struct Targets {
    ids: Array<i32>,
    vocab_size: usize,
}

impl Targets {
    /// **Errors**: a target past the end of the vocabulary.
    pub fn new(gpu: &Gpu, targets: &[u32], vocab_size: usize) -> Result<Self> {
        if let Some(target) = targets.iter().find(|&&target| target as usize >= vocab_size) {
            bail!("cross_entropy: target {target} is past the vocabulary of {vocab_size}")
        }
        let ids: Vec<i32> = targets.iter().map(|&target| target as i32).collect();
        Ok(Self { ids: Array::from_slice(gpu, &ids)?, vocab_size })
    }
}

/// Losses of rows, unweighted; with `weight`, the logits become their gradient.
///
/// **Shapes**: `logits [N, V]`, `losses [N]`.
pub fn forward<F: Float>(logits: &Array<F>, losses: &Array<f32>, targets: &Targets, weight: Option<f32>) -> Result<()> {
    let width = targets.vocab_size;
    let rows = rows_of("cross_entropy", logits, width)?;
    check_len("cross_entropy: targets", &targets.ids, rows)?;
    check_len("cross_entropy: losses", losses, rows)?;
    let launched = Launch {
        module: "cross_entropy",
        kernel: F::kernel("cross_entropy_f32", "cross_entropy_bf16"),
        blocks: [rows, 1, 1],
        threads: threads_for(width, values_at_once(width, &[logits]), 1024),
        shared_bytes: SCRATCH * size_of::<f32>(),
        args: &[
            logits.into(),
            losses.into(),
            (&targets.ids).into(),
            width.into(),
            weight.unwrap_or(0.0).into(),
            weight.is_some().into(),
        ],
    };
    // SAFETY: rows are as wide as the vocabulary that the targets were checked against.
    unsafe { launch(logits.gpu(), launched) }
}
