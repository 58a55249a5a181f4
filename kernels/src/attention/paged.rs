//! Attention over the paged cache (engine): each block is read once for all rows of the step that share it.
//!
//! Rows whose sequences begin with the same blocks are laid next to one another. Work goes block by block: a block's
//! keys meet the queries of all rows that have the block, eight at a time, before the next block is touched, and so do
//! its values. A row's own arithmetic is the same whoever shares its blocks: a score is one chain of products over the
//! head's dimensions, the softmax runs over lanes fixed by absolute position, and values are added key by key. So its
//! bits depend neither on the rows around it, nor on the block size, nor on where a prompt is cut.
//!
//! Layout of the cache: see [`super::cache`].
//!
//! **Source**: Juravsky et al., "Hydragen" (2024); Ye et al., "Cascade Inference" (FlashInfer, 2024), for reading shared
//! blocks once; without their merge of partial softmaxes, which would tie a row's bits to its neighbours.

use std::ops::Range;

use candle_core::{DType, Result, Tensor, bail};
use rayon::prelude::*;

use super::{Heads, packed::softmax};
use crate::{
    host::{SharedMut, read, write},
    simd::{LANES, fma, simd_fn},
};

/// Scores of one unit of work at most: a megabyte, which the second-level cache mostly holds.
const MAX_SCORES: usize = 1 << 18;
/// Rows of one unit at least, whatever their length.
const MIN_ROWS: usize = 8;

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

/// Attention of packed rows over the paged cache (which already holds these rows' keys and values), into the first `N`
/// rows of `o`.
///
/// **Shapes**: `qkv [≥ N, (H + 2K)·D]`, `keys`, `values [P·Z, K·D]`, `o [≥ N, H·D]` (a storage of its own). The rows of
/// `sequences` add up to `N`.
pub fn paged_into(
    qkv: &Tensor,
    (keys, values): (&Tensor, &Tensor),
    sequences: &[PagedRows],
    block_size: usize,
    heads: &Heads,
    o: &Tensor,
) -> Result<()> {
    let num_rows: usize = sequences.iter().map(|sequence| sequence.query_len).sum();
    let (capacity, width) = o.dims2()?;
    if heads.check(qkv)? < num_rows || capacity < num_rows || width != heads.query * heads.dim {
        bail!("paged attention: {num_rows} rows in qkv {:?}, o {:?}", qkv.dims(), o.dims())
    }
    let rows = sorted_rows(sequences, keys.dim(0)?, block_size)?;
    let (qkv, keys, values) = (read(qkv)?, read(keys)?, read(values)?);
    let out = heads.group() * heads.dim;
    let units: Vec<(usize, &[Row])> = split(&rows, heads.group())
        .into_iter()
        .flat_map(|rows| (0..heads.key_value).map(move |kv_head| (kv_head, rows)))
        .collect();
    write(o, |o| {
        let o = SharedMut::new(&mut o[..num_rows * width]);
        units.par_iter().with_max_len(1).for_each_init(Vec::new, |part, &(kv_head, rows)| {
            part.clear();
            part.resize(rows.len() * out, 0.0); // [rows, H/K, D]
            let cache = Cache { keys: &keys, values: &values, block_size };
            attend(&qkv, cache, rows, &runs(rows, block_size, heads), kv_head, heads, part);
            for (row, part) in rows.iter().zip(part.chunks_exact(out)) {
                // SAFETY: each row's part of each key/value head belongs to one unit.
                unsafe { o.slice(row.index * width + kv_head * out, out) }.copy_from_slice(part);
            }
        });
        Ok(())
    })
}

/// [`paged_into`] into a new tensor `[N, H·D]`, for as many rows as `qkv` has.
pub fn paged(
    qkv: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    sequences: &[PagedRows],
    block_size: usize,
    heads: &Heads,
) -> Result<Tensor> {
    let o = Tensor::zeros((heads.check(qkv)?, heads.query * heads.dim), DType::F32, qkv.device())?;
    paged_into(qkv, (keys, values), sequences, block_size, heads, &o)?;
    Ok(o)
}

