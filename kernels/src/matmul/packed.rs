//! A weight matrix packed once for inference: `y[N, O] (+)= x[N, I] · w[O, I]ᵀ (+ bias)`.
//!
//! Outputs lie across the lanes of a vector and the inner dimension runs in order, one accumulator per output. So a
//! result's bits depend on its row and its output alone: not on how many rows there are, nor on tiles, nor on threads.
//!
//! **Layout**: panels of [`PANEL`] outputs, the last one padded with zeros. A panel is `[I, PANEL]` in f32, or
//! `[I/2, PANEL]` pairs in bf16, the even inner index in the low half: what `vdpbf16ps` multiplies, and what two shifts
//! widen where a processor lacks it. Few rows stream the panels in order at the memory's speed; many rows go over one
//! panel while it is in the second-level cache. Bytes: `O·I` weights of 4 or 2 bytes, read once per [`CHUNK_WORDS`]
//! words of activations. Operations: 2·N·I·O.
//!
//! In bf16 the weights are rounded, and with AVX-512-BF16 the activations too (to nearest, subnormals to zero); sums are
//! f32. Without that instruction the activations stay f32, so the last bits differ between processors.

use std::{cell::RefCell, ops::Range};

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

pub use super::input::Input;
use super::{
    input::Rows,
    tile::{self, Kernel, Line, MAX_ROWS, PANEL, Sums},
};
use crate::host::{read, tensor, write};

/// Activations that stay in the second-level cache while the panels pass by, in words of 4 bytes (384 KiB).
const CHUNK_WORDS: usize = 96 << 10;

/// Weights of one task at least, in bytes: some 5 µs of memory traffic, worth a task of its own.
const TASK_BYTES: usize = 128 << 10;

/// Tasks per thread: more balance better when a core is shared, fewer cost less.
const TASKS_PER_THREAD: usize = 4;

thread_local! {
    /// Packed activations of the thread that calls. Kept, because fresh memory costs more than the packing.
    static ROWS: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
}

/// How a packed weight is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightDtype {
    /// 4 bytes.
    F32,
    /// 2 bytes, rounded to nearest even.
    Bf16,
}

/// A matrix `[O, I]`, ready to be multiplied with.
pub struct PackedWeight {
    lines: Vec<Line>,
    dtype: WeightDtype,
    inner: usize,
    out: usize,
}

impl PackedWeight {
    /// Packs a matrix whose rows `fill(first_row, rows)` writes, `rows` being whole rows of `inner` values; called from
    /// several threads, at most [`PANEL`] rows at a time, so that no second copy of the matrix is ever held.
    ///
    /// **Errors**: the first one of `fill`.
    pub fn pack<E: Send>(
        (out, inner): (usize, usize),
        dtype: WeightDtype,
        fill: impl Fn(usize, &mut [f32]) -> std::result::Result<(), E> + Sync,
    ) -> std::result::Result<Self, E> {
        let panel_lines = panel_lines(inner, dtype);
        let mut lines = tile::zeros(panel_lines * out.div_ceil(PANEL));
        if panel_lines > 0 {
            lines.par_chunks_mut(panel_lines).enumerate().try_for_each_init(Vec::new, |rows, (panel, lines)| {
                let first = panel * PANEL;
                rows.resize(PANEL.min(out - first) * inner, 0.0);
                fill(first, rows)?;
                let mut parts = [&[][..]; PANEL];
                parts.iter_mut().zip(rows.chunks_exact(inner)).for_each(|(part, row)| *part = row);
                tile::fill_panel(dtype, &parts[..PANEL.min(out - first)], lines);
                Ok(())
            })?;
        }
        Ok(Self { lines, dtype, inner, out })
    }

    /// The matrix of a tensor `[O, I]`.
    pub fn from_tensor(w: &Tensor, dtype: WeightDtype) -> Result<Self> {
        let (out, inner) = w.dims2()?;
        let w = read(w)?;
        Self::pack((out, inner), dtype, |first, rows| {
            rows.copy_from_slice(&w[first * inner..first * inner + rows.len()]);
            Ok(())
        })
    }

    /// `(O, I)`
    pub fn dims(&self) -> (usize, usize) {
        (self.out, self.inner)
    }

    /// Bytes that it holds.
    pub fn bytes(&self) -> usize {
        size_of_val(self.lines.as_slice())
    }

