//! Attention of one whole sequence, forward and backward (training, scoring).
//!
//! Keys and values are transposed once per head, so that the scores of a row are computed for [`TILE`] keys at a time
//! without a horizontal sum. A row's arithmetic depends on its position and the sequence before it alone.

use super::Heads;
use crate::simd::{LANES, axpy, dot, exp, fma, fold, simd_fn};

/// Keys per tile: four AVX-512 registers of scores.
const TILE: usize = 4 * LANES;

simd_fn! {
    /// `qkv [T, (H + 2K)·D]` → `o [T, H·D]`, `lse [T, H]`.
    pub(super) fn forward_sequence(qkv: &[f32], heads: &Heads, o: &mut [f32], lse: &mut [f32]) {
        let (dim, width, out) = (heads.dim, heads.qkv_width(), heads.query * heads.dim);
        let rows = qkv.len() / width;
        let stride = rows.next_multiple_of(TILE);
        let mut keys = vec![0f32; dim * stride]; // [D, T]
        let mut values = vec![0f32; rows * dim]; // [T, D]
        let mut weights = vec![0f32; stride];
        for kv_head in 0..heads.key_value {
            let (key_offset, value_offset) = offsets(heads, kv_head);
            transpose(qkv, width, key_offset, dim, stride, &mut keys);
            gather(qkv, width, value_offset, dim, &mut values);
            for head in kv_head * heads.group()..(kv_head + 1) * heads.group() {
                for i in 0..rows {
                    let query = &qkv[i * width + head * dim..][..dim];
                    let (first, end) = (heads.first_key(i), i + 1);
                    let span = tiles(first, end);
                    products::<FMA>(query, &keys, stride, span, heads.scale(), &mut weights);
                    weights[span.0..first].fill(f32::NEG_INFINITY);
                    weights[end..span.1].fill(f32::NEG_INFINITY);
                    let (largest, sum) = softmax::<FMA>(&mut weights[span.0..span.1]);
                    let o = &mut o[i * out + head * dim..][..dim];
                    weighted_sum::<FMA>(&weights[first..end], &values[first * dim..], 1.0 / sum, o);
                    lse[i * heads.query + head] = largest + sum.ln();
                }
            }
        }
    }
}

simd_fn! {
    /// The gradient of all of `qkv`; every slice starts at the sequence's first row.
    pub(super) fn backward_sequence(
        d_o: &[f32], o: &[f32], lse: &[f32], qkv: &[f32], heads: &Heads, dqkv: &mut [f32],
    ) {
        let (dim, width, out) = (heads.dim, heads.qkv_width(), heads.query * heads.dim);
        let rows = qkv.len() / width;
        let stride = rows.next_multiple_of(TILE);
        let (mut keys, mut values) = (vec![0f32; dim * stride], vec![0f32; dim * stride]); // [D, T]
        let mut key_rows = vec![0f32; rows * dim]; // [T, D]
        let (mut d_keys, mut d_values) = (vec![0f32; rows * dim], vec![0f32; rows * dim]); // [T, D]
        let (mut weights, mut d_scores) = (vec![0f32; stride], vec![0f32; stride]);
        for kv_head in 0..heads.key_value {
            let (key_offset, value_offset) = offsets(heads, kv_head);
            transpose(qkv, width, key_offset, dim, stride, &mut keys);
            transpose(qkv, width, value_offset, dim, stride, &mut values);
            gather(qkv, width, key_offset, dim, &mut key_rows);
            d_keys.fill(0.0);
            d_values.fill(0.0);
            for head in kv_head * heads.group()..(kv_head + 1) * heads.group() {
                for i in 0..rows {
                    let (first, end) = (heads.first_key(i), i + 1);
                    let span = tiles(first, end);
                    let query = &qkv[i * width + head * dim..][..dim];
                    let d_o = &d_o[i * out + head * dim..][..dim];
                    let delta = dot::<FMA>(d_o, &o[i * out + head * dim..][..dim]);
                    let lse = lse[i * heads.query + head];
                    products::<FMA>(query, &keys, stride, span, heads.scale(), &mut weights);
                    products::<FMA>(d_o, &values, stride, span, 1.0, &mut d_scores);
                    for (weight, d_score) in weights[span.0..span.1].iter_mut().zip(&mut d_scores[span.0..span.1]) {
                        *weight = exp::<FMA>(*weight - lse);
                        *d_score = *weight * (*d_score - delta) * heads.scale();
                    }
                    let dq = &mut dqkv[i * width + head * dim..][..dim];
                    weighted_sum::<FMA>(&d_scores[first..end], &key_rows[first * dim..], 1.0, dq);
                    for j in first..end {
                        axpy::<FMA>(weights[j], d_o, &mut d_values[j * dim..][..dim]);
                        axpy::<FMA>(d_scores[j], query, &mut d_keys[j * dim..][..dim]);
                    }
                }
            }
            for (j, row) in dqkv.chunks_exact_mut(width).enumerate() {
                row[key_offset..][..dim].copy_from_slice(&d_keys[j * dim..][..dim]);
                row[value_offset..][..dim].copy_from_slice(&d_values[j * dim..][..dim]);
            }
        }
    }
}

/// Where a key/value head's key and value stand in a row.
fn offsets(heads: &Heads, kv_head: usize) -> (usize, usize) {
    ((heads.query + kv_head) * heads.dim, (heads.query + heads.key_value + kv_head) * heads.dim)
}

/// The whole tiles around `first..end`.
fn tiles(first: usize, end: usize) -> (usize, usize) {
    (first / TILE * TILE, end.next_multiple_of(TILE))
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

/// `out[j] = scale · x · column j` for whole tiles of the `[D, stride]` matrix.
#[inline(always)]
fn products<const FMA: bool>(
    x: &[f32],
    matrix: &[f32],
    stride: usize,
    (start, end): (usize, usize),
    scale: f32,
    out: &mut [f32],
) {
    for tile in (start..end).step_by(TILE) {
        let mut sums = [0f32; TILE];
        for (d, x) in x.iter().enumerate() {
            let row: &[f32; TILE] = matrix[d * stride + tile..][..TILE].try_into().expect("a tile is in the row");
            for lane in 0..TILE {
                sums[lane] = fma::<FMA>(*x, row[lane], sums[lane]);
            }
        }
        for (out, sum) in out[tile..tile + TILE].iter_mut().zip(sums) {
            *out = sum * scale;
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

/// `out = scale · Σ_j weights[j] · rows[j]`, keys in order, sums held in registers.
#[inline(always)]
fn weighted_sum<const FMA: bool>(weights: &[f32], rows: &[f32], scale: f32, out: &mut [f32]) {
    let dim = out.len();
    let whole = dim / LANES * LANES;
    for (chunk, out) in out[..whole].as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        let mut sums = [0f32; LANES];
        for (weight, row) in weights.iter().zip(rows.chunks_exact(dim)) {
            let row: &[f32; LANES] = row[chunk * LANES..][..LANES].try_into().expect("a chunk is in the row");
            for lane in 0..LANES {
                sums[lane] = fma::<FMA>(*weight, row[lane], sums[lane]);
            }
        }
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = sum * scale;
        }
    }
    for (d, out) in out.iter_mut().enumerate().skip(whole) {
        *out = scale * weights.iter().zip(rows.chunks_exact(dim)).map(|(weight, row)| weight * row[d]).sum::<f32>();
    }
}