/// A row and what it sees.
#[derive(Debug, Clone, Copy)]
struct Row<'a> {
    /// Its place in the batch.
    index: usize,
    position: usize,
    block_table: &'a [u32],
}

/// All rows, those that share blocks next to one another.
fn sorted_rows<'a>(sequences: &[PagedRows<'a>], capacity: usize, block_size: usize) -> Result<Vec<Row<'a>>> {
    let mut first_row = 0;
    let mut placed = Vec::with_capacity(sequences.len());
    for sequence in sequences {
        let blocks = sequence.context_len.div_ceil(block_size);
        let outside = |&block: &u32| (block as usize + 1) * block_size > capacity;
        if sequence.block_table.len() < blocks || sequence.block_table[..blocks].iter().any(outside) {
            bail!("paged attention: {} tokens do not fit block table {:?}", sequence.context_len, sequence.block_table)
        }
        placed.push((first_row, sequence));
        first_row += sequence.query_len;
    }
    placed.sort_by(|(_, one), (_, other)| one.block_table.cmp(other.block_table));
    let mut rows = Vec::with_capacity(first_row);
    for (first_row, sequence) in placed {
        let start = sequence.context_len - sequence.query_len;
        rows.extend((0..sequence.query_len).map(|i| Row {
            index: first_row + i,
            position: start + i,
            block_table: sequence.block_table,
        }));
    }
    Ok(rows)
}

/// Cuts the rows into units whose scores fit the processor's cache, where possible between groups that share nothing.
fn split<'a, 'b>(mut rows: &'b [Row<'a>], group: usize) -> Vec<&'b [Row<'a>]> {
    let mut units = Vec::new();
    while !rows.is_empty() {
        let mut longest = 0;
        let mut len = 0;
        for pair in rows.windows(2).map(Some).chain([None]) {
            longest = longest.max(rows[len].position + 1);
            let is_full = (len + 1) * longest * group > MAX_SCORES && len >= MIN_ROWS;
            let is_border = pair.is_some_and(|pair| pair[0].block_table.first() != pair[1].block_table.first());
            if is_full || (is_border && len + 1 >= MIN_ROWS) {
                break;
            }
            len += 1;
        }
        let (unit, rest) = rows.split_at((len + 1).min(rows.len()));
        units.push(unit);
        rows = rest;
    }
    units
}

/// The cache's two halves.
#[derive(Clone, Copy)]
struct Cache<'a> {
    keys: &'a [f32],
    values: &'a [f32],
    block_size: usize,
}

impl<'a> Cache<'a> {
    /// Keys `[D, Z]` and values `[Z, D]` of a head in a block.
    fn tiles(&self, block: u32, kv_head: usize, heads: &Heads) -> (&'a [f32], &'a [f32]) {
        let len = self.block_size * heads.dim;
        let start = (block as usize * heads.key_value + kv_head) * len;
        (&self.keys[start..start + len], &self.values[start..start + len])
    }
}

/// Neighbouring rows that see the same keys of the same block.
#[derive(Debug, Clone)]
struct Run {
    rows: Range<usize>,
    /// The block.
    id: u32,
    /// Position of its first key.
    place: usize,
    /// Which of its keys they see.
    keys: Range<usize>,
}

/// All runs of a unit, block by block: what is read together.
fn runs(rows: &[Row], block_size: usize, heads: &Heads) -> Vec<Run> {
    let longest = rows.iter().map(|row| row.position + 1).max().unwrap_or(0);
    let mut runs = Vec::new();
    for block in 0..longest.div_ceil(block_size) {
        let place = block * block_size;
        let mut open: Option<Run> = None;
        for (index, row) in rows.iter().enumerate() {
            let end = (row.position + 1).clamp(place, place + block_size) - place;
            let first = heads.first_key(row.position).clamp(place, place + block_size) - place;
            if first >= end {
                runs.extend(open.take());
                continue;
            }
            let (id, keys) = (row.block_table[block], first..end);
            match &mut open {
                Some(run) if run.id == id && run.keys == keys => run.rows.end = index + 1,
                _ => runs.extend(open.replace(Run { rows: index..index + 1, id, place, keys })),
            }
        }
        runs.extend(open);
    }
    runs
}

