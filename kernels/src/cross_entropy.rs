//! Fused linear and cross-entropy: never holds more than a chunk of `[rows, V]` logits.
//!
//! `loss = Σ_i weight · (logsumexp(x_i·Wᵀ) - (x_i·Wᵀ)[target_i])`; the gradient of the logits is
//! `weight · (softmax - onehot)`, computed in the chunk's own memory. Source: the idea of Liger-Kernel's
//! fused_linear_cross_entropy. Operations: 6·N·C·V with gradients, 2·N·C·V without.

use candle_core::{Result, Tensor, bail};

use crate::{
    host::{for_row_chunks, read, tensor, write},
    matmul::{Precision, linear_backward_input_into, linear_backward_weight_into, linear_into},
    simd::{LANES, exp, fold, simd_fn},
};

/// Most logits held at once, in values (64 MiB): the head's gradient is read and written once per chunk.
const CHUNK_VALUES: usize = 1 << 24;

/// What [`forward_backward`] returns.
pub struct LossAndGradient {
    /// Weighted sum of the rows' losses.
    pub loss: f64,
    /// Gradient of the loss with respect to `x`, `[N, C]`.
    pub dx: Tensor,
}

/// Loss of every row, `[N]`, without gradients.
///
/// **Shapes**: `x [N, C]`, `w [V, C]`, `targets [N]`.
pub fn losses(x: &Tensor, w: &Tensor, targets: &[u32], precision: Precision) -> Result<Vec<f32>> {
    let (rows, vocabulary, hidden) = check(x, w, targets)?;
    let (x, w) = (read(x)?, read(w)?);
    let mut losses = Vec::with_capacity(rows);
    each_chunk(rows, vocabulary, |start, end| {
        let mut logits = vec![0f32; (end - start) * vocabulary];
        linear_into(
            &mut logits,
            false,
            &x[start * hidden..end * hidden],
            &w,
            (end - start, hidden, vocabulary),
            precision,
        );
        for (row, &target) in logits.chunks_exact(vocabulary).zip(&targets[start..end]) {
            losses.push(log_sum_exp(row) - row[target as usize]);
        }
    });
    Ok(losses)
}

/// Loss and gradients: adds to `dw [V, C]` in place.
///
/// **Shapes**: as [`losses`]; every row counts with the same `weight` (one over the trained tokens of the batch).
pub fn forward_backward(
    x: &Tensor,
    w: &Tensor,
    targets: &[u32],
    weight: f64,
    dw: &Tensor,
    precision: Precision,
) -> Result<LossAndGradient> {
    let mut out = None;
    write(dw, |dw| {
        out = Some(loss_and_gradients(x, w, targets, weight, Some(dw), precision)?);
        Ok(())
    })?;
    match out {
        Some(out) => Ok(out),
        None => bail!("cross_entropy: the weight's gradient was not handed out"),
    }
}

/// [`forward_backward`] with a frozen head: no gradient of `w`, which is a third of the work.
pub fn forward_backward_frozen(
    x: &Tensor,
    w: &Tensor,
    targets: &[u32],
    weight: f64,
    precision: Precision,
) -> Result<LossAndGradient> {
    loss_and_gradients(x, w, targets, weight, None, precision)
}

fn loss_and_gradients(
    x: &Tensor,
    w: &Tensor,
    targets: &[u32],
    weight: f64,
    mut dw: Option<&mut [f32]>,
    precision: Precision,
) -> Result<LossAndGradient> {
    let (rows, vocabulary, hidden) = check(x, w, targets)?;
    let (x, w) = (read(x)?, read(w)?);
    let mut dx = vec![0f32; rows * hidden];
    let mut loss = 0f64;
    each_chunk(rows, vocabulary, |start, end| {
        let shape = (end - start, hidden, vocabulary);
        let x = &x[start * hidden..end * hidden];
        let mut logits = vec![0f32; (end - start) * vocabulary];
        linear_into(&mut logits, false, x, &w, shape, precision);
        for (row, &target) in logits.chunks_exact(vocabulary).zip(&targets[start..end]) {
            loss += f64::from(log_sum_exp(row) - row[target as usize]) * weight;
        }
        for_row_chunks(&mut logits, vocabulary, |first, logits| {
            for (row, &target) in logits.chunks_exact_mut(vocabulary).zip(&targets[start + first..]) {
                softmax_gradient(row, target as usize, weight as f32);
            }
        });
        linear_backward_input_into(&mut dx[start * hidden..end * hidden], false, &logits, &w, shape, precision);
        if let Some(dw) = dw.as_deref_mut() {
            linear_backward_weight_into(dw, &logits, x, shape, precision);
        }
    });
    Ok(LossAndGradient { loss, dx: tensor(dx, (rows, hidden))? })
}

