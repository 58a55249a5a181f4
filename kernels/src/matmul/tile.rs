//! The kernels of a packed product: one block of rows times one panel of weights, chosen at run time.
//!
//! Every kernel keeps one accumulator per row and output and adds the products in the order of the inner dimension, so
//! a row's bits are the same in a block of any size.

use std::{
    alloc::{Layout, alloc_zeroed, handle_alloc_error},
    ops::Range,
};

use super::packed::WeightDtype;
#[cfg(target_arch = "x86_64")]
use super::x86;
use crate::{
    bf16::rounded,
    simd::{fma, simd_fn},
};

/// Outputs of a panel: two AVX-512 registers.
pub(super) const PANEL: usize = 32;

/// Most rows that any kernel takes at once.
pub(super) const MAX_ROWS: usize = 12;

/// One cache line of weights: 16 values in f32, or 16 pairs in bf16.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line(pub [u32; Line::WORDS]);

impl Line {
    pub(super) const WORDS: usize = 16;
    pub(super) const ZERO: Self = Self([0; Self::WORDS]);
}

/// Lines of zeros. The system hands out cleared pages, so that the thread that first writes them pays for them.
pub(super) fn zeros(count: usize) -> Vec<Line> {
    if count == 0 {
        return Vec::new();
    }
    let layout = Layout::array::<Line>(count).expect("a matrix fits the address space");
    // SAFETY: the layout is not empty, and all bits zero are a `Line`.
    unsafe {
        let start = alloc_zeroed(layout);
        if start.is_null() {
            handle_alloc_error(layout);
        }
        Vec::from_raw_parts(start.cast(), count, count)
    }
}

/// A tile of results; only the block's rows are meant. Kernels overwrite them.
pub(super) type Sums = [[f32; PANEL]; MAX_ROWS];

/// Adds up `steps` steps: packed rows, a panel, rows of the block, results.
type Run = fn(&[u32], &[Line], usize, usize, &mut Sums);

/// How a kernel wants its operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operands {
    /// f32 times f32.
    F32,
    /// bf16 weights in pairs, widened; f32 activations in pairs.
    Widened,
    /// Both bf16 in pairs.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    Bf16,
}

/// A kernel and what it works on.
#[derive(Clone, Copy)]
pub(super) struct Kernel {
    /// Rows of a block at most.
    pub max_rows: usize,
    operands: Operands,
    run: Run,
    pub name: &'static str,
}

impl Kernel {
    /// Steps along the inner dimension.
    pub(super) fn steps(&self, inner: usize) -> usize {
        match self.operands {
            Operands::F32 => inner,
            Operands::Widened | Operands::Bf16 => inner.div_ceil(2),
        }
    }

    /// Words of one row in one step.
    pub(super) fn words_per_step(&self) -> usize {
        if self.operands == Operands::Widened { 2 } else { 1 }
    }

    /// Where along the inner dimension (`len` long) step `step` reads: one index, or two of a pair, the last of which may
    /// be missing.
    pub(super) fn depth(&self, step: usize, len: usize) -> Range<usize> {
        match self.operands {
            Operands::F32 => step..step + 1,
            Operands::Widened | Operands::Bf16 => 2 * step..len.min(2 * step + 2),
        }
    }

    /// Packs rows of activations of one length into `[steps, rows, words per step]`.
    pub(super) fn pack_rows(&self, rows: &[&[f32]], part: &mut [u32]) {
        let inner = rows[0].len();
        if inner == 0 {
            return;
        }
        match self.operands {
            Operands::F32 => interleave(rows, part, f32::to_bits),
            Operands::Bf16 => {
                let steps = self.steps(inner);
                let mut pairs = vec![0u32; rows.len() * steps];
                pairs.chunks_exact_mut(steps).zip(rows).for_each(|(pairs, row)| round_pairs(row, pairs));
                let mut packed = [&[][..]; MAX_ROWS];
                packed.iter_mut().zip(pairs.chunks_exact(steps)).for_each(|(row, pairs)| *row = pairs);
                interleave(&packed[..rows.len()], part, |pair| pair);
            }
            Operands::Widened => {
                for (row, x) in rows.iter().enumerate() {
                    for (words, values) in part.chunks_exact_mut(2 * rows.len()).zip(x.chunks(2)) {
                        words[2 * row] = values[0].to_bits();
                        words[2 * row + 1] = values.get(1).map_or(0, |value| value.to_bits());
                    }
                }
            }
        }
    }

