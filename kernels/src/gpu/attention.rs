//! Launches of `attention`: over the paged cache (engine) and of packed sequences (training, scoring).

use candle_core::{Result, bail};

use self::plan::{Row, Unit, in_unit, plan};
use super::{Arg, Array, Float, Gpu, Launch, cache::Cache, check_len, launch, rows_of};
use crate::attention::{Heads, PagedRows};

mod plan;

/// Queries of a unit, keys of a tile, floats between their rows (as in `attention.cu`).
pub(super) const MOST_QUERIES: usize = 16;
pub(super) const TILE: usize = 32;
pub(super) const PAD: usize = 4;
/// Widest head (`MOST_COLUMNS`).
const MOST_DIM: usize = 256;
pub(super) const THREADS: usize = 128;

/// A step's work over the paged cache, on the device.
#[derive(Debug)]
pub struct PagedWork {
    units: Array<i32>,
    rows: Array<i32>,
    tables: Array<i32>,
    /// Rows whose parts are merged, if there are any, and room for the parts.
    merges: Option<(Array<i32>, Array<f32>, Array<f32>)>,
    num_rows: usize,
    num_blocks: usize,
}

impl PagedWork {
    /// Plans the attention of a step: long contexts are cut so that every multiprocessor has something to do, and blocks that
    /// sequences share are read once for all of them.
    ///
    /// **Errors**: a block table that does not hold its sequence, or reaches past `num_blocks`.
    pub fn new(
        gpu: &Gpu,
        sequences: &[PagedRows],
        block_size: usize,
        num_blocks: usize,
        heads: &Heads,
    ) -> Result<Self> {
        check(heads)?;
        let mut places = Vec::with_capacity(sequences.len());
        let mut tables = Vec::new();
        for sequence in sequences {
            let blocks = sequence.context_len.div_ceil(block_size);
            let outside = |&block: &u32| block as usize >= num_blocks;
            if sequence.block_table.len() < blocks || sequence.block_table[..blocks].iter().any(outside) {
                bail!(
                    "paged attention: {} tokens do not fit block table {:?}",
                    sequence.context_len,
                    sequence.block_table
                )
            }
            places.push(tables.len());
            tables.extend(sequence.block_table[..blocks].iter().map(|&block| block as i32));
        }
        let units = plan(sequences, &places, block_size, heads, gpu.multiprocessors());
        let num_rows = sequences.iter().map(|sequence| sequence.query_len).sum();
        let (units, rows, merges, parts) = lists(&units, num_rows);
        let merges = if merges.is_empty() {
            None
        } else {
            let partial = Array::uninit(gpu, parts * heads.query * heads.dim)?;
            Some((Array::from_slice(gpu, &merges)?, partial, Array::uninit(gpu, parts * heads.query * 2)?))
        };
        Ok(Self {
            units: Array::from_slice(gpu, &units)?,
            rows: Array::from_slice(gpu, &rows)?,
            tables: Array::from_slice(gpu, &tables)?,
            merges,
            num_rows,
            num_blocks,
        })
    }

    /// Whether some rows are put together from parts.
    pub fn has_parts(&self) -> bool {
        self.merges.is_some()
    }
}

/// Attention of rows over the paged cache, which already holds these rows' keys and values.
///
/// **Shapes**: `qkv [N, (H + 2K)·D]` after rope → `o [N, H·D]`.
pub fn paged<F: Float>(o: &Array<F>, qkv: &Array<F>, cache: &Cache<F>, work: &PagedWork, heads: &Heads) -> Result<()> {
    let rows = rows_of("paged attention", qkv, heads.qkv_width())?;
    check_len("paged attention: o", o, rows * heads.query * heads.dim)?;
    if rows != work.num_rows || cache.num_blocks() != work.num_blocks {
        bail!("paged attention: work for {} rows of {} blocks, got {rows} rows", work.num_rows, work.num_blocks)
    }
    let (keys, values) = cache.arrays();
    let no_parts: Arg = qkv.into();
    let (partial, sums) = match &work.merges {
        Some((_, partial, sums)) => (partial.into(), sums.into()),
        None => (no_parts, no_parts),
    };
    let mut args = vec![
        o.into(),
        partial,
        sums,
        qkv.into(),
        keys.into(),
        values.into(),
        (&work.tables).into(),
        (&work.units).into(),
        (&work.rows).into(),
    ];
    args.extend(head_args(heads));
    args.extend([Arg::from(cache.block_size), Arg::from(chunk(heads)), Arg::from(heads.scale())]);
    let attention = Launch {
        module: "attention",
        kernel: F::kernel("attention_paged_f32", "attention_paged_bf16"),
        args: &args,
        ..unit_grid(work.units.len() / 8, heads)
    };
    // SAFETY: tables were checked against the cache, rows against qkv and o, and every part has its room.
    unsafe { launch(qkv.gpu(), attention)? };
    let Some((merges, partial, sums)) = &work.merges else { return Ok(()) };
    let merge = Launch {
        module: "attention",
        kernel: F::kernel("attention_merge_f32", "attention_merge_bf16"),
        blocks: [merges.len() / 4, heads.query, 1],
        threads: 32,
        shared_bytes: 0,
        args: &[o.into(), partial.into(), sums.into(), merges.into(), heads.query.into(), heads.dim.into()],
    };
    // SAFETY: as above.
    unsafe { launch(qkv.gpu(), merge) }
}