simd_fn! {
    /// The query heads of key/value head `kv_head` for all rows of a unit: `o [rows, H/K, D]`, zero on entry.
    fn attend(
        qkv: &[f32], cache: Cache, rows: &[Row], runs: &[Run], kv_head: usize, heads: &Heads, o: &mut [f32],
    ) {
        let (dim, group, block_size) = (heads.dim, heads.group(), cache.block_size);
        let mut queries = vec![0f32; rows.len() * group * dim]; // [rows, H/K, D]
        for (row, query) in rows.iter().zip(queries.chunks_exact_mut(group * dim)) {
            let start = row.index * heads.qkv_width() + kv_head * group * dim;
            query.copy_from_slice(&qkv[start..start + group * dim]);
        }
        let longest = rows.iter().map(|row| row.position + 1).max().unwrap_or(0);
        // Room for whole blocks and for whole registers.
        let stride = longest.next_multiple_of(block_size).next_multiple_of(LANES);
        let mut scores = vec![f32::NEG_INFINITY; rows.len() * group * stride]; // [rows, H/K, stride]
        for run in runs {
            let (keys, _) = cache.tiles(run.id, kv_head, heads);
            let (first, end) = (run.rows.start * group, run.rows.end * group);
            let queries = &queries[first * dim..end * dim];
            score_block::<FMA>(queries, keys, dim, block_size, stride, run.place, &mut scores[first * stride..end * stride]);
        }
        let mut inverse = vec![0f32; rows.len() * group];
        for ((row, scores), inverse) in
            rows.iter().zip(scores.chunks_exact_mut(group * stride)).zip(inverse.chunks_exact_mut(group))
        {
            let (first, end) = (heads.first_key(row.position), row.position + 1);
            let span = first / LANES * LANES..end.next_multiple_of(LANES);
            for (scores, inverse) in scores.chunks_exact_mut(stride).zip(inverse) {
                for score in &mut scores[first..end] {
                    *score *= heads.scale();
                }
                scores[span.start..first].fill(f32::NEG_INFINITY);
                scores[end..span.end].fill(f32::NEG_INFINITY);
                let (_, sum) = softmax::<FMA>(&mut scores[span.clone()]);
                *inverse = 1.0 / sum;
            }
        }
        for run in runs {
            let (_, values) = cache.tiles(run.id, kv_head, heads);
            let (first, end) = (run.rows.start * group, run.rows.end * group);
            let weights = &scores[first * stride..end * stride];
            let values = &values[run.keys.start * dim..run.keys.end * dim];
            let o = &mut o[first * dim..end * dim];
            add_block::<FMA>(weights, values, dim, stride, run.place + run.keys.start, o);
        }
        for (o, inverse) in o.chunks_exact_mut(dim).zip(inverse) {
            o.iter_mut().for_each(|o| *o *= inverse);
        }
    }
}

/// Products of queries `[n, D]` with all keys of a block `[D, Z]`, to place `place` of scores `[n, stride]`.
#[inline(always)]
fn score_block<const FMA: bool>(
    queries: &[f32],
    keys: &[f32],
    dim: usize,
    block_size: usize,
    stride: usize,
    place: usize,
    scores: &mut [f32],
) {
    for lane in (0..block_size).step_by(LANES) {
        let at = place + lane;
        let mut num_done = 0;
        let num = queries.len() / dim;
        if lane + LANES <= block_size {
            while num - num_done >= 8 {
                let (queries, scores) = (&queries[num_done * dim..], &mut scores[num_done * stride..]);
                score_tile::<FMA, 8>(queries, keys, dim, block_size, lane, stride, at, scores);
                num_done += 8;
            }
            if num - num_done >= 4 {
                let (queries, scores) = (&queries[num_done * dim..], &mut scores[num_done * stride..]);
                score_tile::<FMA, 4>(queries, keys, dim, block_size, lane, stride, at, scores);
                num_done += 4;
            }
            while num_done < num {
                let (queries, scores) = (&queries[num_done * dim..], &mut scores[num_done * stride..]);
                score_tile::<FMA, 1>(queries, keys, dim, block_size, lane, stride, at, scores);
                num_done += 1;
            }
        } else {
            // Block sizes that are no multiple of a register: the same chains, one key at a time.
            for (query, scores) in queries.chunks_exact(dim).zip(scores.chunks_exact_mut(stride)) {
                for (key, score) in scores[at..place + block_size].iter_mut().enumerate() {
                    let mut sum = 0f32;
                    for (d, query) in query.iter().enumerate() {
                        sum = fma::<FMA>(*query, keys[d * block_size + lane + key], sum);
                    }
                    *score = sum;
                }
            }
        }
    }
}

