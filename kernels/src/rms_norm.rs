//! RMSNorm: `y = x / sqrt(mean(x²) + eps) · w`, per row.
//!
//! Source: Zhang & Sennrich 2019, eq. 4. Bytes: reads and writes each row once. Backward, with `x̂ = x · rstd` and
//! `g = dy · w`: `dx = (g - x̂ · mean(g · x̂)) · rstd`, `dw = Σ_rows dy · x̂`.

use candle_core::{Result, Tensor, bail};

use crate::{
    host::{for_row_chunks, read, tensor, write},
    simd::{dot, fma, simd_fn},
};

/// Rows per partial sum of `dw`; fixed, so that the order of summation is.
const ROWS_PER_SUM: usize = 64;

/// Normalises rows.
///
/// **Shapes**: `x [N, C]`, `w [C]` → `y [N, C]`, `rstd [N]` (the reciprocal root mean square, kept for the backward).
pub fn forward(x: &Tensor, w: &Tensor, eps: f64) -> Result<(Tensor, Tensor)> {
    let (rows, width) = x.dims2()?;
    if w.dims1()? != width {
        bail!("rms_norm: x has {width} columns, w {}", w.dims1()?)
    }
    let (x, w) = (read(x)?, read(w)?);
    let mut rstd = vec![0.0; rows];
    let mut y = vec![0.0; rows * width];
    row_rstd(&x, width, eps as f32, &mut rstd);
    for_row_chunks(&mut y, width, |first, y| {
        let count = y.len() / width;
        scale_rows(&x[first * width..(first + count) * width], &w, &rstd[first..first + count], y);
    });
    Ok((tensor(y, (rows, width))?, tensor(rstd, rows)?))
}

/// [`forward`] of rows in memory, without keeping the reciprocal roots.
pub(crate) fn rows_into(x: &[f32], w: &[f32], eps: f32, y: &mut [f32]) {
    for (x, y) in x.chunks_exact(w.len()).zip(y.chunks_exact_mut(w.len())) {
        let mut rstd = [0.0];
        row_rstd(x, w.len(), eps, &mut rstd);
        scale_rows(x, w, &rstd, y);
    }
}

/// [`rows_into`] over its own input.
pub(crate) fn rows_in_place(x: &mut [f32], w: &[f32], eps: f32) {
    for x in x.chunks_exact_mut(w.len()) {
        let mut rstd = [0.0];
        row_rstd(x, w.len(), eps, &mut rstd);
        scale_in_place(x, w, rstd[0]);
    }
}

/// Gradients of [`forward`]: adds to `dw [C]` in place and returns `dx [N, C]`, plus `residual` where given.
pub fn backward(
    dy: &Tensor,
    x: &Tensor,
    w: &Tensor,
    rstd: &Tensor,
    dw: &Tensor,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    let (dy, x, w, rstd) = (read(dy)?, read(x)?, read(w)?, read(rstd)?);
    let mut dx = match residual {
        Some(residual) => read(residual)?.to_vec(),
        None => vec![0.0; rows * width],
    };
    for_row_chunks(&mut dx, width, |first, dx| {
        let count = dx.len() / width;
        let range = first * width..(first + count) * width;
        backward_rows(&dy[range.clone()], &x[range], &w, &rstd[first..first + count], dx);
    });
    write(dw, |dw| {
        add_weight_gradient(&dy, &x, &rstd, dw);
        Ok(())
    })?;
    tensor(dx, (rows, width))
}

/// Normalises heads in place inside rows of a wider tensor (Qwen3's q/k norm).
///
/// **Shapes**: `qkv [N, W]`; heads `first..first + heads` of width `D` are normalised with `w [D]`; `rstd` gains one
/// value per row and head.
pub fn heads_in_place(qkv: &Tensor, w: &Tensor, first: usize, heads: usize, eps: f64) -> Result<Tensor> {
    let (rows, width) = qkv.dims2()?;
    let dim = w.dims1()?;
    let w = read(w)?;
    let mut rstd = vec![0.0; rows * heads];
    write(qkv, |qkv| {
        for (row, rstd) in qkv.chunks_exact_mut(width).zip(rstd.chunks_exact_mut(heads)) {
            let part = &mut row[first * dim..(first + heads) * dim];
            row_rstd(part, dim, eps as f32, rstd);
            let input = part.to_vec();
            scale_rows(&input, &w, rstd, part);
        }
        Ok(())
    })?;
    tensor(rstd, (rows, heads))
}

