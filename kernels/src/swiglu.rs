//! SwiGLU: `y = silu(gate) · up` on a fused `[gate | up]` tensor.
//!
//! Source: Shazeer 2020, "GLU Variants Improve Transformer". `silu(g) = g·σ(g)`; its derivative is
//! `σ(g)·(1 + g·(1 - σ(g)))`. Bytes: forward reads 2F and writes F per row.

use candle_core::{Result, Tensor, bail};

use crate::{
    host::{for_row_chunks, read, tensor},
    simd::{exp, simd_fn},
};

/// **Shapes**: `gate_up [N, 2F]` → `[N, F]`.
pub fn forward(gate_up: &Tensor) -> Result<Tensor> {
    let (rows, width) = gate_up.dims2()?;
    let values = read(gate_up)?;
    let mut y = vec![0.0; rows * width / 2];
    for_row_chunks(&mut y, width / 2, |first, y| forward_rows(&values[first * width..], width / 2, y));
    tensor(y, (rows, width / 2))
}

/// Gradient: `dy [N, F]`, `gate_up [N, 2F]` → `[N, 2F]`.
pub fn backward(dy: &Tensor, gate_up: &Tensor) -> Result<Tensor> {
    let (rows, width) = gate_up.dims2()?;
    if dy.dims2()? != (rows, width / 2) {
        bail!("swiglu: dy is {:?}, gate_up {:?}", dy.dims(), gate_up.dims())
    }
    let (dy, values) = (read(dy)?, read(gate_up)?);
    let mut gradient = vec![0.0; rows * width];
    for_row_chunks(&mut gradient, width, |first, gradient| {
        backward_rows(&dy[first * width / 2..], &values[first * width..], width / 2, gradient);
    });
    tensor(gradient, (rows, width))
}

simd_fn! {
    /// Rows `[gate | up]` of width `2 · half` into rows of `half`.
    pub(crate) fn forward_rows(gate_up: &[f32], half: usize, y: &mut [f32]) {
        for (row, y) in gate_up.chunks_exact(2 * half).zip(y.chunks_exact_mut(half)) {
            let (gate, up) = row.split_at(half);
            for ((y, g), u) in y.iter_mut().zip(gate).zip(up) {
                *y = g / (1.0 + exp::<FMA>(-g)) * u;
            }
        }
    }
}

simd_fn! {
    fn backward_rows(dy: &[f32], gate_up: &[f32], half: usize, gradient: &mut [f32]) {
        for ((row, dy), out) in
            gate_up.chunks_exact(2 * half).zip(dy.chunks_exact(half)).zip(gradient.chunks_exact_mut(2 * half))
        {
            let (gate, up) = row.split_at(half);
            let (d_gate, d_up) = out.split_at_mut(half);
            for i in 0..half {
                let sigmoid = 1.0 / (1.0 + exp::<FMA>(-gate[i]));
                d_up[i] = dy[i] * gate[i] * sigmoid;
                d_gate[i] = dy[i] * up[i] * sigmoid * (1.0 + gate[i] * (1.0 - sigmoid));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn forward_and_backward_equal_autograd() -> Result<()> {
        let (n, f) = (7, 37);
        let gate_up = Var::from_tensor(&Tensor::randn(0f32, 3f32, (n, 2 * f), &Device::Cpu)?)?;
        let dy = Tensor::randn(0f32, 1f32, (n, f), &Device::Cpu)?;
        let expected = (gate_up.narrow(1, 0, f)?.silu()? * gate_up.narrow(1, f, f)?)?;
        let grads = (&expected * &dy)?.sum_all()?.backward()?;
        let close = |a: &Tensor, b: &Tensor| -> Result<()> {
            assert!((a - b)?.abs()?.max_all()?.to_scalar::<f32>()? < 1e-5);
            Ok(())
        };
        close(&forward(&gate_up)?, &expected)?;
        close(&backward(&dy, &gate_up)?, grads.get(&gate_up).expect("gradient"))
    }
}
