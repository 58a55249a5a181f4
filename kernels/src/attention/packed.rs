//! Attention of one whole sequence, forward and backward (training, scoring).
//!
//! Keys and values are transposed once per head, so that the scores of a row are computed for [`TILE`] keys at a time
//! without a horizontal sum. A row's arithmetic depends on its position and the sequence before it alone.

use std::ops::Range;

use super::Heads;
use crate::simd::{LANES, axpy, dot, exp, fma, fold, simd_fn};

/// Keys per tile: four AVX-512 registers of scores.
const TILE: usize = 4 * LANES;

/// Query rows whose scores are computed together: each register of keys or values is used this many times.
const ROWS: usize = 4;

/// The rows of a sequence `[T, (H + 2K)·D]`, seen by the queries of one key/value head.
#[derive(Clone, Copy)]
pub(super) struct Part<'a> {
    pub qkv: &'a [f32],
    pub heads: &'a Heads,
    pub kv_head: usize,
}

impl Part<'_> {
    fn rows(&self) -> usize {
        self.qkv.len() / self.heads.qkv_width()
    }

    /// Head `head` of the group in row `i`.
    fn query(&self, i: usize, head: usize) -> &[f32] {
        let start = i * self.heads.qkv_width() + (self.kv_head * self.heads.group() + head) * self.heads.dim;
        &self.qkv[start..start + self.heads.dim]
    }

    /// The keys that the rows of a block see: all of them, and each row's own.
    fn spans(&self, rows: &Range<usize>) -> (Range<usize>, [Range<usize>; ROWS]) {
        let of_row = |i: usize| self.heads.first_key(i)..i + 1;
        let own = std::array::from_fn(|r| of_row(rows.start + r.min(rows.len() - 1)));
        (self.heads.first_key(rows.start)..rows.end, own)
    }
}

simd_fn! {
    /// `o [T, H/K, D]` and `lse [T, H/K]` of one key/value head's queries; `o` is zero on entry.
    pub(super) fn forward_part(part: Part, o: &mut [f32], lse: &mut [f32]) {
        let (dim, group, width) = (part.heads.dim, part.heads.group(), part.heads.qkv_width());
        let rows = part.rows();
        let stride = rows.next_multiple_of(TILE);
        let mut keys = vec![0f32; dim * stride]; // [D, T]
        let mut values = vec![0f32; rows * dim]; // [T, D]
        let mut weights = vec![0f32; ROWS * stride];
        let mut sums = vec![0f32; ROWS * dim];
        let (key_offset, value_offset) = offsets(part.heads, part.kv_head);
        transpose(part.qkv, width, key_offset, dim, stride, &mut keys);
        gather(part.qkv, width, value_offset, dim, &mut values);
        for head in 0..group {
            for start in (0..rows).step_by(ROWS) {
                let block = start..rows.min(start + ROWS);
                let (all, own) = part.spans(&block);
                let queries: [&[f32]; ROWS] = std::array::from_fn(|r| part.query((start + r).min(rows - 1), head));
                products::<FMA>(&queries[..block.len()], &keys, stride, tiles(&all), part.heads.scale(), &mut weights);
                let mut inverse = [0f32; ROWS];
                for ((i, weights), own) in block.clone().zip(weights.chunks_exact_mut(stride)).zip(&own) {
                    let span = tiles(own);
                    weights[span.start..own.start].fill(f32::NEG_INFINITY);
                    weights[own.end..span.end].fill(f32::NEG_INFINITY);
                    let (largest, sum) = softmax::<FMA>(&mut weights[span]);
                    inverse[i - start] = 1.0 / sum;
                    lse[i * group + head] = largest + sum.ln();
                }
                let sums = &mut sums[..block.len() * dim];
                sums.fill(0.0);
                add_weighted::<FMA>(&weights, stride, &own[..block.len()], &values, dim, sums);
                for ((i, sums), inverse) in block.zip(sums.chunks_exact(dim)).zip(inverse) {
                    let o = &mut o[(i * group + head) * dim..][..dim];
                    o.iter_mut().zip(sums).for_each(|(o, sum)| *o = sum * inverse);
                }
            }
        }
    }
}

/// What the backward of one key/value head needs, from the sequence's first row on.
#[derive(Clone, Copy)]
pub(super) struct Outer<'a> {
    /// `[T, H·D]`
    pub d_o: &'a [f32],
    /// `[T, H·D]`
    pub o: &'a [f32],
    /// `[T, H]`
    pub lse: &'a [f32],
}

