//! Causal grouped-query attention on packed rows: variable-length (training, scoring) and over a paged cache (engine).
//!
//! `o_i = Σ_j softmax_j(q_i·k_j·scale) v_j` over the keys `j` of the same sequence up to the row's own position, at most
//! `window` of them. Sources: Vaswani et al. 2017; Ainslie et al. 2023 (grouped queries); Dao 2023 (the log-sum-exp
//! kept for the backward); Kwon et al. 2023 (paged cache). Operations: 4·D per query head, row and visible key forward,
//! 10·D backward. Every row is computed by itself, keys in order, so its bits depend neither on the rows around it nor
//! on where a prompt is cut into chunks.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use crate::{
    host::{read, tensor, write},
    simd::{axpy, dot, exp, simd_fn},
};

mod packed;

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

    fn group(&self) -> usize {
        self.query / self.key_value
    }

    fn scale(&self) -> f32 {
        1.0 / (self.dim as f32).sqrt()
    }

    fn first_key(&self, position: usize) -> usize {
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
    let parts =
        split_sequences(&mut o, out, cu_seqlens).into_iter().zip(split_sequences(&mut lse, heads.query, cu_seqlens));
    parts.collect::<Vec<_>>().into_par_iter().for_each(|((start, o), (_, lse))| {
        let rows = o.len() / out;
        packed::forward_sequence(&qkv[start * width..(start + rows) * width], heads, o, lse);
    });
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
    let width = heads.qkv_width();
    let mut dqkv = vec![0f32; rows * width];
    split_sequences(&mut dqkv, width, cu_seqlens).into_par_iter().for_each(|(start, dqkv)| {
        let (rows, out) = (dqkv.len() / width, heads.query * heads.dim);
        let span = |width: usize| start * width..(start + rows) * width;
        packed::backward_sequence(
            &d_o[span(out)],
            &o[span(out)],
            &lse[span(heads.query)],
            &qkv[span(width)],
            heads,
            dqkv,
        );
    });
    tensor(dqkv, (rows, width))
}

/// One sequence's rows of a paged batch.
#[derive(Debug, Clone, Copy)]
pub struct PagedRows<'a> {
    /// How many consecutive rows.
    pub query_len: usize,
    /// Tokens in the cache, these rows included.
    pub context_len: usize,
    /// Cache blocks in order of position.
    pub block_table: &'a [u32],
}

