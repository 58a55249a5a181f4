//! Causal grouped-query attention on packed rows: variable-length (training, scoring) and over a paged cache (engine).
//!
//! `o_i = Σ_j softmax_j(q_i·k_j·scale) v_j` over the keys `j` of the same sequence up to the row's own position, at most
//! `window` of them. Sources: Vaswani et al. 2017; Ainslie et al. 2023 (grouped queries); Dao 2023 (the log-sum-exp
//! kept for the backward); Kwon et al. 2023 (paged cache). Operations: 4·D per query head, row and visible key forward,
//! 10·D backward. A row's arithmetic is its own, keys in order, so its bits depend neither on the rows around it nor on
//! where a prompt is cut into chunks, and the two forms agree.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use self::packed::{Outer, Part, PartGradients};
use crate::host::{SharedMut, read, tensor};

mod cache;
mod packed;
mod paged;

pub use cache::{Rotary, copy_blocks, write_cache};
pub use paged::{PagedRows, paged, paged_into};

/// Head counts and the like.
#[derive(Debug, Clone, Copy)]
pub struct Heads {
    /// `H`
    pub query: usize,
    /// `K`; divides `H`.
    pub key_value: usize,
    /// `D`
    pub dim: usize,
    /// How many keys back a row sees, itself included; `None` is all.
    pub window: Option<usize>,
}

impl Heads {
    /// Width of a fused `[q | k | v]` row.
    pub fn qkv_width(&self) -> usize {
        (self.query + 2 * self.key_value) * self.dim
    }

    pub(crate) fn group(&self) -> usize {
        self.query / self.key_value
    }

    pub(crate) fn scale(&self) -> f32 {
        1.0 / (self.dim as f32).sqrt()
    }

