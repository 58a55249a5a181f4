//! Products with columns of wider matrices, read and added to where they lie: what an adapter beside a fused projection
//! needs. Bytes: those of the columns alone.

use candle_core::{Result, Tensor, bail};

use super::{Operand, Precision, gemm_among};
use crate::host::{read, write};

/// Columns `start..start + width` of a matrix, where they lie.
#[derive(Debug, Clone, Copy)]
pub struct ColumnRange<'a> {
    tensor: &'a Tensor,
    start: usize,
    width: usize,
}

impl<'a> ColumnRange<'a> {
    /// Some columns of `tensor [N, W]`.
    ///
    /// **Errors**: no columns, or past the last one.
    pub fn new(tensor: &'a Tensor, start: usize, width: usize) -> Result<Self> {
        let (_, whole) = tensor.dims2()?;
        if width == 0 || start + width > whole {
            bail!("columns {start}..{} of {whole}", start + width)
        }
        Ok(Self { tensor, start, width })
    }

    /// All columns.
    pub fn all(tensor: &'a Tensor) -> Result<Self> {
        Self::new(tensor, 0, tensor.dims2()?.1)
    }

    fn rows(&self) -> Result<usize> {
        self.tensor.dim(0)
    }

    /// `values` are the whole matrix's.
    fn operand<'v>(&self, values: &'v [f32]) -> Result<Operand<'v>> {
        Ok(Operand::rows(&values[self.start.min(values.len())..], self.tensor.dim(1)?))
    }

    /// Adds `a[m, k] · b[k, n]` in place.
    fn add_product(&self, k: usize, a: Operand, b: Operand, precision: Precision) -> Result<()> {
        let (rows, stride) = self.tensor.dims2()?;
        write(self.tensor, |values| {
            if rows > 0 {
                gemm_among((&mut values[self.start..], stride), true, (rows, self.width, k), a, b, precision);
            }
            Ok(())
        })
    }
}

impl Operand<'_> {
    /// The matrix transposed.
    fn turned(self) -> Self {
        Self { values: self.values, row_stride: self.column_stride, column_stride: self.row_stride }
    }
}

/// Adds a linear layer to columns in place: `y += x · wᵀ`.
///
/// **Shapes**: `y [N, O]`, `x [N, I]`, `w [O, I]`.
pub fn add_linear(y: ColumnRange, x: ColumnRange, w: &Tensor, precision: Precision) -> Result<()> {
    let (out, inner) = w.dims2()?;
    if (y.width, x.width) != (out, inner) || y.rows()? != x.rows()? {
        bail!("add_linear: y {y:?}, x {x:?}, w {:?}", w.dims())
    }
    let (x_values, w) = (read(x.tensor)?, read(w)?);
    y.add_product(inner, x.operand(&x_values)?, Operand::transposed(&w, inner), precision)
}

/// Adds the gradient of a linear layer's input to columns in place: `dx += dy · w`.
///
/// **Shapes**: `dx [N, I]`, `dy [N, O]`, `w [O, I]`.
pub fn add_linear_backward_input(dx: ColumnRange, dy: ColumnRange, w: &Tensor, precision: Precision) -> Result<()> {
    let (out, inner) = w.dims2()?;
    if (dy.width, dx.width) != (out, inner) || dy.rows()? != dx.rows()? {
        bail!("add_linear_backward_input: dx {dx:?}, dy {dy:?}, w {:?}", w.dims())
    }
    let (dy_values, w) = (read(dy.tensor)?, read(w)?);
    dx.add_product(out, dy.operand(&dy_values)?, Operand::rows(&w, inner), precision)
}

/// Adds the gradient of a linear layer's weight in place, from columns: `dw += dyᵀ · x`.
///
/// **Shapes**: `dw [O, I]`, `dy [N, O]`, `x [N, I]`.
pub fn add_linear_backward_weight(dw: &Tensor, dy: ColumnRange, x: ColumnRange, precision: Precision) -> Result<()> {
    let rows = dy.rows()?;
    if dw.dims2()? != (dy.width, x.width) || rows != x.rows()? {
        bail!("add_linear_backward_weight: dw {:?}, dy {dy:?}, x {x:?}", dw.dims())
    }
    let (dy_values, x_values) = (read(dy.tensor)?, read(x.tensor)?);
    ColumnRange::all(dw)?.add_product(rows, dy.operand(&dy_values)?.turned(), x.operand(&x_values)?, precision)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn random(shape: (usize, usize)) -> Tensor {
        Tensor::randn(0f32, 1f32, shape, &Device::Cpu).expect("cpu tensor")
    }

    #[test]
    fn columns_are_multiplied_where_they_lie() -> Result<()> {
        let close = |got: &Tensor, expected: &Tensor| -> Result<()> {
            let error = (got - expected)?.abs()?.max_all()?.to_scalar::<f32>()?;
            assert!(error < 1e-3, "{error}");
            Ok(())
        };
        for (n, i, o) in [(1, 3, 5), (7, 16, 33), (40, 48, 96), (300, 8, 200)] {
            let (y, x, w) = (random((n, o + 11)), random((n, i + 5)), random((o, i)));
            let (some_y, some_x) = (ColumnRange::new(&y, 7, o)?, ColumnRange::new(&x, 4, i)?);
            let expected = |start: usize, width: usize, whole: &Tensor, more: &Tensor| -> Result<Tensor> {
                let rest = whole.dim(1)? - start - width;
                let middle = (whole.narrow(1, start, width)? + more)?;
                Tensor::cat(&[&whole.narrow(1, 0, start)?, &middle, &whole.narrow(1, start + width, rest)?], 1)
            };
            let (plain_y, plain_x) = (y.copy()?, x.narrow(1, 4, i)?.contiguous()?);
            let forward = expected(7, o, &plain_y, &plain_x.matmul(&w.t()?)?)?;
            add_linear(some_y, some_x, &w, Precision::F32)?;
            close(&y, &forward)?;
            let dy = y.narrow(1, 7, o)?.contiguous()?;
            let dw = random((o, i));
            let expected_dw = (&dw.copy()? + dy.t()?.matmul(&plain_x)?)?;
            add_linear_backward_weight(&dw, some_y, some_x, Precision::F32)?;
            close(&dw, &expected_dw)?;
            let expected_dx = expected(4, i, &x.copy()?, &dy.matmul(&w)?)?;
            add_linear_backward_input(some_x, some_y, &w, Precision::F32)?;
            close(&x, &expected_dx)?;
        }
        let (y, x, w) = (random((4, 6)), random((4, 3)), random((5, 3)));
        assert!(ColumnRange::new(&y, 2, 5).is_err() && ColumnRange::new(&y, 0, 0).is_err());
        assert!(add_linear(ColumnRange::all(&y)?, ColumnRange::all(&x)?, &w, Precision::F32).is_err());
        Ok(())
    }
}
