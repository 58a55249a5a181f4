//! What low-rank adapters need beside products: parts of a fused projection's columns, and DoRA's norms.
//!
//! `y[:, s..s+W] += scale ⊙ d` and its mirror images. All are bound by memory; a row depends on itself alone.
//! Source: Hu et al. 2021 (LoRA), Liu et al. 2024 (DoRA, section 4.3: the norm is a constant of the backward).

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use crate::host::{for_row_chunks, read, tensor, write};

/// Copies columns: `x [N, W]` → `[N, width]`, from column `start` on.
pub fn columns(x: &Tensor, start: usize, width: usize) -> Result<Tensor> {
    let (rows, whole) = x.dims2()?;
    check_columns(whole, start, width)?;
    if width == whole {
        return Ok(x.clone());
    }
    let x = read(x)?;
    let mut y = vec![0.0; rows * width];
    for_row_chunks(&mut y, width, |first, y| {
        for (row, y) in y.chunks_exact_mut(width).enumerate() {
            let from = (first + row) * whole + start;
            y.copy_from_slice(&x[from..from + width]);
        }
    });
    tensor(y, (rows, width))
}

/// Adds to columns in place: `y[:, start + j] += scale[j] · d[:, j]`; a single `scale` counts for every column.
///
/// **Shapes**: `y [N, W]`, `d [N, width]`, `scale [width]` or `[1]`.
pub fn add_columns(y: &Tensor, start: usize, d: &Tensor, scale: &[f32]) -> Result<()> {
    let ((rows, whole), (d_rows, width)) = (y.dims2()?, d.dims2()?);
    check_columns(whole, start, width)?;
    if rows != d_rows || (scale.len() != 1 && scale.len() != width) {
        bail!("add_columns: y {:?}, d {:?}, {} scales", y.dims(), d.dims(), scale.len())
    }
    let d = read(d)?;
    write(y, |y| {
        for_row_chunks(y, whole, |first, y| {
            for (row, y) in y.chunks_exact_mut(whole).enumerate() {
                let d = &d[(first + row) * width..(first + row + 1) * width];
                let y = &mut y[start..start + width];
                match scale {
                    [scale] => y.iter_mut().zip(d).for_each(|(y, d)| *y += scale * d),
                    _ => y.iter_mut().zip(d).zip(scale).for_each(|((y, d), scale)| *y += scale * d),
                }
            }
        });
        Ok(())
    })
}

/// Multiplies columns in place: `y[:, start + j] *= scale[j]`.
pub fn scale_columns(y: &Tensor, start: usize, scale: &[f32]) -> Result<()> {
    let (_, whole) = y.dims2()?;
    check_columns(whole, start, scale.len())?;
    write(y, |y| {
        for_row_chunks(y, whole, |_, y| {
            for y in y.chunks_exact_mut(whole) {
                y[start..start + scale.len()].iter_mut().zip(scale).for_each(|(y, scale)| *y *= scale);
            }
        });
        Ok(())
    })
}

/// Multiplies rows in place: `w[i, :] *= scale[i]`.
pub fn scale_rows(w: &Tensor, scale: &[f32]) -> Result<()> {
    let (rows, width) = w.dims2()?;
    if rows != scale.len() {
        bail!("scale_rows: w {:?}, {} scales", w.dims(), scale.len())
    }
    write(w, |w| {
        w.chunks_exact_mut(width).zip(scale).for_each(|(row, scale)| row.iter_mut().for_each(|value| *value *= scale));
        Ok(())
    })
}

/// Adds the products' column sums in place: `sums[j] += scale[j] · Σ_n a[n, j] · b[n, j]`, rows in order.
pub fn add_column_dots(sums: &Tensor, a: &Tensor, b: &Tensor, scale: &[f32]) -> Result<()> {
    let (_, width) = a.dims2()?;
    if a.dims() != b.dims() || sums.elem_count() != width || scale.len() != width {
        bail!("add_column_dots: a {:?}, b {:?}, {} sums", a.dims(), b.dims(), sums.elem_count())
    }
    let (a, b) = (read(a)?, read(b)?);
    let mut dots = vec![0f64; width];
    for (a, b) in a.chunks_exact(width).zip(b.chunks_exact(width)) {
        dots.iter_mut().zip(a.iter().zip(b)).for_each(|(dot, (a, b))| *dot += f64::from(*a) * f64::from(*b));
    }
    write(sums, |sums| {
        sums.iter_mut()
            .zip(dots.iter().zip(scale))
            .for_each(|(sum, (dot, scale))| *sum += (dot * f64::from(*scale)) as f32);
        Ok(())
    })
}

