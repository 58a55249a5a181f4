//! Finite differences of every fused operation.
//!
//! With random `g` and a random direction `v` of one input, `⟨g, f(x + hv) - f(x - hv)⟩ / 2h` must be `⟨∂f·g, v⟩`. The
//! difference is taken at `h` and `2h` and extrapolated, which leaves an error of the order of `h⁴`; it is given relative
//! to the gradient's norm, which is what the product has on average.

use anyhow::Result;
use candle_core::{Device, Tensor};
use glan_kernels::{
    attention::{self, Heads},
    cross_entropy, embedding,
    lora::{add_column_dots, add_columns, columns, scale_columns},
    matmul::{Precision, bias_backward, linear, linear_backward_input, linear_backward_weight},
    noise::{Noise, dropout},
    rms_norm, rope, swiglu, to_vec,
};

use super::{Check, normal};

/// Step of the differences.
const STEP: f64 = 1e-2;
/// Largest error: f32 rounding of about 1e-7 over the step, with room for sums.
const BOUND: f64 = 1e-3;
const EPS: f64 = 1e-5;

/// Calls `take` with a check of each operation.
pub fn run(take: &mut impl FnMut(Check)) {
    take(Check::of("finite differences: linear, bias, residual", BOUND, linear_error));
    take(Check::of("finite differences: RMSNorm", BOUND, rms_norm_error));
    take(Check::of("finite differences: RMSNorm of heads", BOUND, heads_norm_error));
    take(Check::of("finite differences: RoPE", BOUND, rope_error));
    take(Check::of("finite differences: attention", BOUND, || attention_error(None)));
    take(Check::of("finite differences: attention in a window", BOUND, || attention_error(Some(3))));
    take(Check::of("finite differences: SwiGLU", BOUND, swiglu_error));
    take(Check::of("finite differences: embedding", BOUND, embedding_error));
    take(Check::of("finite differences: linear cross-entropy", BOUND, cross_entropy_error));
    take(Check::of("finite differences: dropout", BOUND, dropout_error));
    take(Check::of("finite differences: LoRA's columns", BOUND, columns_error));
    take(Check::of("finite differences: DoRA's scales", BOUND, scales_error));
}

fn random(shape: &[usize], name: &str) -> Result<Tensor> {
    Ok(Tensor::from_vec(normal(shape.iter().product(), name), shape, &Device::Cpu)?)
}

