//! The ops that pass over their rows once: norm, rotation, SwiGLU, embedding.

use candle_core::{Device, Result, Tensor};
use glan_kernels::{
    embedding,
    gpu::{self, Array, Float},
    rms_norm, rope, swiglu,
};
use half::bf16;

use crate::host::{array, close, on_every_dialect, random, rounded, tensor, values, worst};

/// Rows and columns: single values, no multiple of anything, whole packs, more than one pass of a block.
const SHAPES: [(usize, usize); 5] = [(1, 1), (3, 77), (2, 128), (5, 1000), (300, 24)];

/// Largest difference over the largest value: rounding once to bf16 costs 2^-9, twice (a sum that is kept) 2^-8.
fn tolerance<F: Float>() -> f32 {
    if size_of::<F>() == 4 { 3e-6 } else { 8e-3 }
}

fn norm_case<F: Float>(rows: usize, width: usize) -> Result<()> {
    let (x, more) = (rounded::<F>(&random(rows * width, 1)), rounded::<F>(&random(rows * width, 2)));
    let w = rounded::<F>(&random(width, 3));
    let h: Vec<f32> = x.iter().zip(&more).map(|(x, more)| F::from_f32(x + more).to_f32()).collect();
    let (plain, _) = rms_norm::forward(&tensor(&x, (rows, width))?, &tensor(&w, width)?, 1e-5)?;
    let (added, rstd) = rms_norm::forward(&tensor(&h, (rows, width))?, &tensor(&w, width)?, 1e-5)?;
    let expected = [values(&plain)?, values(&added)?, h.clone()].concat();
    let results = on_every_dialect(|gpu| {
        let (x, more, w) = (array::<F>(gpu, &x)?, array::<F>(gpu, &more)?, array::<F>(gpu, &w)?);
        let (plain, y) = (Array::uninit(gpu, rows * width)?, Array::uninit(gpu, rows * width)?);
        let (sum, kept) = (Array::uninit(gpu, rows * width)?, Array::<f32>::uninit(gpu, rows)?);
        gpu::rms_norm::forward(&plain, None, &x, None, &w, 1e-5)?;
        gpu::rms_norm::forward(&y, Some(&kept), &x, Some((&more, &sum)), &w, 1e-5)?;
        assert!(worst(&kept.to_vec()?, &values(&rstd)?) < 1e-6);
        Ok([plain.to_vec()?, y.to_vec()?, sum.to_vec()?].concat())
    })?;
    close::<F>("rms_norm", &results, &expected, tolerance::<F>());

    let dy = rounded::<F>(&random(rows * width, 4));
    let dw = Tensor::ones(width, candle_core::DType::F32, &Device::Cpu)?;
    let dx = rms_norm::backward(
        &tensor(&dy, (rows, width))?,
        &tensor(&h, (rows, width))?,
        &tensor(&w, width)?,
        &rstd,
        &dw,
        Some(&tensor(&more, (rows, width))?),
    )?;
    let rstd = values(&rstd)?;
    for wants_weight in [false, true] {
        let expected = if wants_weight { values(&dw)? } else { values(&dx)? };
        let results = on_every_dialect(|gpu| {
            let (dx, sums) = (Array::<F>::uninit(gpu, rows * width)?, Array::from_slice(gpu, &vec![1f32; width])?);
            let given = gpu::rms_norm::Given {
                dy: &array::<F>(gpu, &dy)?,
                x: &array::<F>(gpu, &h)?,
                w: &array::<F>(gpu, &w)?,
                rstd: &Array::from_slice(gpu, &rstd)?,
                residual: Some(&array::<F>(gpu, &more)?),
            };
            gpu::rms_norm::backward(&dx, &sums, given)?;
            if wants_weight { sums.to_vec() } else { Ok(dx.to_vec()?.into_iter().map(Float::to_f32).collect()) }
        })?;
        // Sums of weights stay in f32, in another order than the CPU's.
        close::<F>("rms_norm backward", &results, &expected, if wants_weight { 1e-5 } else { tolerance::<F>() });
    }
    Ok(())
}

