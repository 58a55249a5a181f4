//! Matrix products: the linear layer forward, and its gradients accumulated in place.
//!
//! `y[N, O] = x[N, I] · w[O, I]ᵀ + bias`. Weights stay as checkpoints hold them. Operations: 2·N·I·O each. Training
//! multiplies with the tiles of [`product`], inference packs its weights once: [`PackedWeight`]. A processor for which
//! there are no such tiles (neither AVX-512 nor AVX2) trains with the `gemm` crate instead.

mod columns;
mod input;
mod packed;
mod product;
mod quantized;
mod tile;
#[cfg(target_arch = "x86_64")]
mod x86;

use candle_core::{Result, Tensor, bail};
use gemm::Parallelism;

pub use self::{
    columns::{ColumnRange, add_linear, add_linear_backward_input, add_linear_backward_weight},
    packed::{Input, PackedWeight, WeightDtype},
    quantized::{BlockFormat, QuantizedWeight},
};

use crate::{
    host::{read, tensor, write},
    simd::simd_fn,
};

/// Longest run of the inner dimension that `gemm` sums in one go for every row count (its `kc` is at least this).
const K_BLOCK: usize = 512;

/// Products with at most this many results take another path in `gemm`, with another order of summation.
const SMALL_PRODUCT: usize = 256;

/// What training's products multiply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// f32 operands.
    #[default]
    F32,
    /// Operands rounded to bf16 while they are packed (to nearest even), sums in f32. A processor without
    /// AVX-512-BF16 rounds the second operand alone (the weight; the input in a weight's gradient), so the last bits
    /// differ between processors.
    Bf16,
}

impl From<Precision> for WeightDtype {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self::F32,
            Precision::Bf16 => Self::Bf16,
        }
    }
}

/// A strided matrix operand.
#[derive(Clone, Copy)]
struct Operand<'a> {
    values: &'a [f32],
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Operand<'a> {
    fn rows(values: &'a [f32], width: usize) -> Self {
        Self { values, row_stride: width, column_stride: 1 }
    }

    fn transposed(values: &'a [f32], width: usize) -> Self {
        Self { values, row_stride: 1, column_stride: width }
    }
}

/// `dst[m, n] (+)= a[m, k] · b[k, n]`; `dst` is row-major and dense.
fn gemm_into(
    dst: &mut [f32],
    accumulate: bool,
    (m, n, k): (usize, usize, usize),
    a: Operand,
    b: Operand,
    precision: Precision,
) {
    gemm_among((dst, n), accumulate, (m, n, k), a, b, precision);
}

/// [`gemm_into`] columns of wider rows: `dst` begins with the first value of the result, `stride` from one row to the next.
fn gemm_among(
    (dst, stride): (&mut [f32], usize),
    accumulate: bool,
    (m, n, k): (usize, usize, usize),
    a: Operand,
    b: Operand,
    precision: Precision,
) {
    let last = |rows: usize, columns: usize, o: &Operand| (rows - 1) * o.row_stride + (columns - 1) * o.column_stride;
    if m == 0 || n == 0 {
        return;
    }
    if k == 0 {
        if !accumulate {
            dst.chunks_mut(stride).take(m).for_each(|row| row[..n].fill(0.0));
        }
        return;
    }
    assert!(n <= stride && dst.len() >= (m - 1) * stride + n);
    assert!(a.values.len() > last(m, k, &a) && b.values.len() > last(k, n, &b));
    let kernel = tile::best(precision.into());
    if kernel.is_portable() && precision == Precision::F32 {
        by_gemm_crate((dst, stride), accumulate, (m, n, k), a, b);
    } else {
        product::product_among(kernel, (dst, stride), accumulate, (m, n, k), a, &b);
    }
}