/// Gradient of [`heads_in_place`]: turns the part of `dqkv [N, W]` in place, given the values before normalisation.
pub fn heads_backward_in_place(
    dqkv: &Tensor,
    before: &Tensor,
    w: &Tensor,
    rstd: &Tensor,
    dw: &Tensor,
    first: usize,
) -> Result<()> {
    let (_, width) = dqkv.dims2()?;
    let (_, heads) = rstd.dims2()?;
    let dim = w.dims1()?;
    let (before, w, rstd) = (read(before)?, read(w)?, read(rstd)?);
    write(dw, |dw| {
        write(dqkv, |dqkv| {
            for ((row, before), rstd) in
                dqkv.chunks_exact_mut(width).zip(before.chunks_exact(width)).zip(rstd.chunks_exact(heads))
            {
                let range = first * dim..(first + heads) * dim;
                let dy = row[range.clone()].to_vec();
                add_weight_gradient(&dy, &before[range.clone()], rstd, dw);
                row[range.clone()].fill(0.0);
                backward_rows(&dy, &before[range.clone()], &w, rstd, &mut row[range]);
            }
            Ok(())
        })
    })
}

simd_fn! {
    fn row_rstd(x: &[f32], width: usize, eps: f32, rstd: &mut [f32]) {
        for (row, rstd) in x.chunks_exact(width).zip(rstd) {
            *rstd = 1.0 / (dot::<FMA>(row, row) / width as f32 + eps).sqrt();
        }
    }
}

simd_fn! {
    fn scale_rows(x: &[f32], w: &[f32], rstd: &[f32], y: &mut [f32]) {
        let _ = FMA;
        for ((row, y), rstd) in x.chunks_exact(w.len()).zip(y.chunks_exact_mut(w.len())).zip(rstd) {
            for ((y, x), w) in y.iter_mut().zip(row).zip(w) {
                *y = x * rstd * w;
            }
        }
    }
}

simd_fn! {
    fn scale_in_place(row: &mut [f32], w: &[f32], rstd: f32) {
        let _ = FMA;
        for (x, w) in row.iter_mut().zip(w) {
            *x = *x * rstd * w;
        }
    }
}

simd_fn! {
    /// `dx += …` for each row.
    fn backward_rows(dy: &[f32], x: &[f32], w: &[f32], rstd: &[f32], dx: &mut [f32]) {
        let width = w.len();
        let mut weighted = vec![0f32; width];
        for (((dy, x), dx), rstd) in
            dy.chunks_exact(width).zip(x.chunks_exact(width)).zip(dx.chunks_exact_mut(width)).zip(rstd)
        {
            for ((g, dy), w) in weighted.iter_mut().zip(dy).zip(w) {
                *g = dy * w;
            }
            let mean = dot::<FMA>(&weighted, x) * rstd * rstd / width as f32;
            for ((dx, g), x) in dx.iter_mut().zip(&weighted).zip(x) {
                *dx = fma::<FMA>(fma::<FMA>(-mean, *x, *g), *rstd, *dx);
            }
        }
    }
}

/// `dw += Σ dy · x · rstd`, in partial sums over fixed runs of rows.
fn add_weight_gradient(dy: &[f32], x: &[f32], rstd: &[f32], dw: &mut [f32]) {
    use rayon::prelude::*;
    let width = dw.len();
    let run = ROWS_PER_SUM * width;
    let sum = |(dy, (x, rstd)): (&[f32], (&[f32], &[f32]))| {
        let mut sum = vec![0f32; width];
        weight_gradient_rows(dy, x, rstd, &mut sum);
        sum
    };
    let sums: Vec<Vec<f32>> = if rstd.len() <= ROWS_PER_SUM {
        vec![sum((dy, (x, rstd)))]
    } else {
        dy.par_chunks(run).zip(x.par_chunks(run).zip(rstd.par_chunks(ROWS_PER_SUM))).map(sum).collect()
    };
    for sum in sums {
        for (dw, sum) in dw.iter_mut().zip(sum) {
            *dw += sum;
        }
    }
}