#[test]
fn rms_norm_equals_the_cpu() -> Result<()> {
    for (rows, width) in SHAPES {
        norm_case::<f32>(rows, width)?;
        norm_case::<bf16>(rows, width)?;
    }
    Ok(())
}

fn swiglu_case<F: Float>(rows: usize, half: usize) -> Result<()> {
    let gate_up: Vec<f32> = rounded::<F>(&random(rows * 2 * half, 5)).iter().map(|value| value * 8.0).collect();
    let dy = rounded::<F>(&random(rows * half, 6));
    let on_cpu = tensor(&gate_up, (rows, 2 * half))?;
    let expected =
        [values(&swiglu::forward(&on_cpu)?)?, values(&swiglu::backward(&tensor(&dy, (rows, half))?, &on_cpu)?)?]
            .concat();
    let results = on_every_dialect(|gpu| {
        let (gate_up, dy) = (array::<F>(gpu, &gate_up)?, array::<F>(gpu, &dy)?);
        let (y, gradient) = (Array::<F>::uninit(gpu, dy.len())?, Array::uninit(gpu, gate_up.len())?);
        gpu::swiglu::forward(&y, &gate_up, half)?;
        gpu::swiglu::backward(&gradient, &dy, &gate_up, half)?;
        Ok([y.to_vec()?, gradient.to_vec()?].concat())
    })?;
    close::<F>("swiglu", &results, &expected, tolerance::<F>());
    Ok(())
}

#[test]
fn swiglu_equals_the_cpu() -> Result<()> {
    for (rows, half) in SHAPES {
        swiglu_case::<f32>(rows, half)?;
        swiglu_case::<bf16>(rows, half)?;
    }
    Ok(())
}

fn rope_case<F: Float>(heads: usize, half: usize, extra: usize) -> Result<()> {
    let (rows, width) = (5, heads * 2 * half + extra);
    let before = rounded::<F>(&random(rows * width, 7));
    let angles: Vec<f32> =
        (0..16).flat_map(|position| (0..half).map(move |i| position as f32 / (i as f32 + 1.0))).collect();
    let angles = tensor(&angles, (16, half))?;
    let (cos, sin) = (angles.cos()?, angles.sin()?);
    let positions = [0u32, 3, 7, 15, 2];
    for inverse in [false, true] {
        let on_cpu = tensor(&before, (rows, width))?;
        rope::in_place(&on_cpu, &cos, &sin, &positions, heads, inverse)?;
        let (cos, sin) = (values(&cos)?, values(&sin)?);
        let results = on_every_dialect(|gpu| {
            let qkv = array::<F>(gpu, &before)?;
            let tables =
                gpu::rope::Tables { cos: Array::from_slice(gpu, &cos)?, sin: Array::from_slice(gpu, &sin)?, half };
            let positions = positions.map(|position| position as i32);
            tables.check(&positions)?;
            assert!(tables.check(&[16]).is_err());
            gpu::rope::in_place(&qkv, &tables, &Array::from_slice(gpu, &positions)?, heads, inverse)?;
            qkv.to_vec()
        })?;
        close::<F>("rope", &results, &values(&on_cpu)?, tolerance::<F>());
    }
    Ok(())
}

#[test]
fn rope_equals_the_cpu() -> Result<()> {
    for (heads, half, extra) in [(1, 1, 0), (3, 4, 8), (5, 40, 80), (2, 32, 3)] {
        rope_case::<f32>(heads, half, extra)?;
        rope_case::<bf16>(heads, half, extra)?;
    }
    Ok(())
}