/// [`gemm_among`] by the `gemm` crate, with the same bits for every number of rows: the reduction is cut into blocks of
/// [`K_BLOCK`] that are added in order, and few rows are padded with zeros, because `gemm` sums in another order for one
/// row and for tiny products.
fn by_gemm_crate(
    (dst, stride): (&mut [f32], usize),
    accumulate: bool,
    (m, n, k): (usize, usize, usize),
    a: Operand,
    b: Operand,
) {
    let padded = m.max(2).max(SMALL_PRODUCT / n + 1);
    if m < padded {
        let mut wide_a = vec![0.0; padded * k];
        for (row, wide) in wide_a.chunks_exact_mut(k).take(m).enumerate() {
            let values = a.values[row * a.row_stride..].iter().step_by(a.column_stride);
            wide.iter_mut().zip(values).for_each(|(wide, value)| *wide = *value);
        }
        let mut wide = vec![0.0; padded * n];
        for (wide, row) in wide.chunks_exact_mut(n).zip(dst.chunks(stride)).take(m) {
            wide.copy_from_slice(&row[..n]);
        }
        by_gemm_crate((&mut wide, n), accumulate, (padded, n, k), Operand::rows(&wide_a, k), b);
        for (wide, row) in wide.chunks_exact(n).zip(dst.chunks_mut(stride)).take(m) {
            row[..n].copy_from_slice(wide);
        }
        return;
    }
    // Below this many operations waking the other threads costs more than they save.
    let parallelism =
        if m * n * k < 1 << 18 { Parallelism::None } else { Parallelism::Rayon(rayon::current_num_threads()) };
    let mut start = 0;
    while start < k {
        let block = K_BLOCK.min(k - start);
        // SAFETY: the caller has checked that the strides stay inside of the operands; `dst` overlaps neither.
        unsafe {
            gemm::gemm(
                m,
                n,
                block,
                dst.as_mut_ptr(),
                1,
                stride as isize,
                accumulate || start > 0,
                a.values.as_ptr().add(start * a.column_stride),
                a.column_stride as isize,
                a.row_stride as isize,
                b.values.as_ptr().add(start * b.row_stride),
                b.column_stride as isize,
                b.row_stride as isize,
                1.0f32,
                1.0f32,
                false,
                false,
                false,
                parallelism,
            );
        }
        start += block;
    }
}

/// `dst[rows, out] (+)= x[rows, inner] · w[out, inner]ᵀ` with the same bits for every number of rows.
pub(crate) fn linear_into(
    dst: &mut [f32],
    accumulate: bool,
    x: &[f32],
    w: &[f32],
    (rows, inner, out): (usize, usize, usize),
    precision: Precision,
) {
    gemm_into(dst, accumulate, (rows, out, inner), Operand::rows(x, inner), Operand::transposed(w, inner), precision);
}

/// `dx[rows, inner] (+)= dy[rows, out] · w[out, inner]`.
pub(crate) fn linear_backward_input_into(
    dx: &mut [f32],
    accumulate: bool,
    dy: &[f32],
    w: &[f32],
    (rows, inner, out): (usize, usize, usize),
    precision: Precision,
) {
    gemm_into(dx, accumulate, (rows, inner, out), Operand::rows(dy, out), Operand::rows(w, inner), precision);
}

/// `dw[out, inner] += dy[rows, out]ᵀ · x[rows, inner]`.
pub(crate) fn linear_backward_weight_into(
    dw: &mut [f32],
    dy: &[f32],
    x: &[f32],
    (rows, inner, out): (usize, usize, usize),
    precision: Precision,
) {
    gemm_into(dw, true, (out, inner, rows), Operand::transposed(dy, out), Operand::rows(x, inner), precision);
}

