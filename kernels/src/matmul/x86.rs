//! The kernels of a packed product for AVX-512, AVX-512-BF16 and AVX2.
//!
//! A block of R rows times a panel of 32 outputs is `2·R` AVX-512 registers of sums (R up to 12 of 32 registers) or
//! `4·R` of AVX2 (R up to 3 of 16). Each weight register is loaded once per step and used R times. `kernels` in the
//! parent offers a function only to a processor that has its instructions.

use std::arch::x86_64::*;

use super::tile::{Line, MAX_ROWS, PANEL, Sums};

/// How far ahead of the sums the panel is fetched, in bytes: what the memory takes to answer.
///
/// Measured at 1,024 to 8,192 on a Zen 4: 4,096 is best at every number of rows, by up to a quarter at one row.
const PREFETCH_BYTES: usize = 4096;

/// Calls `$kernel::<R>` for `R = count`, after checking what its pointers may reach.
macro_rules! by_rows {
    ($kernel:ident, $words:expr, ($x:ident, $panel:ident, $steps:ident, $count:ident, $sums:ident), $($rows:literal)+) => {{
        assert!($x.len() >= $steps * $count * $words && $panel.len() * Line::WORDS >= $steps * PANEL);
        match $count {
            // SAFETY: the operands are long enough (above), and `kernels` has found the instructions.
            $($rows => unsafe { $kernel::<$rows>($x.as_ptr(), $panel.as_ptr().cast(), $steps, $sums) },)+
            _ => unreachable!("blocks have at most {MAX_ROWS} rows"),
        }
    }};
}

pub(super) fn avx512_f32(x: &[u32], panel: &[Line], steps: usize, count: usize, sums: &mut Sums) {
    by_rows!(f32_512, 1, (x, panel, steps, count, sums), 1 2 3 4 5 6 7 8 9 10 11 12);
}

pub(super) fn avx512_bf16(x: &[u32], panel: &[Line], steps: usize, count: usize, sums: &mut Sums) {
    by_rows!(bf16_512, 1, (x, panel, steps, count, sums), 1 2 3 4 5 6 7 8 9 10 11 12);
}

pub(super) fn avx512_widened(x: &[u32], panel: &[Line], steps: usize, count: usize, sums: &mut Sums) {
    by_rows!(widened_512, 2, (x, panel, steps, count, sums), 1 2 3 4 5 6 7 8 9 10 11 12);
}

pub(super) fn avx2_f32(x: &[u32], panel: &[Line], steps: usize, count: usize, sums: &mut Sums) {
    by_rows!(f32_256, 1, (x, panel, steps, count, sums), 1 2 3);
}

pub(super) fn avx2_widened(x: &[u32], panel: &[Line], steps: usize, count: usize, sums: &mut Sums) {
    by_rows!(widened_256, 2, (x, panel, steps, count, sums), 1 2 3);
}

/// Asks for the lines of the panel that will be needed soon; past its end lies the next panel or nothing, and a
/// prefetch of nothing is no fault.
#[inline(always)]
fn prefetch(panel: *const f32) {
    let ahead = panel.wrapping_byte_add(PREFETCH_BYTES).cast::<i8>();
    // SAFETY: a prefetch reads nothing that the program sees and never faults.
    unsafe {
        _mm_prefetch::<_MM_HINT_T0>(ahead);
        _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(64));
    }
}

/// `x [steps, R]`, `panel [steps, 32]`.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn f32_512<const R: usize>(x: *const u32, panel: *const f32, steps: usize, sums: &mut Sums) {
    let mut acc = [[_mm512_setzero_ps(); 2]; R];
    let (mut x, mut panel) = (x.cast::<f32>(), panel);
    for _ in 0..steps {
        // SAFETY: the caller's slices hold `steps` steps.
        unsafe {
            prefetch(panel);
            let w = [_mm512_load_ps(panel), _mm512_load_ps(panel.add(16))];
            for (row, acc) in acc.iter_mut().enumerate() {
                let x = _mm512_set1_ps(*x.add(row));
                acc[0] = _mm512_fmadd_ps(x, w[0], acc[0]);
                acc[1] = _mm512_fmadd_ps(x, w[1], acc[1]);
            }
            (x, panel) = (x.add(R), panel.add(PANEL));
        }
    }
    store_512(&acc, sums);
}

/// `x [steps, R]` pairs, `panel [steps, 32]` pairs.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn bf16_512<const R: usize>(x: *const u32, panel: *const f32, steps: usize, sums: &mut Sums) {
    let mut acc = [[_mm512_setzero_ps(); 2]; R];
    let (mut x, mut panel) = (x.cast::<i32>(), panel);
    for _ in 0..steps {
        // SAFETY: the caller's slices hold `steps` steps; the vectors are bits of the same size.
        unsafe {
            prefetch(panel);
            let w: [__m512bh; 2] =
                [_mm512_load_ps(panel), _mm512_load_ps(panel.add(16))].map(|it| std::mem::transmute(it));
            for (row, acc) in acc.iter_mut().enumerate() {
                let x: __m512bh = std::mem::transmute(_mm512_set1_epi32(*x.add(row)));
                acc[0] = _mm512_dpbf16_ps(acc[0], x, w[0]);
                acc[1] = _mm512_dpbf16_ps(acc[1], x, w[1]);
            }
            (x, panel) = (x.add(R), panel.add(PANEL));
        }
    }
    store_512(&acc, sums);
}