    /// Packs one step of activations whose rows lie side by side: the values of all rows at the step's index, and at its
    /// second one where it has one. `part [rows, words per step]`.
    pub(super) fn pack_columns(&self, first: &[f32], second: Option<&[f32]>, part: &mut [u32]) {
        match self.operands {
            Operands::F32 => {
                match (<&[f32; MAX_ROWS]>::try_from(first), <&mut [u32; MAX_ROWS]>::try_from(&mut *part)) {
                    // Of known size: registers, no call.
                    (Ok(first), Ok(part)) => *part = first.map(f32::to_bits),
                    _ => part.iter_mut().zip(first).for_each(|(word, value)| *word = value.to_bits()),
                }
            }
            Operands::Bf16 => pack_pairs(first, second.unwrap_or(&[]), part),
            Operands::Widened => {
                for (row, (words, value)) in part.as_chunks_mut::<2>().0.iter_mut().zip(first).enumerate() {
                    *words = [value.to_bits(), second.map_or(0, |second| second[row].to_bits())];
                }
            }
        }
    }

    /// Packs one step of weights whose outputs lie side by side, zeros past the last one.
    pub(super) fn pack_weights(&self, first: &[f32], second: Option<&[f32]>, lines: &mut [Line]) {
        let mut words = [0u32; PANEL];
        match self.operands {
            Operands::F32 if first.len() == PANEL => {
                // Of known size: registers, no call.
                for (line, values) in lines.iter_mut().zip(first.as_chunks::<{ Line::WORDS }>().0) {
                    line.0 = values.map(f32::to_bits);
                }
                return;
            }
            Operands::F32 => words.iter_mut().zip(first).for_each(|(word, value)| *word = value.to_bits()),
            Operands::Widened | Operands::Bf16 => pack_pairs(first, second.unwrap_or(&[]), &mut words[..first.len()]),
        }
        lines.iter_mut().zip(words.as_chunks::<{ Line::WORDS }>().0).for_each(|(line, words)| line.0 = *words);
    }

    /// Packs up to [`PANEL`] rows of a weight matrix, of one length, into a panel; zeros past the last one.
    pub(super) fn pack_weight_rows(&self, rows: &[&[f32]], lines: &mut [Line]) {
        let dtype = if self.operands == Operands::F32 { WeightDtype::F32 } else { WeightDtype::Bf16 };
        fill_panel(dtype, rows, lines);
    }

    /// Whether this is the plain loop for any processor.
    pub(super) fn is_portable(&self) -> bool {
        self.name == "portable"
    }

    /// Multiplies a block of `count` packed rows with a panel.
    #[inline]
    pub(super) fn run(&self, x: &[u32], panel: &[Line], steps: usize, count: usize, sums: &mut Sums) {
        assert!(count <= self.max_rows && x.len() == steps * count * self.words_per_step());
        assert!(panel.len() == steps * PANEL / Line::WORDS);
        (self.run)(x, panel, steps, count, sums);
    }
}

/// The kernels that this processor can run for weights of `dtype`, best first.
pub(super) fn kernels(dtype: WeightDtype) -> Vec<Kernel> {
    let mut found = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        let avx512 = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
        let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        let mut add = |available: bool, name, operands, max_rows, run: Run| {
            if available {
                found.push(Kernel { max_rows, operands, run, name });
            }
        };
        match dtype {
            WeightDtype::F32 => {
                add(avx512, "avx512", Operands::F32, 12, x86::avx512_f32);
                add(avx2, "avx2", Operands::F32, 3, x86::avx2_f32);
            }
            WeightDtype::Bf16 => {
                let bf16 = avx512 && is_x86_feature_detected!("avx512bf16");
                add(bf16, "avx512bf16", Operands::Bf16, 12, x86::avx512_bf16);
                add(avx512, "avx512", Operands::Widened, 12, x86::avx512_widened);
                add(avx2, "avx2", Operands::Widened, 3, x86::avx2_widened);
            }
        }
    }
    found.push(match dtype {
        WeightDtype::F32 => Kernel { max_rows: 4, operands: Operands::F32, run: portable_f32, name: "portable" },
        WeightDtype::Bf16 => {
            Kernel { max_rows: 4, operands: Operands::Widened, run: portable_widened, name: "portable" }
        }
    });
    found
}

/// The first of [`kernels`].
pub(super) fn best(dtype: WeightDtype) -> Kernel {
    use std::sync::OnceLock;
    static BEST: [OnceLock<Kernel>; 2] = [OnceLock::new(), OnceLock::new()];
    *BEST[dtype as usize].get_or_init(|| kernels(dtype)[0])
}

/// Writes up to [`PANEL`] rows of a matrix, of one length, into their panel; zeros past the last one.
pub(super) fn fill_panel(dtype: WeightDtype, rows: &[&[f32]], lines: &mut [Line]) {
    match dtype {
        WeightDtype::F32 => fill_panel_f32(rows, lines),
        WeightDtype::Bf16 => fill_panel_bf16(rows, lines),
    }
}