/// The linear layer.
///
/// **Shapes**: `x [N, I]`, `w [O, I]`, `bias [O]`, `residual [N, O]` → `[N, O]`. The residual is added to the result.
pub fn linear(
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
    precision: Precision,
) -> Result<Tensor> {
    let ((rows, inner), (out, w_inner)) = (x.dims2()?, w.dims2()?);
    if inner != w_inner {
        bail!("linear: x has {inner} columns, w {w_inner}")
    }
    let mut y = match residual {
        Some(residual) => {
            if residual.dims2()? != (rows, out) {
                bail!("linear: the residual is {:?}, expected [{rows}, {out}]", residual.dims())
            }
            read(residual)?.to_vec()
        }
        None => vec![0.0; rows * out],
    };
    linear_into(&mut y, residual.is_some(), &read(x)?, &read(w)?, (rows, inner, out), precision);
    if let Some(bias) = bias {
        add_rows(&mut y, &read(bias)?);
    }
    tensor(y, (rows, out))
}

/// Gradient of the linear layer's input: `dy [N, O]`, `w [O, I]` → `[N, I]`.
pub fn linear_backward_input(dy: &Tensor, w: &Tensor, precision: Precision) -> Result<Tensor> {
    let ((rows, out), (w_out, inner)) = (dy.dims2()?, w.dims2()?);
    if out != w_out {
        bail!("linear_backward_input: dy has {out} columns, w {w_out} rows")
    }
    let mut dx = vec![0.0; rows * inner];
    linear_backward_input_into(&mut dx, false, &read(dy)?, &read(w)?, (rows, inner, out), precision);
    tensor(dx, (rows, inner))
}

/// Adds the gradient of the linear layer's weight to `dw [O, I]` in place: `dw += dyᵀ · x`.
pub fn linear_backward_weight(dw: &Tensor, dy: &Tensor, x: &Tensor, precision: Precision) -> Result<()> {
    let ((rows, out), (x_rows, inner)) = (dy.dims2()?, x.dims2()?);
    if rows != x_rows || dw.dims2()? != (out, inner) {
        bail!("linear_backward_weight: dw {:?}, dy {:?}, x {:?}", dw.dims(), dy.dims(), x.dims())
    }
    let (dy, x) = (read(dy)?, read(x)?);
    write(dw, |dw| {
        linear_backward_weight_into(dw, &dy, &x, (rows, inner, out), precision);
        Ok(())
    })
}

/// Adds the gradient of a bias to `dbias [O]` in place: the column sums of `dy [N, O]`, rows in order.
pub fn bias_backward(dbias: &Tensor, dy: &Tensor) -> Result<()> {
    let dy = read(dy)?;
    write(dbias, |dbias| {
        add_columns(dbias, &dy);
        Ok(())
    })
}

simd_fn! {
    fn add_rows(y: &mut [f32], bias: &[f32]) {
        let _ = FMA;
        for row in y.chunks_exact_mut(bias.len()) {
            for (y, bias) in row.iter_mut().zip(bias) {
                *y += bias;
            }
        }
    }
}