    /// The linear layer.
    ///
    /// **Shapes**: input `[N, I]`, `bias [O]` → `[N, O]`.
    pub fn forward(&self, input: Input, bias: Option<&Tensor>) -> Result<Tensor> {
        let bias = self.read_bias(bias)?;
        input.with_rows(self.inner, |x, rows| {
            let y = self.multiply_to_vec(tile::best(self.dtype), &x, rows, bias.as_deref());
            tensor(y, (rows, self.out))
        })
    }

    /// The same without bias, to the host: `[N · O]` row-major, behind what `y` holds already.
    pub fn append_to(&self, input: Input, y: &mut Vec<f32>) -> Result<()> {
        input.with_rows(self.inner, |x, rows| {
            self.multiply_behind(tile::best(self.dtype), &x, rows, None, y);
            Ok(())
        })
    }

    /// The linear layer into the first rows of memory that is there already: `y[..N] = x · wᵀ + bias`.
    ///
    /// **Shapes**: `y [≥ N, O]`, a storage of its own.
    pub fn forward_into(&self, input: Input, bias: Option<&Tensor>, y: &Tensor) -> Result<()> {
        self.write_rows(input, bias, false, y)
    }

    /// Adds the linear layer to a residual stream in place: `y[..N] = (x · wᵀ + bias) + y[..N]`.
    ///
    /// **Shapes**: `y [≥ N, O]`, a storage of its own.
    pub fn add_to(&self, input: Input, bias: Option<&Tensor>, y: &Tensor) -> Result<()> {
        self.write_rows(input, bias, true, y)
    }

    fn write_rows(&self, input: Input, bias: Option<&Tensor>, accumulate: bool, y: &Tensor) -> Result<()> {
        let bias = self.read_bias(bias)?;
        let (capacity, out) = y.dims2()?;
        input.with_rows(self.inner, |x, rows| {
            if out != self.out || capacity < rows {
                bail!("linear: the result is {:?}, expected [{rows}, {}]", y.dims(), self.out)
            }
            write(y, |y| {
                let place = Place::new(&mut y[..rows * out], rows, out, bias.as_deref(), accumulate);
                self.multiply(tile::best(self.dtype), &x, rows, &place);
                Ok(())
            })
        })
    }

    fn read_bias(&self, bias: Option<&Tensor>) -> Result<Option<impl std::ops::Deref<Target = [f32]> + Sync>> {
        if let Some(bias) = bias
            && bias.dims1()? != self.out
        {
            bail!("linear: the bias has {} values, expected {}", bias.dims1()?, self.out)
        }
        bias.map(read).transpose()
    }

    /// Rows of the matrix, as an embedding has them.
    ///
    /// **Shapes**: `rows [N]` → `[N, I]`.
    pub fn gather(&self, rows: &[u32]) -> Result<Tensor> {
        if let Some(row) = rows.iter().find(|&&row| row as usize >= self.out) {
            bail!("row {row} is past the end of a table of {} rows", self.out)
        }
        let panel_lines = panel_lines(self.inner, self.dtype);
        let mut y = vec![0f32; rows.len() * self.inner];
        y.par_chunks_mut(self.inner.max(1)).with_min_len(4).zip(rows).for_each(|(y, &row)| {
            let (panel, lane) = (row as usize / PANEL, row as usize % PANEL);
            let words = self.lines[panel * panel_lines..].chunks_exact(PANEL / Line::WORDS);
            let words = words.map(|step| step[lane / Line::WORDS].0[lane % Line::WORDS]);
            match self.dtype {
                WeightDtype::F32 => y.iter_mut().zip(words).for_each(|(y, word)| *y = f32::from_bits(word)),
                WeightDtype::Bf16 => y.chunks_mut(2).zip(words).for_each(|(y, word)| {
                    let pair = [word << 16, word & 0xffff_0000].map(f32::from_bits);
                    y.copy_from_slice(&pair[..y.len()]);
                }),
            }
        });
        tensor(y, (rows.len(), self.inner))
    }

    /// `x · wᵀ + bias` in memory of its own.
    fn multiply_to_vec(&self, kernel: Kernel, x: &Rows, rows: usize, bias: Option<&[f32]>) -> Vec<f32> {
        let mut y = Vec::new();
        self.multiply_behind(kernel, x, rows, bias, &mut y);
        y
    }

    /// `x · wᵀ + bias` behind the values of `y`, in memory that is not cleared first.
    fn multiply_behind(&self, kernel: Kernel, x: &Rows, rows: usize, bias: Option<&[f32]>, y: &mut Vec<f32>) {
        y.reserve(rows * self.out);
        let start = y.spare_capacity_mut().as_mut_ptr().cast();
        self.multiply(
            kernel,
            x,
            rows,
            &Place { start, rows, out: self.out, stride: self.out, bias, accumulate: false },
        );
        // SAFETY: every block of every panel was put in its place, so all `rows * out` values are written.
        unsafe { y.set_len(y.len() + rows * self.out) };
    }

