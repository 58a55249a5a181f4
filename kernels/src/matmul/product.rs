//! Products of two matrices that change, as training needs them: `dst[m, n] (+)= a[m, k] · b[k, n]`.
//!
//! The tiles and kernels are those of [`super::packed`]; here both operands are packed on the way, in whatever order
//! they lie. **Blocking**: [`K_BLOCK`] steps of the inner dimension, so that a panel of `b` stays in the second-level
//! cache; rows of `a` in chunks of at most [`CHUNK_WORDS`] packed words, packed once for all columns; a task packs a few
//! panels of `b` and takes all rows of the chunk past them. A result is one chain of multiply-adds per block of `k`, and
//! the blocks are added in order: its bits depend neither on `m` and `n` nor on the number of threads.
//!
//! Operations 2·m·n·k. Bytes beyond those of the operands: each is written and read once in packed form.

use std::cell::RefCell;

use rayon::prelude::*;

use super::{
    Operand,
    packed::{Blocks, Place, sweep},
    tile::{Kernel, Line, MAX_ROWS, PANEL},
};

/// Longest run of the inner dimension: a panel of it takes 256 KiB in f32.
const K_BLOCK: usize = 2048;

/// Packed words of `a` at most at a time (16 MiB).
const CHUNK_WORDS: usize = 4 << 20;

/// Panels that one task packs at most.
const MAX_PANELS: usize = 8;

/// Tasks per thread: a shared core then holds the others up less.
const TASKS_PER_THREAD: usize = 4;