fn check(x: &Tensor, w: &Tensor, targets: &[u32]) -> Result<(usize, usize, usize)> {
    let ((rows, hidden), (vocabulary, w_hidden)) = (x.dims2()?, w.dims2()?);
    if hidden != w_hidden || targets.len() != rows {
        bail!("cross_entropy: x {:?}, w {:?}, {} targets", x.dims(), w.dims(), targets.len())
    }
    if let Some(target) = targets.iter().find(|&&target| target as usize >= vocabulary) {
        bail!("cross_entropy: target {target} is past the vocabulary of {vocabulary}")
    }
    Ok((rows, vocabulary, hidden))
}

fn each_chunk(rows: usize, vocabulary: usize, mut body: impl FnMut(usize, usize)) {
    let chunk = (CHUNK_VALUES / vocabulary).max(16);
    for start in (0..rows).step_by(chunk) {
        body(start, (start + chunk).min(rows));
    }
}

simd_fn! {
    /// Log-sum-exp of a row, in one fixed order.
    pub fn log_sum_exp(row: &[f32]) -> f32 {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut lanes = [0f32; LANES];
        let (chunks, tail) = row.as_chunks::<LANES>();
        for chunk in chunks {
            for lane in 0..LANES {
                lanes[lane] += exp::<FMA>(chunk[lane] - largest);
            }
        }
        let mut sum = fold(lanes);
        for value in tail {
            sum += exp::<FMA>(value - largest);
        }
        largest + sum.ln()
    }
}

simd_fn! {
    fn softmax_gradient(row: &mut [f32], target: usize, weight: f32) {
        let shift = log_sum_exp(row);
        for value in row.iter_mut() {
            *value = exp::<FMA>(*value - shift) * weight;
        }
        row[target] -= weight;
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::*;

    #[test]
    fn loss_and_gradients_equal_autograd() -> Result<()> {
        let (n, c, v) = (9, 12, 37);
        let x = Var::from_tensor(&Tensor::randn(0f32, 1f32, (n, c), &Device::Cpu)?)?;
        let w = Var::from_tensor(&Tensor::randn(0f32, 1f32, (v, c), &Device::Cpu)?)?;
        let targets: Vec<u32> = (0..n as u32).map(|i| (i * 7) % v as u32).collect();
        let weight = 1.0 / 9.0;
        let logits = x.matmul(&w.t()?)?;
        let lse = logits.exp()?.sum_keepdim(1)?.log()?;
        let picked = logits.gather(&Tensor::new(targets.clone(), &Device::Cpu)?.unsqueeze(1)?, 1)?;
        let loss = ((lse - picked)?.sum_all()? * weight)?;
        let grads = loss.backward()?;

        let dw = Tensor::zeros((v, c), DType::F32, &Device::Cpu)?;
        let got = forward_backward(&x, &w, &targets, weight, &dw, Precision::F32)?;
        assert!((got.loss - f64::from(loss.to_scalar::<f32>()?)).abs() < 1e-5);
        let close = |a: &Tensor, b: &Tensor| -> Result<()> {
            assert!((a - b)?.abs()?.max_all()?.to_scalar::<f32>()? < 1e-5);
            Ok(())
        };
        close(&got.dx, grads.get(&x).expect("gradient of x"))?;
        close(&dw, grads.get(&w).expect("gradient of w"))?;
        let each: f64 = losses(&x, &w, &targets, Precision::F32)?.iter().map(|loss| f64::from(*loss)).sum();
        assert!((each * weight - got.loss).abs() < 1e-6);
        Ok(())
    }
}
