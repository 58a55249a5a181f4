//! Launches of `rope`.

use candle_core::{Result, bail};

use super::{Array, Float, Launch, check_len, launch, rows_of, threads_for, values_at_once};

/// The angles of all positions on the device.
#[derive(Debug, Clone)]
pub struct Tables {
    /// `[max positions, D/2]`
    pub cos: Array<f32>,
    /// `[max positions, D/2]`
    pub sin: Array<f32>,
    /// `D/2`
    pub half: usize,
}

impl Tables {
    /// **Errors**: a position beyond the tables. Positions are checked on the host, before they are uploaded.
    pub fn check(&self, positions: &[i32]) -> Result<()> {
        let count = self.cos.len() / self.half;
        if let Some(position) = positions.iter().find(|&&position| position < 0 || position as usize >= count) {
            bail!("rope: position {position} is outside of 0..{count}")
        }
        Ok(())
    }
}

/// Rotates heads `0..heads` of each row by the row's position (`inverse`: back, which is the gradient).
///
/// **Shapes**: `qkv [N, W]` with `W >= heads · D`, `positions [N]`, all of them [checked](Tables::check).
pub fn in_place<F: Float>(
    qkv: &Array<F>,
    tables: &Tables,
    positions: &Array<i32>,
    heads: usize,
    inverse: bool,
) -> Result<()> {
    let rows = positions.len();
    if rows == 0 {
        return check_len("rope: qkv", qkv, 0);
    }
    let width = qkv.len() / rows;
    rows_of("rope", qkv, width)?;
    check_len("rope: sin", &tables.sin, tables.cos.len())?;
    if width < heads * 2 * tables.half {
        bail!("rope: rows of {width} have no {heads} heads of {}", 2 * tables.half)
    }
    let aligned = values_at_once(width, &[qkv]);
    let at_once = if tables.half.is_multiple_of(aligned) { aligned } else { 1 };
    let launched = Launch {
        module: "rope",
        kernel: F::kernel("rope_f32", "rope_bf16"),
        blocks: [rows, 1, 1],
        threads: threads_for(heads * tables.half, at_once, 256),
        shared_bytes: 0,
        args: &[
            qkv.into(),
            (&tables.cos).into(),
            (&tables.sin).into(),
            positions.into(),
            heads.into(),
            tables.half.into(),
            width.into(),
            (if inverse { -1.0 } else { 1.0 }).into(),
        ],
    };
    // SAFETY: rows are as wide as the kernel is told, and positions were checked against the tables.
    unsafe { launch(qkv.gpu(), launched) }
}