thread_local! {
    /// Packed rows of `a`, on the thread that calls; packed panels of `b`, on every thread. Kept, because fresh memory
    /// costs more than the packing.
    static ROWS: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
    static PANELS: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// A second operand, column by column.
pub(super) trait Columns: Sync {
    /// Packs columns `first..first + PANEL` of `n` within a block `(start, length)` of the inner dimension, zeros past the
    /// last one.
    fn pack_panel(&self, kernel: &Kernel, lines: &mut [Line], first: usize, n: usize, block: (usize, usize));
}

/// See the module. `dst` is row-major and dense; `m`, `n` and `k` are at least 1, and the operands as long as that needs.
pub(super) fn product(
    kernel: Kernel,
    dst: &mut [f32],
    accumulate: bool,
    (m, n, k): (usize, usize, usize),
    a: Operand,
    b: &impl Columns,
) {
    product_among(kernel, (dst, n), accumulate, (m, n, k), a, b);
}

/// [`product`] into columns of wider rows: `dst` begins with the first value of the result, `stride` from one row to the
/// next.
pub(super) fn product_among(
    kernel: Kernel,
    (dst, stride): (&mut [f32], usize),
    accumulate: bool,
    (m, n, k): (usize, usize, usize),
    a: Operand,
    b: &impl Columns,
) {
    let words_per_row = kernel.steps(K_BLOCK.min(k)) * kernel.words_per_step();
    let chunk = (CHUNK_WORDS / words_per_row).max(kernel.max_rows);
    let mut packed = ROWS.take();
    for start in (0..k).step_by(K_BLOCK) {
        let span = (start, K_BLOCK.min(k - start));
        for first in (0..m).step_by(chunk) {
            let rows = chunk.min(m - first);
            let place = Place::among(&mut dst[first * stride..], (rows, n, stride), accumulate || start > 0);
            multiply_chunk(kernel, &mut packed, &place, (first, rows, n), span, a, b);
        }
    }
    ROWS.set(packed);
}

/// Rows `first..first + rows` of `a` within one block of `k`, past all of `b`.
fn multiply_chunk(
    kernel: Kernel,
    packed: &mut Vec<u32>,
    place: &Place,
    (first, rows, n): (usize, usize, usize),
    span: (usize, usize),
    a: Operand,
    b: &impl Columns,
) {
    let blocks = Blocks::new(rows, kernel.max_rows);
    let steps = kernel.steps(span.1);
    pack_a(&kernel, packed, (first, rows), span, a, &blocks);
    let packed = packed.as_slice();
    let panel_lines = steps * PANEL / Line::WORDS;
    let panels = n.div_ceil(PANEL);
    let threads = rayon::current_num_threads();
    let group = panels.div_ceil(threads * TASKS_PER_THREAD).clamp(1, MAX_PANELS);
    let groups = panels.div_ceil(group);
    // Narrow products are cut along the rows too.
    let cuts = (threads * TASKS_PER_THREAD / groups).clamp(1, blocks.count().div_ceil(4));
    let task = |index: usize| {
        let (group_index, cut) = (index / cuts, index % cuts);
        let panel_range = group_index * group..panels.min((group_index + 1) * group);
        let block_range = blocks.count() * cut / cuts..blocks.count() * (cut + 1) / cuts;
        let mut lines = PANELS.take();
        let len = panel_range.len() * panel_lines;
        if lines.len() < len {
            lines.resize(len, Line::ZERO);
        }
        for (panel, lines) in panel_range.clone().zip(lines.chunks_exact_mut(panel_lines)) {
            b.pack_panel(&kernel, lines, panel * PANEL, n, span);
        }
        sweep(kernel, packed, &lines[..len], steps, (&blocks, block_range), panel_range, place);
        PANELS.set(lines);
    };
    // Below this many operations waking the other threads costs more than they save.
    if threads == 1 || rows * n * span.1 < 1 << 18 {
        (0..groups * cuts).for_each(task);
    } else {
        (0..groups * cuts).into_par_iter().with_max_len(1).for_each(task);
    }
}

/// Packs rows of `a` block by block; each block is `[steps, rows, words per step]`.
fn pack_a(
    kernel: &Kernel,
    packed: &mut Vec<u32>,
    (first, rows): (usize, usize),
    (start, len): (usize, usize),
    a: Operand,
    blocks: &Blocks,
) {
    /// Blocks that are packed together where rows lie side by side: whole cache lines of them.
    const TOGETHER: usize = 16;
    let words = kernel.steps(len) * kernel.words_per_step();
    if packed.len() < rows * words {
        packed.resize(rows * words, 0);
    }
    let mut parts = Vec::with_capacity(blocks.count());
    let mut rest = &mut packed[..rows * words];
    for block in 0..blocks.count() {
        let (row, count) = blocks.span(block);
        let (part, tail) = rest.split_at_mut(count * words);
        parts.push((first + row, count, part));
        rest = tail;
    }
    let pack = |parts: &mut [(usize, usize, &mut [u32])]| {
        if a.column_stride == 1 {
            for (row, count, part) in parts {
                let mut rows = [&[][..]; MAX_ROWS];
                for (index, slice) in rows[..*count].iter_mut().enumerate() {
                    *slice = &a.values[(*row + index) * a.row_stride + start..][..len];
                }
                kernel.pack_rows(&rows[..*count], part);
            }
        } else {
            for step in 0..kernel.steps(len) {
                let depth = kernel.depth(step, len);
                for (row, count, part) in parts.iter_mut() {
                    let column = |k: usize| &a.values[(start + k) * a.column_stride + *row * a.row_stride..][..*count];
                    let words = *count * kernel.words_per_step();
                    kernel.pack_columns(
                        column(depth.start),
                        (depth.len() == 2).then(|| column(depth.start + 1)),
                        &mut part[step * words..][..words],
                    );
                }
            }
        }
    };
    if rows * len < 1 << 15 {
        pack(&mut parts);
    } else {
        parts.par_chunks_mut(TOGETHER).for_each(pack);
    }
}

impl Columns for Operand<'_> {
    fn pack_panel(&self, kernel: &Kernel, lines: &mut [Line], first: usize, n: usize, (start, len): (usize, usize)) {
        let width = PANEL.min(n - first);
        if self.column_stride == 1 {
            const LINES: usize = PANEL / Line::WORDS;
            for (step, lines) in lines.chunks_exact_mut(LINES).enumerate() {
                let depth = kernel.depth(step, len);
                let row = |k: usize| &self.values[(start + k) * self.row_stride + first..][..width];
                kernel.pack_weights(row(depth.start), (depth.len() == 2).then(|| row(depth.start + 1)), lines);
            }
        } else {
            let mut rows = [&[][..]; PANEL];
            for (index, slice) in rows[..width].iter_mut().enumerate() {
                *slice = &self.values[(first + index) * self.column_stride + start..][..len];
            }
            kernel.pack_weight_rows(&rows[..width], lines);
        }
    }
}