    /// `x · wᵀ` and what follows, by one kernel.
    fn multiply(&self, kernel: Kernel, x: &Rows, rows: usize, place: &Place) {
        if rows * self.out == 0 {
            return;
        }
        let blocks = Blocks::new(rows, kernel.max_rows);
        let steps = kernel.steps(self.inner);
        let mut packed = ROWS.take();
        pack_rows(&kernel, x, self.inner, &blocks, &mut packed);
        let panels = self.out.div_ceil(PANEL);
        let panel_lines = panel_lines(self.inner, self.dtype);
        let panels_per_task = panels_per_task(panels, panel_lines * size_of::<Line>(), rows);
        let task = |first: usize| {
            let range = first..panels.min(first + panels_per_task);
            let lines = &self.lines[range.start * panel_lines..range.end * panel_lines];
            sweep(kernel, &packed, lines, steps, (&blocks, 0..blocks.count), range, place);
        };
        if panels_per_task >= panels {
            task(0);
        } else {
            let tasks = panels.div_ceil(panels_per_task);
            (0..tasks).into_par_iter().with_max_len(1).for_each(|index| task(index * panels_per_task));
        }
        ROWS.set(packed);
    }
}

/// Multiplies a range of packed blocks of rows with packed panels (`lines` begins with the first of `panels`) and puts
/// the tiles in their place: a chunk of blocks that fits the cache, all panels, then the next chunk.
pub(super) fn sweep(
    kernel: Kernel,
    packed: &[u32],
    lines: &[Line],
    steps: usize,
    (blocks, block_range): (&Blocks, Range<usize>),
    panels: Range<usize>,
    place: &Place,
) {
    let words = steps * kernel.words_per_step();
    let panel_lines = steps * PANEL / Line::WORDS;
    let blocks_per_chunk = (CHUNK_WORDS / (words * kernel.max_rows).max(1)).max(1);
    let mut sums: Sums = [[0.0; PANEL]; MAX_ROWS];
    for first_block in block_range.clone().step_by(blocks_per_chunk) {
        for (index, panel) in panels.clone().enumerate() {
            let lines = &lines[index * panel_lines..(index + 1) * panel_lines];
            for block in first_block..block_range.end.min(first_block + blocks_per_chunk) {
                let (start, count) = blocks.span(block);
                kernel.run(&packed[start * words..(start + count) * words], lines, steps, count, &mut sums);
                place.put(start, panel, &sums[..count]);
            }
        }
    }
}

/// The result `[rows, out]`, written tile by tile from several threads.
pub(super) struct Place<'a> {
    start: *mut f32,
    rows: usize,
    out: usize,
    /// From one row to the next.
    stride: usize,
    /// `[O]`, added to the sums.
    bias: Option<&'a [f32]>,
    /// Whether what is there already is added at last.
    accumulate: bool,
}

// SAFETY: `put` is called once per tile, and tiles do not overlap.
unsafe impl Sync for Place<'_> {}

impl<'a> Place<'a> {
    pub(super) fn new(y: &'a mut [f32], rows: usize, out: usize, bias: Option<&'a [f32]>, accumulate: bool) -> Self {
        assert_eq!(y.len(), rows * out);
        Self { bias, ..Self::among(y, (rows, out, out), accumulate) }
    }

    /// Columns of wider rows: `y` begins with the first value of the result and ends with its last, or later.
    pub(super) fn among(y: &'a mut [f32], (rows, out, stride): (usize, usize, usize), accumulate: bool) -> Self {
        assert!(out <= stride && (rows == 0 || y.len() >= (rows - 1) * stride + out));
        Self { start: y.as_mut_ptr(), rows, out, stride, bias: None, accumulate }
    }

    fn put(&self, first_row: usize, panel: usize, sums: &[[f32; PANEL]]) {
        let column = panel * PANEL;
        let width = PANEL.min(self.out - column);
        assert!(first_row + sums.len() <= self.rows);
        for (row, sums) in (first_row..).zip(sums) {
            // SAFETY: `row < rows`.
            let place = unsafe { self.start.add(row * self.stride + column) };
            if self.bias.is_none() && !self.accumulate {
                // SAFETY: `column + width <= out`, and nobody else touches this tile.
                unsafe { copy(sums, place, width) };
                continue;
            }
            let mut values = *sums;
            if let Some(bias) = self.bias {
                add(&mut values, &bias[column..column + width]);
            }
            // SAFETY: as above; where the tile is read it was handed in as a slice.
            unsafe {
                if self.accumulate {
                    add(&mut values, std::slice::from_raw_parts(place, width));
                }
                copy(&values, place, width);
            }
        }
    }
}

