//! Rotary position embedding, in place on the query and key heads of a fused `qkv` tensor.
//!
//! Source: Su et al. 2021, in the half-split layout of Hugging Face ("rotate_half"): for `i < D/2`,
//! `y[i] = x[i]·cos - x[i+D/2]·sin`, `y[i+D/2] = x[i+D/2]·cos + x[i]·sin`. The backward is the rotation by the negative
//! angle. Bytes: reads and writes `H + K` heads of each row once.

use candle_core::{Result, Tensor, bail};

use crate::{
    host::{for_row_chunks, read, write},
    simd::simd_fn,
};

/// Rotates heads `0..heads` of each row by the row's position (`inverse`: back).
///
/// **Shapes**: `qkv [N, W]` with `W >= heads · D`, `cos` and `sin [max positions, D/2]`, `positions [N]`.
pub fn in_place(
    qkv: &Tensor,
    cos: &Tensor,
    sin: &Tensor,
    positions: &[u32],
    heads: usize,
    inverse: bool,
) -> Result<()> {
    let (rows, width) = qkv.dims2()?;
    let (max_positions, half) = cos.dims2()?;
    if positions.len() != rows || width < heads * 2 * half {
        bail!("rope: {rows} rows of {width} against {} positions and {heads} heads of {}", positions.len(), 2 * half)
    }
    if let Some(position) = positions.iter().find(|&&position| position as usize >= max_positions) {
        bail!("rope: position {position} is past the last one ({})", max_positions - 1)
    }
    let (cos, sin) = (read(cos)?, read(sin)?);
    write(qkv, |qkv| {
        for_row_chunks(qkv, width, |first, qkv| {
            for (row, &position) in qkv.chunks_exact_mut(width).zip(&positions[first..]) {
                let table = position as usize * half..(position as usize + 1) * half;
                let (cos, sin) = (&cos[table.clone()], &sin[table]);
                rotate_heads(&mut row[..heads * 2 * half], cos, sin, inverse);
            }
        });
        Ok(())
    })
}

simd_fn! {
    /// Rotates all heads of a row, `[heads · D]`, with one position's `cos` and `sin [D/2]`.
    pub(crate) fn rotate_heads(row: &mut [f32], cos: &[f32], sin: &[f32], inverse: bool) {
        let _ = FMA;
        let sign = if inverse { -1.0 } else { 1.0 };
        for head in row.chunks_exact_mut(2 * cos.len()) {
            let (low, high) = head.split_at_mut(cos.len());
            for (((low, high), cos), sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
                let sin = sign * sin;
                (*low, *high) = (*low * cos - *high * sin, *high * cos + *low * sin);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn the_rotation_equals_the_complex_product_and_is_undone_by_its_inverse() -> Result<()> {
        let (n, heads, d) = (5, 3, 8);
        let angles: Vec<f32> = (0..16).flat_map(|p| (0..d / 2).map(move |i| p as f32 / (i as f32 + 1.0))).collect();
        let angles = Tensor::from_vec(angles, (16, d / 2), &Device::Cpu)?;
        let (cos, sin) = (angles.cos()?, angles.sin()?);
        let before = Tensor::randn(0f32, 1f32, (n, (heads + 1) * d), &Device::Cpu)?;
        let positions = [0, 3, 7, 15, 2];
        let qkv = before.copy()?;
        in_place(&qkv, &cos, &sin, &positions, heads, false)?;
        let (got, was, angles) = (qkv.to_vec2::<f32>()?, before.to_vec2::<f32>()?, angles.to_vec2::<f32>()?);
        for row in 0..n {
            for (column, value) in got[row].iter().enumerate() {
                let (head, i) = (column / d, column % d);
                let expected = if head == heads {
                    was[row][column]
                } else {
                    let angle = angles[positions[row] as usize][i % (d / 2)];
                    let (re, im) = (was[row][head * d + i % (d / 2)], was[row][head * d + i % (d / 2) + d / 2]);
                    if i < d / 2 { re * angle.cos() - im * angle.sin() } else { im * angle.cos() + re * angle.sin() }
                };
                assert!((value - expected).abs() < 1e-5);
            }
        }
        in_place(&qkv, &cos, &sin, &positions, heads, true)?;
        assert!((qkv - before)?.abs()?.max_all()?.to_scalar::<f32>()? < 1e-5);
        Ok(())
    }
}