#[cfg(test)]
mod tests {
    use rayon::ThreadPoolBuilder;

    use super::{
        super::{
            packed::{
                WeightDtype,
                tests::{bf16, random},
            },
            tile,
        },
        *,
    };

    /// `[rows, columns]` row-major, and the same matrix as it lies transposed.
    fn both(rows: usize, columns: usize, seed: u32) -> [Vec<f32>; 2] {
        let plain = random(rows * columns, seed);
        let turned = (0..rows * columns).map(|i| plain[i % rows * columns + i / rows]).collect();
        [plain, turned]
    }

    const SHAPES: [(usize, usize, usize); 7] =
        [(1, 1, 1), (2, 33, 5), (13, 31, 64), (25, 100, 7), (40, 64, 2049), (3, 700, 130), (300, 5, 33)];

    #[test]
    fn every_kernel_multiplies_operands_that_lie_either_way() {
        for dtype in [WeightDtype::F32, WeightDtype::Bf16] {
            for kernel in tile::kernels(dtype) {
                for (m, n, k) in SHAPES {
                    let (a, b, c) = (both(m, k, 1), both(k, n, 2), random(m * n, 3));
                    let round_a =
                        |value| if kernel.name == "avx512bf16" { f64::from(bf16(value)) } else { f64::from(value) };
                    let round_b =
                        |value| if dtype == WeightDtype::Bf16 { f64::from(bf16(value)) } else { f64::from(value) };
                    let expected: Vec<f64> = (0..m * n)
                        .map(|i| {
                            let (row, column) = (i / n, i % n);
                            (0..k).map(|k_| round_a(a[0][row * k + k_]) * round_b(b[0][k_ * n + column])).sum()
                        })
                        .collect();
                    for a in [Operand::rows(&a[0], k), Operand::transposed(&a[1], m)] {
                        for b in [Operand::rows(&b[0], n), Operand::transposed(&b[1], k)] {
                            for accumulate in [false, true] {
                                let mut got = c.clone();
                                product(kernel, &mut got, accumulate, (m, n, k), a, &b);
                                for ((got, expected), c) in got.iter().zip(&expected).zip(&c) {
                                    let expected = expected + if accumulate { f64::from(*c) } else { 0.0 };
                                    let error = (f64::from(*got) - expected).abs();
                                    let bound = 1e-5 * (k as f64).sqrt().max(2.0);
                                    assert!(error < bound, "{} {m} {n} {k}: {error}", kernel.name);
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn bits_depend_neither_on_the_other_rows_nor_on_threads_nor_on_how_operands_lie() {
        let (m, n, k) = (130, 200, 2500);
        let (a, b) = (both(m, k, 4), both(k, n, 5));
        let pools = [1, 3].map(|threads| ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool"));
        for dtype in [WeightDtype::F32, WeightDtype::Bf16] {
            for kernel in tile::kernels(dtype) {
                let bits = |rows: usize, a: Operand, b: Operand| -> Vec<u32> {
                    let mut got = vec![0.0; rows * n];
                    product(kernel, &mut got, false, (rows, n, k), a, &b);
                    got.into_iter().map(f32::to_bits).collect()
                };
                let whole = pools[0].install(|| bits(m, Operand::rows(&a[0], k), Operand::rows(&b[0], n)));
                for pool in &pools {
                    let turned = pool.install(|| bits(m, Operand::transposed(&a[1], m), Operand::transposed(&b[1], k)));
                    assert_eq!(whole, turned, "{}", kernel.name);
                    for rows in [1, 2, 12, 13, 64] {
                        let part = pool.install(|| bits(rows, Operand::rows(&a[0], k), Operand::rows(&b[0], n)));
                        assert_eq!(part, whole[..rows * n], "{} {rows}", kernel.name);
                    }
                }
            }
        }
    }
}