/// The work of packed sequences, on the device; the same for every layer.
#[derive(Debug)]
pub struct PackedWork {
    pub(super) units: Array<i32>,
    pub(super) rows: Array<i32>,
    /// For the gradient: runs of keys, `[U, 4]`.
    pub(super) keys: Array<i32>,
    pub(super) num_rows: usize,
}

impl PackedWork {
    /// `cu_seqlens` are the sequences' starts and the end, `[0, …, N]`.
    pub fn new(gpu: &Gpu, cu_seqlens: &[usize], heads: &Heads) -> Result<Self> {
        check(heads)?;
        let ordered = cu_seqlens.windows(2).all(|bounds| bounds[0] < bounds[1]);
        if cu_seqlens.first() != Some(&0) || !ordered {
            bail!("attention: sequence bounds {cu_seqlens:?} do not rise from 0")
        }
        let (mut units, mut keys) = (Vec::new(), Vec::new());
        for bounds in cu_seqlens.windows(2) {
            let len = bounds[1] - bounds[0];
            for first in (0..len).step_by(MOST_QUERIES) {
                keys.extend([first, MOST_QUERIES.min(len - first), bounds[0], len].map(|it| it as i32));
            }
            for first in (0..bounds[1] - bounds[0]).step_by(in_unit(heads)) {
                let end = (first + in_unit(heads)).min(bounds[1] - bounds[0]);
                let rows = (first..end).map(|position| Row { index: bounds[0] + position, position }).collect();
                units.push(Unit { rows, place: bounds[0], keys: heads.first_key(first)..end });
            }
        }
        let num_rows = cu_seqlens.last().copied().unwrap_or(0);
        let (units, rows, _, _) = lists(&units, num_rows);
        Ok(Self {
            units: Array::from_slice(gpu, &units)?,
            rows: Array::from_slice(gpu, &rows)?,
            keys: Array::from_slice(gpu, &keys)?,
            num_rows,
        })
    }
}

/// Attention of packed sequences.
///
/// **Shapes**: `qkv [N, (H + 2K)·D]` after rope → `o [N, H·D]`, `lse [N, H]` (log-sum-exp of the scaled scores).
pub fn packed<F: Float>(
    o: &Array<F>,
    lse: &Array<f32>,
    qkv: &Array<F>,
    work: &PackedWork,
    heads: &Heads,
) -> Result<()> {
    let rows = rows_of("attention", qkv, heads.qkv_width())?;
    check_len("attention: o", o, rows * heads.query * heads.dim)?;
    check_len("attention: lse", lse, rows * heads.query)?;
    if rows != work.num_rows {
        bail!("attention: sequences of {} rows, got {rows}", work.num_rows)
    }
    let mut args = vec![o.into(), lse.into(), qkv.into(), (&work.units).into(), (&work.rows).into()];
    args.extend(head_args(heads));
    args.extend([Arg::from(chunk(heads)), Arg::from(heads.scale())]);
    let launched = Launch {
        module: "attention",
        kernel: F::kernel("attention_packed_f32", "attention_packed_bf16"),
        args: &args,
        ..unit_grid(work.units.len() / 8, heads)
    };
    // SAFETY: the units cover the rows of qkv and no others.
    unsafe { launch(qkv.gpu(), launched) }
}

fn check(heads: &Heads) -> Result<()> {
    if heads.dim > MOST_DIM || !heads.dim.is_multiple_of(4) || !heads.query.is_multiple_of(heads.key_value) {
        bail!("attention on a GPU: {heads:?}; head_dim must be a multiple of 4 and at most {MOST_DIM}")
    }
    Ok(())
}

/// Query heads of a group that are worked on together.
pub(super) fn chunk(heads: &Heads) -> usize {
    heads.group().min(MOST_QUERIES)
}

pub(super) fn head_args(heads: &Heads) -> [Arg; 4] {
    [heads.query, heads.key_value, heads.dim, heads.window.unwrap_or(0)].map(Arg::from)
}

fn unit_grid(units: usize, heads: &Heads) -> Launch<'static> {
    Launch {
        module: "attention",
        kernel: "",
        blocks: [units, heads.key_value * heads.group().div_ceil(chunk(heads)), 1],
        threads: THREADS,
        shared_bytes: (MOST_QUERIES + 2 * TILE) * (heads.dim + PAD) * size_of::<f32>(),
        args: &[],
    }
}

/// Units and rows as the kernels read them; rows with several parts, `[R, 4]`; and the number of parts.
fn lists(units: &[Unit], num_rows: usize) -> (Vec<i32>, Vec<i32>, Vec<i32>, usize) {
    let mut parts = vec![0; num_rows];
    units.iter().flat_map(|unit| &unit.rows).for_each(|row| parts[row.index] += 1);
    let mut next = vec![-1; num_rows];
    let (mut merges, mut num_parts) = (Vec::new(), 0);
    for (row, &count) in parts.iter().enumerate().filter(|(_, count)| **count > 1) {
        next[row] = num_parts;
        merges.extend([row as i32, num_parts, count, 0]);
        num_parts += count;
    }
    let (mut unit_list, mut row_list) = (Vec::new(), Vec::new());
    for unit in units {
        let first = row_list.len() / 4;
        unit_list
            .extend([first, unit.rows.len(), unit.place, unit.keys.start, unit.keys.end, 0, 0, 0].map(|it| it as i32));
        for row in &unit.rows {
            let part = next[row.index];
            if part >= 0 {
                next[row.index] += 1;
            }
            row_list.extend([row.index as i32, row.position as i32, part, 0]);
        }
    }
    (unit_list, row_list, merges, num_parts as usize)
}