simd_fn! {
    fn weight_gradient_rows(dy: &[f32], x: &[f32], rstd: &[f32], sum: &mut [f32]) {
        let width = sum.len();
        for ((dy, x), rstd) in dy.chunks_exact(width).zip(x.chunks_exact(width)).zip(rstd) {
            for ((sum, dy), x) in sum.iter_mut().zip(dy).zip(x) {
                *sum = fma::<FMA>(dy * rstd, *x, *sum);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{D, Device, Var};

    use super::*;

    fn close(a: &Tensor, b: &Tensor, tolerance: f32) -> Result<()> {
        let error = (a - b)?.abs()?.max_all()?.to_scalar::<f32>()?;
        assert!(error < tolerance, "{error}");
        Ok(())
    }

    /// The op's definition.
    fn reference(x: &Tensor, w: &Tensor, eps: f64) -> Result<Tensor> {
        let rstd = (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?.recip()?;
        x.broadcast_mul(&rstd)?.broadcast_mul(w)
    }

    #[test]
    fn forward_and_backward_equal_autograd() -> Result<()> {
        for (n, c) in [(1, 8), (5, 48), (200, 130)] {
            let x = Var::from_tensor(&Tensor::randn(0f32, 2f32, (n, c), &Device::Cpu)?)?;
            let w = Var::from_tensor(&Tensor::randn(1f32, 0.3f32, c, &Device::Cpu)?)?;
            let dy = Tensor::randn(0f32, 1f32, (n, c), &Device::Cpu)?;
            let expected = reference(&x, &w, 1e-5)?;
            let grads = (&expected * &dy)?.sum_all()?.backward()?;
            let (y, rstd) = forward(&x, &w, 1e-5)?;
            close(&y, &expected, 1e-5)?;
            let dw = Tensor::ones(c, candle_core::DType::F32, &Device::Cpu)?;
            let dx = backward(&dy, &x, &w, &rstd, &dw, Some(&dy))?;
            close(&dx, &(grads.get(&x).expect("gradient of x") + &dy)?, 1e-4)?;
            close(&dw, &(grads.get(&w).expect("gradient of w") + 1.0)?, 1e-3)?;
        }
        Ok(())
    }

    #[test]
    fn heads_are_normalised_in_place_and_back() -> Result<()> {
        let (n, heads, d) = (6, 3, 8);
        let before = Tensor::randn(0f32, 2f32, (n, 5 * d), &Device::Cpu)?;
        let w = Var::from_tensor(&Tensor::randn(1f32, 0.3f32, d, &Device::Cpu)?)?;
        let part = Var::from_tensor(&before.narrow(1, d, heads * d)?.contiguous()?.reshape((n * heads, d))?)?;
        let expected = reference(&part, &w, 1e-6)?;
        let qkv = before.copy()?;
        let rstd = heads_in_place(&qkv, &w, 1, heads, 1e-6)?;
        close(&qkv.narrow(1, d, heads * d)?.contiguous()?.reshape((n * heads, d))?, &expected, 1e-5)?;
        close(&qkv.narrow(1, 0, d)?, &before.narrow(1, 0, d)?, 1e-9)?;

        let dqkv = Tensor::randn(0f32, 1f32, (n, 5 * d), &Device::Cpu)?;
        let dy = dqkv.narrow(1, d, heads * d)?.contiguous()?.reshape((n * heads, d))?;
        let grads = (&expected * &dy)?.sum_all()?.backward()?;
        let dw = Tensor::zeros(d, candle_core::DType::F32, &Device::Cpu)?;
        heads_backward_in_place(&dqkv, &before, &w, &rstd, &dw, 1)?;
        let dx = dqkv.narrow(1, d, heads * d)?.contiguous()?.reshape((n * heads, d))?;
        close(&dx, grads.get(&part).expect("gradient of the heads"), 1e-4)?;
        close(&dw, grads.get(&w).expect("gradient of w"), 1e-4)
    }
}