/// Copies the first `width` values.
///
/// # Safety
///
/// `place` is writable for `width` values.
#[inline(always)]
unsafe fn copy(values: &[f32; PANEL], place: *mut f32, width: usize) {
    if width == PANEL {
        // Quarters of known size: registers, where the whole would be a call.
        let quarters = values.as_chunks::<{ PANEL / 4 }>().0;
        for (index, quarter) in quarters.iter().enumerate() {
            // SAFETY: `4 · PANEL / 4 = width`.
            unsafe { place.add(index * PANEL / 4).cast::<[f32; PANEL / 4]>().write_unaligned(*quarter) };
        }
    } else {
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), place, width) };
    }
}

#[inline(always)]
fn add(values: &mut [f32; PANEL], more: &[f32]) {
    if let Ok(more) = <&[f32; PANEL]>::try_from(more) {
        values.iter_mut().zip(more).for_each(|(value, more)| *value += more);
    } else {
        values.iter_mut().zip(more).for_each(|(value, more)| *value += more);
    }
}

/// Rows cut into blocks of nearly equal size: 13 rows are 7 and 6, not 12 and 1.
pub(super) struct Blocks {
    count: usize,
    base: usize,
    /// How many blocks have one row more than `base`.
    longer: usize,
}

impl Blocks {
    pub(super) fn new(rows: usize, max_rows: usize) -> Self {
        let count = rows.div_ceil(max_rows);
        Self { count, base: rows / count, longer: rows % count }
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// First row and number of rows.
    pub(super) fn span(&self, block: usize) -> (usize, usize) {
        (block * self.base + block.min(self.longer), self.base + usize::from(block < self.longer))
    }
}

/// The activations as the kernel reads them: per block `[steps, rows, words per step]`, so that a block is one run of
/// memory whatever the width of a row is.
fn pack_rows(kernel: &Kernel, x: &Rows, inner: usize, blocks: &Blocks, packed: &mut Vec<u32>) {
    const WORTH_A_THREAD: usize = 1 << 14;
    let width = kernel.steps(inner) * kernel.words_per_step();
    let (last, count) = blocks.span(blocks.count - 1);
    let rows = last + count;
    if packed.len() < rows * width {
        packed.resize(rows * width, 0);
    }
    let mut parts = Vec::with_capacity(blocks.count);
    let mut rest = &mut packed[..rows * width];
    for block in 0..blocks.count {
        let (start, count) = blocks.span(block);
        let (part, tail) = rest.split_at_mut(count * width);
        parts.push((start, count, part));
        rest = tail;
    }
    let pack = |scratch: &mut Vec<f32>, (start, count, part): (usize, usize, &mut [u32])| {
        let mut rows = [&[][..]; MAX_ROWS];
        let values = x.rows(start, count, inner, scratch);
        rows[..count].iter_mut().enumerate().for_each(|(row, x)| *x = &values[row * inner..(row + 1) * inner]);
        kernel.pack_rows(&rows[..count], part);
    };
    if rows * inner < WORTH_A_THREAD || parts.len() == 1 {
        let mut scratch = Vec::new();
        parts.into_iter().for_each(|part| pack(&mut scratch, part));
    } else {
        parts.into_par_iter().for_each_init(Vec::new, pack);
    }
}

fn panels_per_task(panels: usize, panel_bytes: usize, rows: usize) -> usize {
    let threads = rayon::current_num_threads();
    if threads == 1 {
        return panels;
    }
    // Many rows make a panel worth more than its bytes; four rows a panel are still about the memory's speed.
    let worth = panel_bytes * rows.div_ceil(4);
    let balanced = panels.div_ceil(threads * TASKS_PER_THREAD);
    balanced.max(TASK_BYTES.div_ceil(worth.max(1))).min(panels)
}

/// Lines of one panel.
fn panel_lines(inner: usize, dtype: WeightDtype) -> usize {
    let steps = match dtype {
        WeightDtype::F32 => inner,
        WeightDtype::Bf16 => inner.div_ceil(2),
    };
    steps * PANEL / Line::WORDS
}

#[cfg(test)]
pub(super) mod tests;