/// `ROWS` queries against 16 keys: one register of sums per query.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "an inner loop on plain slices")]
fn score_tile<const FMA: bool, const ROWS: usize>(
    queries: &[f32],
    keys: &[f32],
    dim: usize,
    block_size: usize,
    lane: usize,
    stride: usize,
    at: usize,
    scores: &mut [f32],
) {
    let mut sums = [[0f32; LANES]; ROWS];
    let mut rows = [queries; ROWS];
    for row in 0..ROWS {
        rows[row] = &queries[row * dim..(row + 1) * dim];
    }
    for d in 0..dim {
        let keys: &[f32; LANES] = keys[d * block_size + lane..][..LANES].try_into().expect("a register of keys");
        for row in 0..ROWS {
            let query = rows[row][d];
            for lane in 0..LANES {
                sums[row][lane] = fma::<FMA>(query, keys[lane], sums[row][lane]);
            }
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        scores[row * stride + at..][..LANES].copy_from_slice(sums);
    }
}

/// Adds `weights[n, place..] · values[keys, D]` to `o [n, D]`, key by key.
#[inline(always)]
fn add_block<const FMA: bool>(weights: &[f32], values: &[f32], dim: usize, stride: usize, place: usize, o: &mut [f32]) {
    const WIDE: usize = 4 * LANES;
    let num = o.len() / dim;
    let mut first = 0;
    while first < num {
        let (weights, o) = (&weights[first * stride + place..], &mut o[first * dim..]);
        let is_four = num - first >= 4;
        let mut d = 0;
        while d + WIDE <= dim {
            if is_four {
                add_tile::<FMA, 4, WIDE>(weights, values, dim, stride, d, o);
            } else {
                add_tile::<FMA, 1, WIDE>(weights, values, dim, stride, d, o);
            }
            d += WIDE;
        }
        while d + LANES <= dim {
            if is_four {
                add_tile::<FMA, 4, LANES>(weights, values, dim, stride, d, o);
            } else {
                add_tile::<FMA, 1, LANES>(weights, values, dim, stride, d, o);
            }
            d += LANES;
        }
        while d < dim {
            if is_four {
                add_tile::<FMA, 4, 1>(weights, values, dim, stride, d, o);
            } else {
                add_tile::<FMA, 1, 1>(weights, values, dim, stride, d, o);
            }
            d += 1;
        }
        first += if is_four { 4 } else { 1 };
    }
}

/// `ROWS` rows, `WIDTH` dimensions from `d` on.
#[inline(always)]
fn add_tile<const FMA: bool, const ROWS: usize, const WIDTH: usize>(
    weights: &[f32],
    values: &[f32],
    dim: usize,
    stride: usize,
    d: usize,
    o: &mut [f32],
) {
    let mut sums = [[0f32; WIDTH]; ROWS];
    for (row, sums) in sums.iter_mut().enumerate() {
        sums.copy_from_slice(&o[row * dim + d..][..WIDTH]);
    }
    let num_keys = values.len() / dim;
    let mut rows = [weights; ROWS];
    for row in 0..ROWS {
        rows[row] = &weights[row * stride..][..num_keys];
    }
    for (key, values) in values.chunks_exact(dim).enumerate() {
        let values: &[f32; WIDTH] = values[d..][..WIDTH].try_into().expect("the tile lies in the head");
        for row in 0..ROWS {
            let weight = rows[row][key];
            for lane in 0..WIDTH {
                sums[row][lane] = fma::<FMA>(weight, values[lane], sums[row][lane]);
            }
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        o[row * dim + d..][..WIDTH].copy_from_slice(sums);
    }
}

#[cfg(test)]
mod tests;
