//! Launches of `adamw_8bit`.

use candle_core::Result;

use super::{
    Array, Gpu, Launch,
    adamw::{Norm, settings},
    check_len, launch,
};
use crate::{
    adamw::AdamW,
    adamw_8bit::{self, BLOCK},
};

const THREADS: usize = 256;

/// Both moments of `[P]` values on the device.
#[derive(Debug, Clone)]
pub struct Moments {
    first: Array<u8>,
    first_absmax: Array<f32>,
    second: Array<u8>,
    second_absmax: Array<f32>,
    /// `[2, 256]`
    tables: Array<f32>,
}

impl Moments {
    /// Those of a CPU run.
    pub fn from_host(gpu: &Gpu, moments: &adamw_8bit::Moments) -> Result<Self> {
        let (signed, unsigned) = adamw_8bit::tables();
        Ok(Self {
            first: Array::from_slice(gpu, &moments.first)?,
            first_absmax: Array::from_slice(gpu, &moments.first_absmax)?,
            second: Array::from_slice(gpu, &moments.second)?,
            second_absmax: Array::from_slice(gpu, &moments.second_absmax)?,
            tables: Array::from_slice(gpu, &[signed.as_slice(), unsigned].concat())?,
        })
    }

    /// For a checkpoint.
    pub fn to_host(&self) -> Result<adamw_8bit::Moments> {
        Ok(adamw_8bit::Moments {
            first: self.first.to_vec()?,
            first_absmax: self.first_absmax.to_vec()?,
            second: self.second.to_vec()?,
            second_absmax: self.second_absmax.to_vec()?,
        })
    }
}

/// One step in place on arenas `[P]`. `with.gradient_scale` is not read: the scale is that of `norm`.
pub fn step(
    parameters: &Array<f32>,
    gradients: &Array<f32>,
    moments: &Moments,
    norm: &Norm,
    with: &AdamW,
) -> Result<()> {
    let count = parameters.len();
    check_len("adamw_8bit: gradients", gradients, count)?;
    check_len("adamw_8bit: moments", &moments.first, count)?;
    let blocks = count.div_ceil(BLOCK);
    let last = count - blocks.saturating_sub(1) * BLOCK;
    let mut args = vec![
        parameters.into(),
        (&moments.first).into(),
        (&moments.first_absmax).into(),
        (&moments.second).into(),
        (&moments.second_absmax).into(),
        gradients.into(),
        (&norm.scale()?).into(),
        (&moments.tables).into(),
        blocks.into(),
        last.into(),
    ];
    args.extend(settings(with));
    let launched = Launch {
        module: "adamw_8bit",
        kernel: "adamw_8bit_step",
        blocks: [blocks.div_ceil(THREADS / 32), 1, 1],
        threads: THREADS,
        shared_bytes: 2 * BLOCK * size_of::<f32>(),
        args: &args,
    };
    // SAFETY: all arenas have `count` values, and the scales one per block.
    unsafe { launch(parameters.gpu(), launched) }
}