/// `x [steps, R, 2]`, `panel [steps, 32]` pairs.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn widened_512<const R: usize>(x: *const u32, panel: *const f32, steps: usize, sums: &mut Sums) {
    let mut acc = [[_mm512_setzero_ps(); 2]; R];
    let (mut x, mut panel) = (x.cast::<f32>(), panel);
    let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
    for _ in 0..steps {
        // SAFETY: the caller's slices hold `steps` steps.
        unsafe {
            prefetch(panel);
            let pairs = [_mm512_load_si512(panel.cast()), _mm512_load_si512(panel.add(16).cast())];
            let even = pairs.map(|pairs| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)));
            let odd = pairs.map(|pairs| _mm512_castsi512_ps(_mm512_and_si512(pairs, upper)));
            for (row, acc) in acc.iter_mut().enumerate() {
                let (first, second) = (_mm512_set1_ps(*x.add(2 * row)), _mm512_set1_ps(*x.add(2 * row + 1)));
                for half in 0..2 {
                    acc[half] = _mm512_fmadd_ps(second, odd[half], _mm512_fmadd_ps(first, even[half], acc[half]));
                }
            }
            (x, panel) = (x.add(2 * R), panel.add(PANEL));
        }
    }
    store_512(&acc, sums);
}

#[target_feature(enable = "avx512f,avx512bw")]
fn store_512<const R: usize>(acc: &[[__m512; 2]; R], sums: &mut Sums) {
    for (acc, sums) in acc.iter().zip(sums) {
        for (acc, sums) in acc.iter().zip(sums.as_chunks_mut::<16>().0) {
            // SAFETY: 16 values each.
            unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), *acc) };
        }
    }
}

/// `x [steps, R]`, `panel [steps, 32]`.
#[target_feature(enable = "avx2,fma")]
unsafe fn f32_256<const R: usize>(x: *const u32, panel: *const f32, steps: usize, sums: &mut Sums) {
    let mut acc = [[_mm256_setzero_ps(); 4]; R];
    let (mut x, mut panel) = (x.cast::<f32>(), panel);
    for _ in 0..steps {
        // SAFETY: the caller's slices hold `steps` steps.
        unsafe {
            prefetch(panel);
            let rows: [__m256; R] = std::array::from_fn(|row| _mm256_set1_ps(*x.add(row)));
            for quarter in 0..4 {
                let w = _mm256_load_ps(panel.add(8 * quarter));
                for (row, acc) in acc.iter_mut().enumerate() {
                    acc[quarter] = _mm256_fmadd_ps(rows[row], w, acc[quarter]);
                }
            }
            (x, panel) = (x.add(R), panel.add(PANEL));
        }
    }
    store_256(&acc, sums);
}

/// `x [steps, R, 2]`, `panel [steps, 32]` pairs.
#[target_feature(enable = "avx2,fma")]
unsafe fn widened_256<const R: usize>(x: *const u32, panel: *const f32, steps: usize, sums: &mut Sums) {
    let mut acc = [[_mm256_setzero_ps(); 4]; R];
    let (mut x, mut panel) = (x.cast::<f32>(), panel);
    let upper = _mm256_set1_epi32(0xffff_0000_u32 as i32);
    for _ in 0..steps {
        // SAFETY: the caller's slices hold `steps` steps.
        unsafe {
            prefetch(panel);
            for quarter in 0..4 {
                let pairs = _mm256_load_si256(panel.add(8 * quarter).cast());
                let even = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs));
                let odd = _mm256_castsi256_ps(_mm256_and_si256(pairs, upper));
                for (row, acc) in acc.iter_mut().enumerate() {
                    let (first, second) = (_mm256_set1_ps(*x.add(2 * row)), _mm256_set1_ps(*x.add(2 * row + 1)));
                    acc[quarter] = _mm256_fmadd_ps(second, odd, _mm256_fmadd_ps(first, even, acc[quarter]));
                }
            }
            (x, panel) = (x.add(2 * R), panel.add(PANEL));
        }
    }
    store_256(&acc, sums);
}

#[target_feature(enable = "avx2,fma")]
fn store_256<const R: usize>(acc: &[[__m256; 4]; R], sums: &mut Sums) {
    for (acc, sums) in acc.iter().zip(sums) {
        for (acc, sums) in acc.iter().zip(sums.as_chunks_mut::<8>().0) {
            // SAFETY: 8 values each.
            unsafe { _mm256_storeu_ps(sums.as_mut_ptr(), *acc) };
        }
    }
}