/// Gradients of one key/value head; all zero on entry.
pub(super) struct PartGradients<'a> {
    /// `[T, H/K, D]`
    pub queries: &'a mut [f32],
    /// `[T, D]`
    pub keys: &'a mut [f32],
    /// `[T, D]`
    pub values: &'a mut [f32],
}

simd_fn! {
    /// Adds the gradients of one key/value head's queries, keys and values.
    pub(super) fn backward_part(part: Part, outer: Outer, gradients: PartGradients) {
        let (dim, group, width) = (part.heads.dim, part.heads.group(), part.heads.qkv_width());
        let rows = part.rows();
        let stride = rows.next_multiple_of(TILE);
        let (mut keys, mut values) = (vec![0f32; dim * stride], vec![0f32; dim * stride]); // [D, T]
        let mut key_rows = vec![0f32; rows * dim]; // [T, D]
        let (mut weights, mut d_scores) = (vec![0f32; ROWS * stride], vec![0f32; ROWS * stride]);
        let mut sums = vec![0f32; ROWS * dim];
        let (key_offset, value_offset) = offsets(part.heads, part.kv_head);
        transpose(part.qkv, width, key_offset, dim, stride, &mut keys);
        transpose(part.qkv, width, value_offset, dim, stride, &mut values);
        gather(part.qkv, width, key_offset, dim, &mut key_rows);
        for head in 0..group {
            let column = part.kv_head * group + head;
            let of_row = |values: &'_ [f32], i: usize| -> Range<usize> {
                let start = (i * part.heads.query + column) * dim;
                debug_assert!(start + dim <= values.len());
                start..start + dim
            };
            for start in (0..rows).step_by(ROWS) {
                let block = start..rows.min(start + ROWS);
                let (all, own) = part.spans(&block);
                let own = &own[..block.len()];
                let queries: [&[f32]; ROWS] = std::array::from_fn(|r| part.query((start + r).min(rows - 1), head));
                let d_o: [&[f32]; ROWS] =
                    std::array::from_fn(|r| &outer.d_o[of_row(outer.d_o, (start + r).min(rows - 1))]);
                let (queries, d_o) = (&queries[..block.len()], &d_o[..block.len()]);
                products::<FMA>(queries, &keys, stride, tiles(&all), part.heads.scale(), &mut weights);
                products::<FMA>(d_o, &values, stride, tiles(&all), 1.0, &mut d_scores);
                for (r, i) in block.clone().enumerate() {
                    let delta = dot::<FMA>(d_o[r], &outer.o[of_row(outer.o, i)]);
                    let lse = outer.lse[i * part.heads.query + column];
                    let span = tiles(&own[r]);
                    let span = r * stride + span.start..r * stride + span.end;
                    for (weight, d_score) in weights[span.clone()].iter_mut().zip(&mut d_scores[span]) {
                        *weight = exp::<FMA>(*weight - lse);
                        *d_score = *weight * (*d_score - delta) * part.heads.scale();
                    }
                }
                let sums = &mut sums[..block.len() * dim];
                sums.fill(0.0);
                add_weighted::<FMA>(&d_scores, stride, own, &key_rows, dim, sums);
                for (i, sums) in block.zip(sums.chunks_exact(dim)) {
                    gradients.queries[(i * group + head) * dim..][..dim].copy_from_slice(sums);
                }
                scatter_weighted::<FMA>(&weights, stride, own, d_o, gradients.values);
                scatter_weighted::<FMA>(&d_scores, stride, own, queries, gradients.keys);
            }
        }
    }
}

/// Where a key/value head's key and value stand in a row.
fn offsets(heads: &Heads, kv_head: usize) -> (usize, usize) {
    ((heads.query + kv_head) * heads.dim, (heads.query + heads.key_value + kv_head) * heads.dim)
}

/// The whole tiles around a span of keys.
fn tiles(keys: &Range<usize>) -> Range<usize> {
    keys.start / TILE * TILE..keys.end.next_multiple_of(TILE)
}

/// Column `offset..offset + dim` of the rows, transposed to `[D, stride]`.
fn transpose(rows: &[f32], width: usize, offset: usize, dim: usize, stride: usize, out: &mut [f32]) {
    for (j, row) in rows.chunks_exact(width).enumerate() {
        for (d, value) in row[offset..offset + dim].iter().enumerate() {
            out[d * stride + j] = *value;
        }
    }
}