fn zeros_like(tensor: &Tensor) -> Result<Tensor> {
    Ok(tensor.zeros_like()?)
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// Largest error over the inputs and three directions of each; `backward` gets the inputs and `g`, and gives one gradient
/// per input.
fn difference_error(
    inputs: &[Tensor],
    forward: impl Fn(&[Tensor]) -> Result<Tensor>,
    backward: impl Fn(&[Tensor], &Tensor) -> Result<Vec<Tensor>>,
) -> Result<f64> {
    let y = forward(inputs)?;
    let g = random(y.dims(), "g")?;
    let gradients = backward(inputs, &g)?;
    anyhow::ensure!(gradients.len() == inputs.len(), "the check gives {} gradients", gradients.len());
    let g = to_vec(&g)?;
    let mut worst = 0f64;
    for (i, gradient) in gradients.iter().enumerate() {
        let gradient = to_vec(gradient)?;
        let (x, norm) = (to_vec(&inputs[i])?, dot(&gradient, &gradient).sqrt());
        for direction in 0..3 {
            let v = normal(x.len(), &format!("direction-{i}-{direction}"));
            let at = |h: f64| -> Result<f64> {
                let moved: Vec<f32> = x.iter().zip(&v).map(|(x, v)| x + (h * f64::from(*v)) as f32).collect();
                let mut inputs = inputs.to_vec();
                inputs[i] = Tensor::from_vec(moved, inputs[i].shape(), &Device::Cpu)?;
                Ok(dot(&g, &to_vec(&forward(&inputs)?)?))
            };
            let near = (at(STEP)? - at(-STEP)?) / (2.0 * STEP);
            let far = (at(2.0 * STEP)? - at(-2.0 * STEP)?) / (4.0 * STEP);
            let error = ((4.0 * near - far) / 3.0 - dot(&gradient, &v)).abs() / norm;
            // Unlike `max`, this keeps what is no number.
            if error.is_nan() || error > worst {
                worst = error;
            }
            if worst.is_nan() {
                return Ok(worst);
            }
        }
    }
    Ok(worst)
}

fn linear_error() -> Result<f64> {
    let inputs = [random(&[5, 24], "x")?, random(&[16, 24], "w")?, random(&[16], "b")?, random(&[5, 16], "r")?];
    difference_error(
        &inputs,
        |inputs| Ok(linear(&inputs[0], &inputs[1], Some(&inputs[2]), Some(&inputs[3]), Precision::F32)?),
        |inputs, dy| {
            let (dw, db) = (zeros_like(&inputs[1])?, zeros_like(&inputs[2])?);
            linear_backward_weight(&dw, dy, &inputs[0], Precision::F32)?;
            bias_backward(&db, dy)?;
            Ok(vec![linear_backward_input(dy, &inputs[1], Precision::F32)?, dw, db, dy.clone()])
        },
    )
}

fn rms_norm_error() -> Result<f64> {
    difference_error(
        &[random(&[5, 32], "x")?, random(&[32], "w")?],
        |inputs| Ok(rms_norm::forward(&inputs[0], &inputs[1], EPS)?.0),
        |inputs, dy| {
            let (_, rstd) = rms_norm::forward(&inputs[0], &inputs[1], EPS)?;
            let dw = zeros_like(&inputs[1])?;
            Ok(vec![rms_norm::backward(dy, &inputs[0], &inputs[1], &rstd, &dw, None)?, dw])
        },
    )
}

/// Qwen3's: heads 0 to 3 of six are normalised, the others pass.
fn heads_norm_error() -> Result<f64> {
    let norm = |inputs: &[Tensor]| -> Result<(Tensor, Tensor)> {
        let qkv = inputs[0].copy()?;
        let rstd = rms_norm::heads_in_place(&qkv, &inputs[1], 0, 4, EPS)?;
        Ok((qkv, rstd))
    };
    difference_error(
        &[random(&[5, 6 * 8], "qkv")?, random(&[8], "w")?],
        |inputs| Ok(norm(inputs)?.0),
        |inputs, dy| {
            let (dqkv, dw) = (dy.copy()?, zeros_like(&inputs[1])?);
            rms_norm::heads_backward_in_place(&dqkv, &inputs[0], &inputs[1], &norm(inputs)?.1, &dw, 0)?;
            Ok(vec![dqkv, dw])
        },
    )
}

fn rope_error() -> Result<f64> {
    let angles: Vec<f32> = (0..10 * 4).map(|i| (i / 4) as f32 * 0.5f32.powi(i % 4)).collect();
    let table = |of: fn(f32) -> f32| {
        Tensor::from_vec(angles.iter().map(|angle| of(*angle)).collect::<Vec<_>>(), (10, 4), &Device::Cpu)
    };
    let (cos, sin) = (table(f32::cos)?, table(f32::sin)?);
    let rotate = |x: &Tensor, inverse: bool| -> Result<Tensor> {
        let x = x.copy()?;
        rope::in_place(&x, &cos, &sin, &[0, 1, 2, 0, 9], 4, inverse)?;
        Ok(x)
    };
    difference_error(
        &[random(&[5, 6 * 8], "qkv")?],
        |inputs| rotate(&inputs[0], false),
        |_, dy| Ok(vec![rotate(dy, true)?]),
    )
}

/// Two packed sequences; two query heads to a key head.
fn attention_error(window: Option<usize>) -> Result<f64> {
    let (heads, bounds) = (Heads { query: 4, key_value: 2, dim: 8, window }, [0, 5, 13]);
    difference_error(
        &[random(&[13, heads.qkv_width()], "qkv")?],
        |inputs| Ok(attention::forward(&inputs[0], &bounds, &heads)?.0),
        |inputs, dy| {
            let (o, lse) = attention::forward(&inputs[0], &bounds, &heads)?;
            Ok(vec![attention::backward(dy, &o, &lse, &inputs[0], &bounds, &heads)?])
        },
    )
}

fn swiglu_error() -> Result<f64> {
    difference_error(
        &[random(&[5, 2 * 24], "gate_up")?],
        |inputs| Ok(swiglu::forward(&inputs[0])?),
        |inputs, dy| Ok(vec![swiglu::backward(dy, &inputs[0])?]),
    )
}

fn embedding_error() -> Result<f64> {
    let rows = [3, 1, 3, 11, 0];
    difference_error(
        &[random(&[12, 8], "table")?],
        |inputs| Ok(embedding::forward(&inputs[0], &rows)?),
        |inputs, dy| {
            let dtable = zeros_like(&inputs[0])?;
            embedding::backward(&dtable, dy, &rows)?;
            Ok(vec![dtable])
        },
    )
}

fn cross_entropy_error() -> Result<f64> {
    let targets = [3, 39, 0, 7, 7, 21];
    difference_error(
        &[random(&[6, 16], "x")?, random(&[40, 16], "w")?],
        |inputs| {
            let losses = cross_entropy::losses(&inputs[0], &inputs[1], &targets, Precision::F32)?;
            Ok(Tensor::from_vec(vec![losses.iter().sum::<f32>()], 1, &Device::Cpu)?)
        },
        |inputs, dy| {
            let (dw, weight) = (zeros_like(&inputs[1])?, f64::from(to_vec(dy)?[0]));
            let out = cross_entropy::forward_backward(&inputs[0], &inputs[1], &targets, weight, &dw, Precision::F32)?;
            Ok(vec![out.dx, dw])
        },
    )
}

fn dropout_error() -> Result<f64> {
    let noise = Noise { key: 5, first_row: 2 };
    difference_error(
        &[random(&[5, 24], "x")?],
        |inputs| Ok(dropout(&inputs[0], 0.3, noise)?),
        |_, dy| Ok(vec![dropout(dy, 0.3, noise)?]),
    )
}

/// An adapter's output is added to some columns of a fused product, each with its scale.
fn columns_error() -> Result<f64> {
    let scale: Vec<f32> = normal(8, "scale");
    difference_error(
        &[random(&[5, 24], "y")?, random(&[5, 8], "d")?],
        |inputs| {
            let y = inputs[0].copy()?;
            add_columns(&y, 10, &inputs[1], &scale)?;
            Ok(y)
        },
        |_, dy| {
            let d = columns(dy, 10, 8)?;
            scale_columns(&d, 0, &scale)?;
            Ok(vec![dy.clone(), d])
        },
    )
}

/// DoRA's: columns times `m / norm`, by columns and by `m`.
fn scales_error() -> Result<f64> {
    let reciprocals: Vec<f32> = normal(8, "norm").iter().map(|norm| 1.0 / (2.0 + norm.abs())).collect();
    let scales = |m: &Tensor| -> Result<Vec<f32>> {
        Ok(to_vec(m)?.iter().zip(&reciprocals).map(|(m, reciprocal)| m * reciprocal).collect())
    };
    difference_error(
        &[random(&[5, 8], "y")?, random(&[8], "m")?],
        |inputs| {
            let y = inputs[0].copy()?;
            scale_columns(&y, 0, &scales(&inputs[1])?)?;
            Ok(y)
        },
        |inputs, dy| {
            let (scaled, sums) = (dy.copy()?, zeros_like(&inputs[1])?);
            scale_columns(&scaled, 0, &scales(&inputs[1])?)?;
            add_column_dots(&sums, dy, &inputs[0], &reciprocals)?;
            Ok(vec![scaled, sums])
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gradient_that_is_one_percent_or_one_element_off_is_found() -> Result<()> {
        let inputs = [random(&[5, 48], "gate_up")?];
        let with = |spoil: &dyn Fn(&mut Vec<f32>)| {
            difference_error(
                &inputs,
                |inputs| Ok(swiglu::forward(&inputs[0])?),
                |inputs, dy| {
                    let mut values = to_vec(&swiglu::backward(dy, &inputs[0])?)?;
                    spoil(&mut values);
                    Ok(vec![Tensor::from_vec(values, inputs[0].shape(), &Device::Cpu)?])
                },
            )
        };
        assert!(with(&|_| {})? < BOUND);
        assert!(with(&|values| values.iter_mut().for_each(|value| *value *= 1.02))? > BOUND);
        assert!(with(&|values| values[7] += 0.5)? > BOUND);
        assert!(with(&|values| values[7] = f32::NAN)?.is_nan());
        Ok(())
    }
}