simd_fn! {
    fn add_columns(sums: &mut [f32], rows: &[f32]) {
        let _ = FMA;
        for row in rows.chunks_exact(sums.len()) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += value;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;

    fn random(shape: (usize, usize)) -> Tensor {
        Tensor::randn(0f32, 1f32, shape, &Device::Cpu).expect("cpu tensor")
    }

    #[test]
    fn forward_and_backward_equal_candle() -> Result<()> {
        for (n, i, o) in [(1, 3, 5), (7, 64, 33), (40, 700, 96)] {
            let (x, w, dy) = (random((n, i)), random((o, i)), random((n, o)));
            let y = linear(&x, &w, None, None, Precision::F32)?;
            let close = |a: &Tensor, b: &Tensor| -> Result<()> {
                let error = (a - b)?.abs()?.max_all()?.to_scalar::<f32>()?;
                assert!(error < 1e-3, "{error}");
                Ok(())
            };
            close(&y, &x.matmul(&w.t()?)?)?;
            close(&linear_backward_input(&dy, &w, Precision::F32)?, &dy.matmul(&w)?)?;
            let dw = random((o, i));
            let expected = (&dw.copy()? + dy.t()?.matmul(&x)?)?;
            linear_backward_weight(&dw, &dy, &x, Precision::F32)?;
            close(&dw, &expected)?;
        }
        Ok(())
    }

    /// Rounding is an error of up to 2^-8 of each factor, so of little more than 2^-7 of each term.
    #[test]
    fn in_bf16_results_lie_within_the_rounding_of_their_terms() -> Result<()> {
        for (n, i, o) in [(1, 3, 5), (7, 64, 33), (40, 700, 96)] {
            let (x, w, dy, dw) = (random((n, i)), random((o, i)), random((n, o)), random((o, i)));
            let near = |got: &Tensor, a: &Tensor, b: &Tensor, c: Option<&Tensor>| -> Result<()> {
                let exact = a.matmul(b)?;
                let exact = c.map_or(Ok(exact.clone()), |c| c + exact)?;
                let bound = (a.abs()?.matmul(&b.abs()?)? * (1.01 * 2f64.powi(-7)))?;
                let over = ((got - exact)?.abs()? - bound)?.max_all()?.to_scalar::<f32>()?;
                assert!(over < 1e-4, "{over}");
                Ok(())
            };
            near(&linear(&x, &w, None, None, Precision::Bf16)?, &x, &w.t()?.contiguous()?, None)?;
            near(&linear_backward_input(&dy, &w, Precision::Bf16)?, &dy, &w, None)?;
            let before = dw.copy()?;
            linear_backward_weight(&dw, &dy, &x, Precision::Bf16)?;
            near(&dw, &dy.t()?.contiguous()?, &x, Some(&before))?;
            let exact = linear(&x, &w, None, None, Precision::F32)?;
            let differs = (linear(&x, &w, None, None, Precision::Bf16)? - exact)?.abs()?.max_all()?;
            assert!(differs.to_scalar::<f32>()? > 0.0, "nothing was rounded");
        }
        Ok(())
    }

    #[test]
    fn a_row_has_the_same_bits_among_any_number_of_rows() -> Result<()> {
        for (inner, out) in [(48, 64), (64, 172), (128, 128), (172, 64), (384, 128), (600, 48), (1536, 96), (2048, 300)]
        {
            let (x, w) = (random((130, inner)), random((out, inner)));
            let all = to_rows(&linear(&x, &w, None, None, Precision::F32)?)?;
            for rows in [1, 2, 3, 4, 5, 8, 16, 31, 63, 64, 65, 129] {
                for first in [0, 130 - rows] {
                    let part = to_rows(&linear(&x.narrow(0, first, rows)?, &w, None, None, Precision::F32)?)?;
                    assert_eq!(part[..], all[first..first + rows], "inner {inner} out {out} rows {rows}");
                }
            }
        }
        Ok(())
    }

    #[test]
    fn the_crate_for_other_processors_multiplies_likewise() {
        for (m, n, k) in [(1, 5, 3), (3, 7, 700), (40, 33, 64)] {
            let (a, b) = (random((m, k)), random((k, n)));
            let expected = a.matmul(&b).and_then(|product| product.flatten_all()?.to_vec1::<f32>()).expect("a product");
            let turned = a.t().and_then(|a| a.contiguous()).expect("the matrix turned");
            let (a, b, turned) = [&a, &b, &turned].map(|it| crate::to_vec(it).expect("values")).into();
            for a in [Operand::rows(&a, k), Operand::transposed(&turned, m)] {
                let mut got = vec![1.0; m * n];
                by_gemm_crate((&mut got, n), true, (m, n, k), a, Operand::rows(&b, n));
                for (got, expected) in got.iter().zip(&expected) {
                    assert!((got - expected - 1.0).abs() < 1e-3);
                }
            }
        }
    }

    fn to_rows(t: &Tensor) -> Result<Vec<Vec<u32>>> {
        Ok(t.to_vec2::<f32>()?.into_iter().map(|row| row.into_iter().map(f32::to_bits).collect()).collect())
    }
}