/// Column `offset..offset + dim` of the rows, dense.
fn gather(rows: &[f32], width: usize, offset: usize, dim: usize, out: &mut [f32]) {
    for (row, out) in rows.chunks_exact(width).zip(out.chunks_exact_mut(dim)) {
        out.copy_from_slice(&row[offset..offset + dim]);
    }
}

/// `out[r, j] = scale · xs[r] · column j` for whole tiles of the `[D, stride]` matrix; `out [rows, stride]`.
#[inline(always)]
fn products<const FMA: bool>(
    xs: &[&[f32]],
    matrix: &[f32],
    stride: usize,
    span: Range<usize>,
    scale: f32,
    out: &mut [f32],
) {
    if let Ok(xs) = <&[&[f32]; ROWS]>::try_from(xs) {
        products_of::<FMA, ROWS>(xs, matrix, stride, span, scale, out);
    } else {
        for (x, out) in xs.iter().zip(out.chunks_exact_mut(stride)) {
            products_of::<FMA, 1>(&[*x], matrix, stride, span.clone(), scale, out);
        }
    }
}

#[inline(always)]
fn products_of<const FMA: bool, const R: usize>(
    xs: &[&[f32]; R],
    matrix: &[f32],
    stride: usize,
    span: Range<usize>,
    scale: f32,
    out: &mut [f32],
) {
    let dim = xs[0].len();
    for tile in span.step_by(TILE) {
        let mut sums = [[0f32; TILE]; R];
        for d in 0..dim {
            let row: &[f32; TILE] = matrix[d * stride + tile..][..TILE].try_into().expect("a tile is in the row");
            for r in 0..R {
                let x = xs[r][d];
                for lane in 0..TILE {
                    sums[r][lane] = fma::<FMA>(x, row[lane], sums[r][lane]);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (out, sum) in out[r * stride + tile..][..TILE].iter_mut().zip(sums) {
                *out = sum * scale;
            }
        }
    }
}

/// Turns scores into `e^(score - largest)`; returns the largest and the sum. The slice is whole tiles.
#[inline(always)]
pub(super) fn softmax<const FMA: bool>(scores: &mut [f32]) -> (f32, f32) {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in scores.as_chunks::<LANES>().0 {
        for lane in 0..LANES {
            lanes[lane] = if chunk[lane] > lanes[lane] { chunk[lane] } else { lanes[lane] };
        }
    }
    let largest = lanes.into_iter().fold(f32::NEG_INFINITY, f32::max);
    let mut sums = [0f32; LANES];
    for chunk in scores.as_chunks_mut::<LANES>().0 {
        for lane in 0..LANES {
            chunk[lane] = exp::<FMA>(chunk[lane] - largest);
            sums[lane] += chunk[lane];
        }
    }
    (largest, fold(sums))
}

/// The keys that all rows see; before and after it each row has its own.
fn common(own: &[Range<usize>]) -> Range<usize> {
    let start = own.iter().map(|keys| keys.start).max().unwrap_or(0);
    let end = own.iter().map(|keys| keys.end).min().unwrap_or(0);
    start..end.max(start)
}

/// `sums[r] += Σ_j weights[r, j] · rows[j]` over each row's own keys, in order; `sums [rows, D]`.
#[inline(always)]
fn add_weighted<const FMA: bool>(
    weights: &[f32],
    stride: usize,
    own: &[Range<usize>],
    rows: &[f32],
    dim: usize,
    sums: &mut [f32],
) {
    let shared = common(own);
    if own.len() == ROWS && !shared.is_empty() {
        for (r, keys) in own.iter().enumerate() {
            add_weighted_of::<FMA, 1>(
                &weights[r * stride..],
                stride,
                keys.start..shared.start,
                rows,
                dim,
                &mut sums[r * dim..],
            );
        }
        add_weighted_of::<FMA, ROWS>(weights, stride, shared.clone(), rows, dim, sums);
        for (r, keys) in own.iter().enumerate() {
            add_weighted_of::<FMA, 1>(
                &weights[r * stride..],
                stride,
                shared.end..keys.end,
                rows,
                dim,
                &mut sums[r * dim..],
            );
        }
    } else {
        for (r, keys) in own.iter().enumerate() {
            add_weighted_of::<FMA, 1>(&weights[r * stride..], stride, keys.clone(), rows, dim, &mut sums[r * dim..]);
        }
    }
}

#[inline(always)]
fn add_weighted_of<const FMA: bool, const R: usize>(
    weights: &[f32],
    stride: usize,
    keys: Range<usize>,
    rows: &[f32],
    dim: usize,
    sums: &mut [f32],
) {
    if keys.is_empty() {
        return;
    }
    let mut d = 0;
    while d + TILE <= dim {
        add_columns::<FMA, R, TILE>(weights, stride, keys.clone(), rows, (d, dim), sums);
        d += TILE;
    }
    while d + LANES <= dim {
        add_columns::<FMA, R, LANES>(weights, stride, keys.clone(), rows, (d, dim), sums);
        d += LANES;
    }
    while d < dim {
        add_columns::<FMA, R, 1>(weights, stride, keys.clone(), rows, (d, dim), sums);
        d += 1;
    }
}

/// Dimensions `d..d + WIDTH` of [`add_weighted`], sums held in registers.
#[inline(always)]
fn add_columns<const FMA: bool, const R: usize, const WIDTH: usize>(
    weights: &[f32],
    stride: usize,
    keys: Range<usize>,
    rows: &[f32],
    (d, dim): (usize, usize),
    sums: &mut [f32],
) {
    let mut held = [[0f32; WIDTH]; R];
    let mut of_row = [weights; R];
    for r in 0..R {
        held[r].copy_from_slice(&sums[r * dim + d..][..WIDTH]);
        of_row[r] = &weights[r * stride + keys.start..][..keys.len()];
    }
    for (index, row) in rows[keys.start * dim..keys.end * dim].chunks_exact(dim).enumerate() {
        let row: &[f32; WIDTH] = row[d..][..WIDTH].try_into().expect("the columns are in the row");
        for r in 0..R {
            let weight = of_row[r][index];
            for lane in 0..WIDTH {
                held[r][lane] = fma::<FMA>(weight, row[lane], held[r][lane]);
            }
        }
    }
    for (r, held) in held.iter().enumerate() {
        sums[r * dim + d..][..WIDTH].copy_from_slice(held);
    }
}

/// `sums[j] += Σ_r weights[r, j] · xs[r]` for the keys that each row sees, rows in order; `sums [T, D]`.
#[inline(always)]
fn scatter_weighted<const FMA: bool>(
    weights: &[f32],
    stride: usize,
    own: &[Range<usize>],
    xs: &[&[f32]],
    sums: &mut [f32],
) {
    let dim = xs[0].len();
    let shared = if own.len() == ROWS { common(own) } else { 0..0 };
    if let (Ok(xs), false) = (<&[&[f32]; ROWS]>::try_from(xs), shared.is_empty()) {
        for (r, keys) in own.iter().enumerate() {
            scatter_row::<FMA>(&weights[r * stride..], keys.start..shared.start, xs[r], sums);
        }
        for (j, sum) in shared.clone().zip(sums[shared.start * dim..shared.end * dim].chunks_exact_mut(dim)) {
            let weight: [f32; ROWS] = std::array::from_fn(|r| weights[r * stride + j]);
            let mut d = 0;
            while d + LANES <= dim {
                let mut held: [f32; LANES] = sum[d..][..LANES].try_into().expect("a register");
                for r in 0..ROWS {
                    let x: &[f32; LANES] = xs[r][d..][..LANES].try_into().expect("a register");
                    for lane in 0..LANES {
                        held[lane] = fma::<FMA>(weight[r], x[lane], held[lane]);
                    }
                }
                sum[d..][..LANES].copy_from_slice(&held);
                d += LANES;
            }
            for d in d..dim {
                for r in 0..ROWS {
                    sum[d] = fma::<FMA>(weight[r], xs[r][d], sum[d]);
                }
            }
        }
        for (r, keys) in own.iter().enumerate() {
            scatter_row::<FMA>(&weights[r * stride..], shared.end..keys.end, xs[r], sums);
        }
    } else {
        for (r, keys) in own.iter().enumerate() {
            scatter_row::<FMA>(&weights[r * stride..], keys.clone(), xs[r], sums);
        }
    }
}

/// `sums[j] += weights[j] · x` for the keys of one row.
#[inline(always)]
fn scatter_row<const FMA: bool>(weights: &[f32], keys: Range<usize>, x: &[f32], sums: &mut [f32]) {
    for j in keys {
        axpy::<FMA>(weights[j], x, &mut sums[j * x.len()..][..x.len()]);
    }
}