/// Writes the keys and values of `qkv` into the cache at `slots`.
///
/// **Shapes**: `qkv [N, (H + 2K)·D]`, `keys` and `values [P·Z, K·D]` (two storages), `slots [N]`.
pub fn write_cache(qkv: &Tensor, keys: &Tensor, values: &Tensor, slots: &[u32], heads: &Heads) -> Result<()> {
    heads.check(qkv)?;
    let (source, width, kv) = (read(qkv)?, heads.qkv_width(), heads.key_value * heads.dim);
    for (cache, offset) in [(keys, heads.query * heads.dim), (values, heads.query * heads.dim + kv)] {
        let (capacity, cache_width) = cache.dims2()?;
        if cache_width != kv || slots.iter().any(|&slot| slot as usize >= capacity) {
            bail!("write_cache: cache of {capacity} slots of {cache_width}, expected width {kv}")
        }
        write(cache, |cache| {
            for (row, &slot) in source.chunks_exact(width).zip(slots) {
                let slot = slot as usize * kv;
                cache[slot..slot + kv].copy_from_slice(&row[offset..offset + kv]);
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Attention of packed rows over the paged cache (which already holds these rows' keys and values).
///
/// **Shapes**: `qkv [N, (H + 2K)·D]`, `keys`, `values [P·Z, K·D]` → `[N, H·D]`. The rows of `sequences` add up to `N`.
pub fn paged(
    qkv: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    sequences: &[PagedRows],
    block_size: usize,
    heads: &Heads,
) -> Result<Tensor> {
    let rows = heads.check(qkv)?;
    let capacity = keys.dim(0)?;
    let mut row_of = Vec::with_capacity(rows);
    for sequence in sequences {
        let blocks = sequence.context_len.div_ceil(block_size);
        let outside = |&block: &u32| (block as usize + 1) * block_size > capacity;
        if sequence.block_table.len() < blocks || sequence.block_table[..blocks].iter().any(outside) {
            bail!("paged attention: {} tokens do not fit block table {:?}", sequence.context_len, sequence.block_table)
        }
        for i in 0..sequence.query_len {
            row_of.push((sequence.block_table, sequence.context_len - sequence.query_len + i));
        }
    }
    if row_of.len() != rows {
        bail!("paged attention: {rows} rows, but the sequences have {}", row_of.len())
    }
    let (qkv, keys, values) = (read(qkv)?, read(keys)?, read(values)?);
    let (width, out) = (heads.qkv_width(), heads.query * heads.dim);
    let kv = heads.key_value * heads.dim;
    let mut o = vec![0f32; rows * out];
    o.par_chunks_mut(out).enumerate().with_min_len(4).for_each(|(row, o)| {
        let (block_table, position) = row_of[row];
        let keys = Paged { values: &keys, block_table, block_size, width: kv };
        let values = Paged { values: &values, ..keys };
        let mut lse = vec![0f32; heads.query];
        let query = &qkv[row * width..row * width + out];
        attend_row_paged(query, keys, values, (heads.first_key(position), position + 1), heads, o, &mut lse);
    });
    tensor(o, (rows, out))
}

/// Where the keys (or values) of a sequence lie.
trait Rows: Copy {
    /// `D` values of key/value head `head` at position `j`.
    fn at(&self, j: usize, head: usize, dim: usize) -> &[f32];
}

#[derive(Clone, Copy)]
struct Paged<'a> {
    values: &'a [f32],
    block_table: &'a [u32],
    block_size: usize,
    width: usize,
}

impl Rows for Paged<'_> {
    #[inline(always)]
    fn at(&self, j: usize, head: usize, dim: usize) -> &[f32] {
        let slot = self.block_table[j / self.block_size] as usize * self.block_size + j % self.block_size;
        let start = slot * self.width + head * dim;
        &self.values[start..start + dim]
    }
}

simd_fn! {
    fn attend_row_paged(
        query: &[f32], keys: Paged, values: Paged, span: (usize, usize), heads: &Heads, o: &mut [f32], lse: &mut [f32],
    ) {
        attend::<FMA, _>(query, keys, values, span, heads, o, lse);
    }
}

/// All heads of one row: scores, softmax, weighted sum of values, keys in order.
#[inline(always)]
fn attend<const FMA: bool, R: Rows>(
    query: &[f32],
    keys: R,
    values: R,
    (first, end): (usize, usize),
    heads: &Heads,
    o: &mut [f32],
    lse: &mut [f32],
) {
    let (dim, scale) = (heads.dim, heads.scale());
    let mut scores = vec![0f32; end - first];
    for head in 0..heads.query {
        let kv_head = head / heads.group();
        let query = &query[head * dim..(head + 1) * dim];
        let mut largest = f32::NEG_INFINITY;
        for (j, score) in scores.iter_mut().enumerate() {
            *score = dot::<FMA>(query, keys.at(first + j, kv_head, dim)) * scale;
            largest = largest.max(*score);
        }
        for score in &mut scores {
            *score = exp::<FMA>(*score - largest);
        }
        let mut sum = 0f32;
        let o = &mut o[head * dim..(head + 1) * dim];
        for (j, weight) in scores.iter().enumerate() {
            sum += weight;
            axpy::<FMA>(*weight, values.at(first + j, kv_head, dim), o);
        }
        let inverse = 1.0 / sum;
        for o in o {
            *o *= inverse;
        }
        lse[head] = largest + sum.ln();
    }
}

/// The rows of each sequence of a packed tensor, with the sequence's first row.
fn split_sequences<'a>(mut rest: &'a mut [f32], width: usize, cu_seqlens: &[usize]) -> Vec<(usize, &'a mut [f32])> {
    let mut parts = Vec::with_capacity(cu_seqlens.len());
    for bounds in cu_seqlens.windows(2) {
        let (part, tail) = rest.split_at_mut((bounds[1] - bounds[0]) * width);
        parts.push((bounds[0], part));
        rest = tail;
    }
    parts
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

    #[test]
    fn the_paged_form_equals_the_packed_one_with_the_same_bits_wherever_the_prompt_is_cut() -> Result<()> {
        let (t, block_size) = (23, 4);
        let qkv = Tensor::randn(0f32, 1f32, (t, HEADS.qkv_width()), &Device::Cpu)?;
        let (o, _) = forward(&qkv, &[0, t], &HEADS)?;
        let mut whole: Option<Vec<Vec<f32>>> = None;
        let block_table: Vec<u32> = vec![7, 2, 5, 0, 6, 1];
        for cuts in [vec![23], vec![1, 23], vec![10, 11, 23], (1..=23).collect()] {
            let cache = || Tensor::zeros((8 * block_size, 16), candle_core::DType::F32, &Device::Cpu);
            let (keys, values) = (cache()?, cache()?);
            let (mut start, mut rows_so_far) = (0, Vec::new());
            for end in cuts {
                let part = qkv.narrow(0, start, end - start)?.contiguous()?;
                let slots: Vec<u32> = (start..end)
                    .map(|p| block_table[p / block_size] * block_size as u32 + (p % block_size) as u32)
                    .collect();
                write_cache(&part, &keys, &values, &slots, &HEADS)?;
                let rows = PagedRows { query_len: end - start, context_len: end, block_table: &block_table };
                let got = paged(&part, &keys, &values, &[rows], block_size, &HEADS)?;
                close(&got, &o.narrow(0, start, end - start)?)?;
                rows_so_far.extend(got.to_vec2::<f32>()?);
                start = end;
            }
            assert_eq!(*whole.get_or_insert(rows_so_far.clone()), rows_so_far);
        }
        Ok(())
    }
}