simd_fn! {
    fn fill_panel_f32(rows: &[&[f32]], lines: &mut [Line]) {
        let _ = FMA;
        const LINES: usize = PANEL / Line::WORDS;
        for (first, rows) in (0..PANEL).step_by(Line::WORDS).zip(rows.chunks(Line::WORDS).chain([&[][..]])) {
            let lines = lines[first / Line::WORDS..].iter_mut().step_by(LINES);
            // Sixteen streams at a time, each read in order.
            for (step, line) in lines.enumerate() {
                *line = Line::ZERO;
                line.0.iter_mut().zip(rows).for_each(|(word, row)| *word = row[step].to_bits());
            }
        }
    }
}

simd_fn! {
    fn fill_panel_bf16(rows: &[&[f32]], lines: &mut [Line]) {
        let _ = FMA;
        const LINES: usize = PANEL / Line::WORDS;
        for (first, rows) in (0..PANEL).step_by(Line::WORDS).zip(rows.chunks(Line::WORDS).chain([&[][..]])) {
            let lines = lines[first / Line::WORDS..].iter_mut().step_by(LINES);
            for (step, line) in lines.enumerate() {
                *line = Line::ZERO;
                for (word, row) in line.0.iter_mut().zip(rows) {
                    *word = pair(row[2 * step], row.get(2 * step + 1).copied().unwrap_or(0.0));
                }
            }
        }
    }
}

simd_fn! {
    /// Pairs of two rows, lane by lane; an empty second row counts as zeros.
    fn pack_pairs(first: &[f32], second: &[f32], words: &mut [u32]) {
        let _ = FMA;
        if second.is_empty() {
            words.iter_mut().zip(first).for_each(|(word, first)| *word = pair(*first, 0.0));
        } else {
            words.iter_mut().zip(first).zip(second).for_each(|((word, first), second)| *word = pair(*first, *second));
        }
    }
}

/// Rows side by side, step by step: `part [steps, rows]`.
fn interleave<T: Copy>(rows: &[&[T]], part: &mut [u32], word: impl Fn(T) -> u32) {
    for (step, words) in part.chunks_exact_mut(rows.len()).enumerate() {
        for (word_, row) in words.iter_mut().zip(rows) {
            *word_ = word(row[step]);
        }
    }
}

simd_fn! {
    /// A row as bf16 pairs; an odd last value is paired with 0.
    fn round_pairs(x: &[f32], pairs: &mut [u32]) {
        let _ = FMA;
        let (whole, tail) = x.as_chunks::<2>();
        for (word, values) in pairs.iter_mut().zip(whole) {
            *word = pair(values[0], values[1]);
        }
        if let ([last], Some(word)) = (tail, pairs.last_mut()) {
            *word = pair(*last, 0.0);
        }
    }
}

/// Two values as bf16 in one word, the first in the low half.
#[inline(always)]
pub(super) fn pair(low: f32, high: f32) -> u32 {
    rounded(low) >> 16 | rounded(high) & 0xffff_0000
}

simd_fn! {
    fn portable_f32(x: &[u32], panel: &[Line], steps: usize, count: usize, sums: &mut Sums) {
        debug_assert_eq!(x.len(), steps * count);
        sums[..count].as_flattened_mut().fill(0.0);
        for (x, lines) in x.chunks_exact(count).zip(panel.chunks_exact(PANEL / Line::WORDS)) {
            for (x, sums) in x.iter().zip(sums.iter_mut()) {
                let x = f32::from_bits(*x);
                for (sums, line) in sums.as_chunks_mut::<{ Line::WORDS }>().0.iter_mut().zip(lines) {
                    for (sum, w) in sums.iter_mut().zip(&line.0) {
                        *sum = fma::<FMA>(x, f32::from_bits(*w), *sum);
                    }
                }
            }
        }
    }
}

simd_fn! {
    fn portable_widened(x: &[u32], panel: &[Line], steps: usize, count: usize, sums: &mut Sums) {
        debug_assert_eq!(x.len(), 2 * steps * count);
        sums[..count].as_flattened_mut().fill(0.0);
        for (x, lines) in x.chunks_exact(2 * count).zip(panel.chunks_exact(PANEL / Line::WORDS)) {
            for (x, sums) in x.as_chunks::<2>().0.iter().zip(sums.iter_mut()) {
                let [even, odd] = x.map(f32::from_bits);
                for (sums, line) in sums.as_chunks_mut::<{ Line::WORDS }>().0.iter_mut().zip(lines) {
                    for (sum, w) in sums.iter_mut().zip(&line.0) {
                        *sum = fma::<FMA>(even, f32::from_bits(w << 16), *sum);
                        *sum = fma::<FMA>(odd, f32::from_bits(w & 0xffff_0000), *sum);
                    }
                }
            }
        }
    }
}
