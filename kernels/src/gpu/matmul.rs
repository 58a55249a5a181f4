//! Products on a device, by its own library, in the forms that a linear layer and its gradients need.

use candle_core::{Result, bail};

use super::{Array, Float, Matmul, MatmulType, check_len, rows_of};

/// `y [N, O] = x [N, I] · wᵀ + bias`, or added to `y` (`accumulate`, which takes no bias); `w [O, I]`.
pub fn linear<F: Float>(
    y: &Array<F>,
    x: &Array<F>,
    w: &Array<F>,
    bias: Option<&Array<F>>,
    (out, inner): (usize, usize),
    accumulate: bool,
) -> Result<()> {
    let rows = rows_of("linear", x, inner)?;
    check_len("linear: w", w, out * inner)?;
    check_len("linear: y", y, rows * out)?;
    if let Some(bias) = bias {
        check_len("linear: bias", bias, out)?;
        if accumulate {
            bail!("linear: a sum takes no bias")
        }
    }
    let product = Matmul {
        rows,
        columns: out,
        inner,
        a: x.address(),
        a_transposed: false,
        b: w.address(),
        b_transposed: true,
        c: y.address(),
        bias: bias.map(Array::address),
        accumulate,
        input: F::MATMUL,
        output: F::MATMUL,
    };
    run(y, &product)
}

/// `dx [N, I] = dy [N, O] · w`.
pub fn linear_backward_input<F: Float>(
    dx: &Array<F>,
    dy: &Array<F>,
    w: &Array<F>,
    (out, inner): (usize, usize),
) -> Result<()> {
    let rows = rows_of("linear", dy, out)?;
    check_len("linear: w", w, out * inner)?;
    check_len("linear: dx", dx, rows * inner)?;
    let product = Matmul {
        rows,
        columns: inner,
        inner: out,
        a: dy.address(),
        a_transposed: false,
        b: w.address(),
        b_transposed: false,
        c: dx.address(),
        bias: None,
        accumulate: false,
        input: F::MATMUL,
        output: F::MATMUL,
    };
    run(dx, &product)
}

/// `dw [O, I] += dyᵀ · x`, in f32.
pub fn linear_backward_weight<F: Float>(
    dw: &Array<f32>,
    dy: &Array<F>,
    x: &Array<F>,
    (out, inner): (usize, usize),
) -> Result<()> {
    let rows = rows_of("linear", dy, out)?;
    check_len("linear: x", x, rows * inner)?;
    check_len("linear: dw", dw, out * inner)?;
    let product = Matmul {
        rows: out,
        columns: inner,
        inner: rows,
        a: dy.address(),
        a_transposed: true,
        b: x.address(),
        b_transposed: false,
        c: dw.address(),
        bias: None,
        accumulate: true,
        input: F::MATMUL,
        output: MatmulType::F32,
    };
    run(dw, &product)
}

fn run<T: super::Element>(output: &Array<T>, product: &Matmul) -> Result<()> {
    if product.rows == 0 || product.columns == 0 {
        return Ok(());
    }
    // SAFETY: the operands' lengths were checked against the product's shape.
    unsafe { output.gpu().matmul(product) }
}