/// Length of every row of `w + scale · delta`, both `[O, I]`, summed in f64.
pub fn row_norms(w: &Tensor, delta: &Tensor, scale: f32) -> Result<Vec<f32>> {
    let (_, width) = w.dims2()?;
    if w.dims() != delta.dims() {
        bail!("row_norms: w {:?}, delta {:?}", w.dims(), delta.dims())
    }
    let (w, delta) = (read(w)?, read(delta)?);
    let (w, delta): (&[f32], &[f32]) = (&w, &delta);
    let rows = w.par_chunks_exact(width).zip(delta.par_chunks_exact(width));
    Ok(rows
        .map(|(w, delta)| {
            let squares = w.iter().zip(delta).map(|(w, delta)| f64::from(w + scale * delta).powi(2));
            squares.sum::<f64>().sqrt() as f32
        })
        .collect())
}

fn check_columns(whole: usize, start: usize, width: usize) -> Result<()> {
    if width == 0 || start + width > whole {
        bail!("columns {start}..{} of {whole}", start + width)
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn random(rows: usize, columns: usize) -> Result<Tensor> {
        // Small enough that sums of 65 products stay near 1, where f32 is far finer than the tolerance.
        Tensor::randn(0f32, 0.3f32, (rows, columns), &Device::Cpu)
    }

    fn same(got: &Tensor, expected: &Tensor) -> Result<()> {
        let worst = (got - expected)?.abs()?.max_all()?.to_scalar::<f32>()?;
        assert!(worst < 1e-5, "worst difference {worst}");
        Ok(())
    }

    #[test]
    fn columns_are_read_added_and_scaled_as_candle_does_it() -> Result<()> {
        let (y, d) = (random(300, 150)?, random(300, 70)?);
        let scale: Vec<f32> = (0..70).map(|j| j as f32 / 10.0 - 3.0).collect();
        let row = Tensor::new(&scale[..], &Device::Cpu)?;
        same(&columns(&y, 40, 70)?, &y.narrow(1, 40, 70)?)?;
        let before = y.copy()?;
        add_columns(&y, 40, &d, &scale)?;
        add_columns(&y, 40, &d, &[0.5])?;
        let middle = (before.narrow(1, 40, 70)? + d.broadcast_mul(&row)? + d.affine(0.5, 0.0)?)?;
        let expected = Tensor::cat(&[&before.narrow(1, 0, 40)?, &middle, &before.narrow(1, 110, 40)?], 1)?;
        same(&y, &expected)?;
        scale_columns(&y, 40, &scale)?;
        same(&y.narrow(1, 40, 70)?, &middle.broadcast_mul(&row)?)?;
        same(&y.narrow(1, 0, 40)?, &before.narrow(1, 0, 40)?)?;
        assert!(columns(&y, 100, 51).is_err() && add_columns(&y, 81, &d, &[1.0]).is_err());
        Ok(())
    }

    #[test]
    fn dots_norms_and_scaled_rows_are_those_of_candle() -> Result<()> {
        let (a, b) = (random(65, 33)?, random(65, 33)?);
        let sums = Tensor::ones(33, candle_core::DType::F32, &Device::Cpu)?;
        add_column_dots(&sums, &a, &b, &[2.0; 33])?;
        same(&sums, &(((&a * &b)?.sum(0)? * 2.0)? + 1.0)?)?;
        let norms = row_norms(&a, &b, 0.5)?;
        let whole = (&a + b.affine(0.5, 0.0)?)?;
        same(&Tensor::new(&norms[..], &Device::Cpu)?, &whole.sqr()?.sum(1)?.sqrt()?)?;
        let scaled = a.copy()?;
        scale_rows(&scaled, &norms)?;
        same(&scaled, &a.broadcast_mul(&Tensor::new(&norms[..], &Device::Cpu)?.reshape((65, 1))?)?)
    }
}