fn embedding_case<F: Float>(width: usize) -> Result<()> {
    let (vocab_size, tokens) = (9, [3u32, 8, 3, 0, 3, 8, 1]);
    let (table, dy) = (rounded::<F>(&random(vocab_size * width, 8)), rounded::<F>(&random(tokens.len() * width, 9)));
    let dtable = Tensor::ones((vocab_size, width), candle_core::DType::F32, &Device::Cpu)?;
    let y = embedding::forward(&tensor(&table, (vocab_size, width))?, &tokens)?;
    embedding::backward(&dtable, &tensor(&dy, (tokens.len(), width))?, &tokens)?;
    let expected = [values(&y)?, values(&dtable)?].concat();
    let results = on_every_dialect(|gpu| {
        assert!(gpu::embedding::Tokens::new(gpu, &[9], vocab_size, true).is_err());
        let tokens = gpu::embedding::Tokens::new(gpu, &tokens, vocab_size, true)?;
        let y = Array::<F>::uninit(gpu, dy.len())?;
        let dtable = Array::from_slice(gpu, &vec![1f32; vocab_size * width])?;
        gpu::embedding::forward(&y, &array::<F>(gpu, &table)?, &tokens)?;
        gpu::embedding::backward(&dtable, &array::<F>(gpu, &dy)?, &tokens)?;
        let y: Vec<f32> = y.to_vec()?.into_iter().map(Float::to_f32).collect();
        Ok([y, dtable.to_vec()?].concat())
    })?;
    // Copies and sums in the same order: the same bits.
    close::<F>("embedding", &results, &expected, 0.0);
    Ok(())
}

#[test]
fn embedding_equals_the_cpu_bit_for_bit() -> Result<()> {
    for width in [1, 33, 64, 520] {
        embedding_case::<f32>(width)?;
        embedding_case::<bf16>(width)?;
    }
    Ok(())
}

fn linear_case<F: Float>((rows, out, inner): (usize, usize, usize)) -> Result<()> {
    let (x, w) = (rounded::<F>(&random(rows * inner, 30)), rounded::<F>(&random(out * inner, 31)));
    let (dy, bias) = (rounded::<F>(&random(rows * out, 32)), rounded::<F>(&random(out, 33)));
    let on_cpu = (tensor(&x, (rows, inner))?, tensor(&w, (out, inner))?, tensor(&dy, (rows, out))?);
    let y = on_cpu.0.matmul(&on_cpu.1.t()?)?;
    let expected = [
        values(&y.broadcast_add(&tensor(&bias, out)?)?)?,
        values(&(&y + &on_cpu.2)?)?,
        values(&on_cpu.2.matmul(&on_cpu.1)?)?,
        values(&(on_cpu.2.t()?.matmul(&on_cpu.0)? + 1.0)?)?,
    ];
    let results = on_every_dialect(|gpu| {
        let (x, w, dy) = (array::<F>(gpu, &x)?, array::<F>(gpu, &w)?, array::<F>(gpu, &dy)?);
        let (y, sum) = (
            Array::<F>::uninit(gpu, rows * out)?,
            array::<F>(gpu, &dy.to_vec()?.iter().map(|it| it.to_f32()).collect::<Vec<_>>())?,
        );
        let (dx, dw) = (Array::<F>::uninit(gpu, rows * inner)?, Array::from_slice(gpu, &vec![1f32; out * inner])?);
        let bias = array::<F>(gpu, &bias)?;
        gpu::matmul::linear(&y, &x, &w, Some(&bias), (out, inner), false)?;
        gpu::matmul::linear(&sum, &x, &w, None, (out, inner), true)?;
        gpu::matmul::linear_backward_input(&dx, &dy, &w, (out, inner))?;
        gpu::matmul::linear_backward_weight(&dw, &dy, &x, (out, inner))?;
        assert!(gpu::matmul::linear(&sum, &x, &w, Some(&bias), (out, inner), true).is_err());
        assert!(gpu::matmul::linear(&y, &x, &w, None, (out + 1, inner), false).is_err());
        let floats =
            |array: Array<F>| Ok::<_, candle_core::Error>(array.to_vec()?.into_iter().map(Float::to_f32).collect());
        Ok([floats(y)?, floats(sum)?, floats(dx)?, dw.to_vec()?].concat())
    })?;
    close::<F>("linear", &results, &expected.concat(), tolerance::<F>());
    Ok(())
}

#[test]
fn products_lie_as_a_linear_layer_needs_them() -> Result<()> {
    for shape in [(1, 1, 1), (3, 5, 7), (4, 16, 8)] {
        linear_case::<f32>(shape)?;
        linear_case::<bf16>(shape)?;
    }
    Ok(())
}