    pub(crate) fn first_key(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    fn check(&self, qkv: &Tensor) -> Result<usize> {
        let (rows, width) = qkv.dims2()?;
        if width != self.qkv_width() || !self.query.is_multiple_of(self.key_value) {
            bail!("attention: rows of {width} for {self:?}")
        }
        Ok(rows)
    }
}

/// Attention of packed sequences.
///
/// **Shapes**: `qkv [N, (H + 2K)·D]` after rope; `cu_seqlens` are the sequences' starts and the end, `[0, …, N]` →
/// `o [N, H·D]`, `lse [N, H]` (log-sum-exp of the scaled scores).
pub fn forward(qkv: &Tensor, cu_seqlens: &[usize], heads: &Heads) -> Result<(Tensor, Tensor)> {
    let rows = heads.check(qkv)?;
    check_sequences(cu_seqlens, rows)?;
    let (qkv, width, out) = (read(qkv)?, heads.qkv_width(), heads.query * heads.dim);
    let mut o = vec![0f32; rows * out];
    let mut lse = vec![0f32; rows * heads.query];
    {
        let (o, lse) = (SharedMut::new(&mut o), SharedMut::new(&mut lse));
        let group = heads.group();
        parts(cu_seqlens, heads).into_par_iter().with_max_len(1).for_each(|(start, len, kv_head)| {
            let part = Part { qkv: &qkv[start * width..(start + len) * width], heads, kv_head };
            let mut part_o = vec![0f32; len * group * heads.dim];
            let mut part_lse = vec![0f32; len * group];
            packed::forward_part(part, &mut part_o, &mut part_lse);
            for i in 0..len {
                // SAFETY: each key/value head of each sequence has columns of its own.
                unsafe {
                    copy_row(&o, (start + i) * out, kv_head, group * heads.dim, &part_o, i);
                    copy_row(&lse, (start + i) * heads.query, kv_head, group, &part_lse, i);
                }
            }
        });
    }
    Ok((tensor(o, (rows, out))?, tensor(lse, (rows, heads.query))?))
}

/// Gradient of [`forward`].
///
/// **Shapes**: `d_o`, `o [N, H·D]`, `lse [N, H]`, `qkv [N, (H + 2K)·D]` → `dqkv` like `qkv`.
pub fn backward(
    d_o: &Tensor,
    o: &Tensor,
    lse: &Tensor,
    qkv: &Tensor,
    cu_seqlens: &[usize],
    heads: &Heads,
) -> Result<Tensor> {
    let rows = heads.check(qkv)?;
    check_sequences(cu_seqlens, rows)?;
    let (d_o, o, lse, qkv) = (read(d_o)?, read(o)?, read(lse)?, read(qkv)?);
    let (width, out, dim) = (heads.qkv_width(), heads.query * heads.dim, heads.dim);
    let mut dqkv = vec![0f32; rows * width];
    {
        let dqkv = SharedMut::new(&mut dqkv);
        let group = heads.group();
        parts(cu_seqlens, heads).into_par_iter().with_max_len(1).for_each(|(start, len, kv_head)| {
            let span = |width: usize| start * width..(start + len) * width;
            let part = Part { qkv: &qkv[span(width)], heads, kv_head };
            let outer = Outer { d_o: &d_o[span(out)], o: &o[span(out)], lse: &lse[span(heads.query)] };
            let mut queries = vec![0f32; len * group * dim];
            let (mut keys, mut values) = (vec![0f32; len * dim], vec![0f32; len * dim]);
            let gradients = PartGradients { queries: &mut queries, keys: &mut keys, values: &mut values };
            packed::backward_part(part, outer, gradients);
            for i in 0..len {
                let row = (start + i) * width;
                // SAFETY: each key/value head of each sequence has columns of its own.
                unsafe {
                    copy_row(&dqkv, row, kv_head, group * dim, &queries, i);
                    copy_row(&dqkv, row + out, kv_head, dim, &keys, i);
                    copy_row(&dqkv, row + out + heads.key_value * dim, kv_head, dim, &values, i);
                }
            }
        });
    }
    tensor(dqkv, (rows, width))
}

/// First row, length and key/value head of every piece of work.
fn parts(cu_seqlens: &[usize], heads: &Heads) -> Vec<(usize, usize, usize)> {
    let sequences = cu_seqlens.windows(2).map(|bounds| (bounds[0], bounds[1] - bounds[0]));
    sequences.flat_map(|(start, len)| (0..heads.key_value).map(move |kv_head| (start, len, kv_head))).collect()
}

/// Row `i` of `part [T, width]` into column block `block` of the row that begins at `row`.
///
/// # Safety
///
/// Nobody else touches that column block of that row.
unsafe fn copy_row(to: &SharedMut, row: usize, block: usize, width: usize, part: &[f32], i: usize) {
    // SAFETY: by this function's contract.
    unsafe { to.slice(row + block * width, width) }.copy_from_slice(&part[i * width..(i + 1) * width]);
}

fn check_sequences(cu_seqlens: &[usize], rows: usize) -> Result<()> {
    let ordered = cu_seqlens.windows(2).all(|bounds| bounds[0] < bounds[1]);
    if cu_seqlens.first() != Some(&0) || cu_seqlens.last() != Some(&rows) || !ordered {
        bail!("attention: sequence bounds {cu_seqlens:?} do not cover {rows} rows")
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use candle_core::{D, Device, Var};

    use super::*;

    const HEADS: Heads = Heads { query: 4, key_value: 2, dim: 8, window: None };

    /// The op's definition for one sequence: `[T, (H + 2K)·D]` → `[T, H·D]`.
    fn reference(qkv: &Tensor, heads: &Heads) -> Result<Tensor> {
        let t = qkv.dim(0)?;
        let split = |first: usize, count: usize| {
            qkv.narrow(1, first * heads.dim, count * heads.dim)?
                .reshape((t, count, heads.dim))?
                .transpose(0, 1)?
                .contiguous()
        };
        let repeat = |x: Tensor| {
            x.unsqueeze(1)?.broadcast_as((heads.key_value, heads.group(), t, heads.dim))?.reshape((
                heads.query,
                t,
                heads.dim,
            ))
        };
        let (q, k) = (split(0, heads.query)?, repeat(split(heads.query, heads.key_value)?)?);
        let v = repeat(split(heads.query + heads.key_value, heads.key_value)?)?;
        let visible = |i: usize, j: usize| j <= i && heads.window.is_none_or(|window| i - j < window);
        let mask: Vec<f32> =
            (0..t * t).map(|ij| if visible(ij / t, ij % t) { 0.0 } else { f32::NEG_INFINITY }).collect();
        let mask = Tensor::from_vec(mask, (t, t), &Device::Cpu)?;
        let scores = (q.matmul(&k.t()?)? * f64::from(heads.scale()))?.broadcast_add(&mask)?;
        let scores = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
        let p = scores.broadcast_div(&scores.sum_keepdim(D::Minus1)?)?;
        p.matmul(&v)?.transpose(0, 1)?.reshape((t, heads.query * heads.dim))
    }

    fn close(a: &Tensor, b: &Tensor) -> Result<()> {
        let error = (a - b)?.abs()?.max_all()?.to_scalar::<f32>()?;
        assert!(error < 2e-5, "{error}");
        Ok(())
    }

    #[test]
    fn packed_forward_and_backward_equal_autograd_sequence_by_sequence() -> Result<()> {
        for window in [None, Some(5)] {
            let heads = Heads { window, ..HEADS };
            let bounds = [0, 1, 12, 31];
            let qkv = Tensor::randn(0f32, 1f32, (31, heads.qkv_width()), &Device::Cpu)?;
            let d_o = Tensor::randn(0f32, 1f32, (31, 32), &Device::Cpu)?;
            let (o, lse) = forward(&qkv, &bounds, &heads)?;
            let dqkv = backward(&d_o, &o, &lse, &qkv, &bounds, &heads)?;
            for pair in bounds.windows(2) {
                let (start, len) = (pair[0], pair[1] - pair[0]);
                let part = Var::from_tensor(&qkv.narrow(0, start, len)?.contiguous()?)?;
                let expected = reference(&part, &heads)?;
                let grads = (&expected * d_o.narrow(0, start, len)?)?.sum_all()?.backward()?;
                close(&o.narrow(0, start, len)?, &expected)?;
                close(&dqkv.narrow(0, start, len)?, grads.get(&part).expect("gradient"))?;
            }
        }
        Ok(())
    }
}
