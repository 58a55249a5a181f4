//! The ops of a training step: losses, the gradient's norm, optimizer steps.

use candle_core::Result;
use glan_kernels::{
    adamw::{self, AdamW},
    adamw_8bit::{self, Moments},
    gpu::{self, Array, Float},
};
use half::bf16;

use crate::host::{array, close, on_every_dialect, random, rounded, tensor, values, worst};

fn settings(step: usize) -> AdamW {
    AdamW { learning_rate: 1e-2, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1, step, gradient_scale: 0.25 }
}

#[test]
fn adamw_and_the_norm_equal_the_cpu() -> Result<()> {
    for len in [1, 4, 1003, 5000] {
        let (p, g) = (random(len, 1), random(len, 2));
        let exact = g.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
        let on_cpu = [p.clone(), vec![0.0; len], vec![0.0; len]].map(|it| tensor(&it, len).unwrap());
        for t in 1..=3 {
            adamw::step(&on_cpu[0], &tensor(&g, len)?, &on_cpu[1], &on_cpu[2], &settings(t))?;
        }
        let expected = [values(&on_cpu[0])?, values(&on_cpu[1])?, values(&on_cpu[2])?].concat();
        let results = on_every_dialect(|gpu| {
            let (p, g) = (Array::from_slice(gpu, &p)?, Array::from_slice(gpu, &g)?);
            let (m, v) = (Array::zeros(gpu, len)?, Array::zeros(gpu, len)?);
            let copy = Array::<bf16>::uninit(gpu, len)?;
            let norm = gpu::adamw::Norm::new(gpu)?;
            norm.measure(&g, f32::MAX)?;
            assert!((f64::from(norm.value()?) / exact - 1.0).abs() < 1e-6);
            // Clipped to a quarter of itself.
            norm.measure(&g, exact as f32 / 4.0)?;
            for t in 1..=3 {
                let copied = (t == 3).then_some(&copy);
                gpu::adamw::step(&p, copied, &g, (&m, &v), &norm, &settings(t))?;
            }
            let p = p.to_vec()?;
            let copied: Vec<f32> = copy.to_vec()?.into_iter().map(bf16::to_f32).collect();
            assert_eq!(copied, rounded::<bf16>(&p));
            Ok([p, m.to_vec()?, v.to_vec()?].concat())
        })?;
        close::<f32>("adamw", &results, &expected, 1e-6);
    }
    Ok(())
}

#[test]
fn adamw_8bit_equals_the_cpu() -> Result<()> {
    for len in [1, 256, 1003] {
        let p = random(len, 3);
        let gradients: Vec<Vec<f32>> = (0..4).map(|t| random(len, 10 + t)).collect();
        let on_cpu = tensor(&p, len)?;
        let mut moments = Moments::zeros(len);
        for (g, t) in gradients.iter().zip(1..) {
            let with = AdamW { gradient_scale: 1.0, ..settings(t) };
            adamw_8bit::step(&on_cpu, &tensor(g, len)?, &mut moments, &with)?;
        }
        let results = on_every_dialect(|gpu| {
            let on_gpu = gpu::adamw_8bit::Moments::from_host(gpu, &Moments::zeros(len))?;
            let (p, norm) = (Array::from_slice(gpu, &p)?, gpu::adamw::Norm::new(gpu)?);
            for (g, t) in gradients.iter().zip(1..) {
                gpu::adamw_8bit::step(&p, &Array::from_slice(gpu, g)?, &on_gpu, &norm, &settings(t))?;
            }
            // Another order of multiplying may put a moment on the other side of a middle: the next code, for few values.
            let got = on_gpu.to_host()?;
            for (got, expected) in [(&got.first, &moments.first), (&got.second, &moments.second)] {
                let off: Vec<i32> = got.iter().zip(expected).map(|(a, b)| i32::from(*a) - i32::from(*b)).collect();
                assert!(off.iter().all(|off| off.abs() <= 1));
                assert!(off.iter().filter(|off| **off != 0).count() * 100 <= len, "{off:?}");
            }
            assert!(worst(&got.first_absmax, &moments.first_absmax) < 1e-5);
            assert!(worst(&got.second_absmax, &moments.second_absmax) < 1e-5);
            p.to_vec()
        })?;
        close::<f32>("adamw_8bit", &results, &values(&on_cpu)?, 1e-3);
    }
    Ok(())
}

/// The op's definition, in f64: losses, and the gradient for a weight.
fn losses(logits: &[f32], targets: &[u32], weight: f64) -> (Vec<f32>, Vec<f32>) {
    let width = logits.len() / targets.len();
    let (mut losses, mut gradients) = (Vec::new(), Vec::new());
    for (row, &target) in logits.chunks_exact(width).zip(targets) {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let exps: Vec<f64> = row.iter().map(|value| f64::from(value - largest).exp()).collect();
        let sum: f64 = exps.iter().sum();
        losses.push((f64::from(largest - row[target as usize]) + sum.ln()) as f32);
        let hot = |i: usize| if i == target as usize { 1.0 } else { 0.0 };
        gradients.extend(exps.iter().enumerate().map(|(i, e)| (weight * (e / sum - hot(i))) as f32));
    }
    (losses, gradients)
}

fn loss_case<F: Float>(rows: usize, vocab_size: usize) -> Result<()> {
    let mut logits = rounded::<F>(&random(rows * vocab_size, 20).iter().map(|it| it * 20.0).collect::<Vec<_>>());
    if vocab_size > 2 {
        logits[1] = f32::NEG_INFINITY;
    }
    let targets: Vec<u32> = (0..rows as u32).map(|row| (row * 7 + 2) % vocab_size as u32).collect();
    let (expected, gradients) = losses(&logits, &targets, 0.125);
    for weight in [None, Some(0.125)] {
        let results = on_every_dialect(|gpu| {
            let array = array::<F>(gpu, &logits)?;
            let losses = Array::<f32>::uninit(gpu, rows)?;
            assert!(gpu::cross_entropy::Targets::new(gpu, &[vocab_size as u32], vocab_size).is_err());
            let targets = gpu::cross_entropy::Targets::new(gpu, &targets, vocab_size)?;
            gpu::cross_entropy::forward(&array, &losses, &targets, weight)?;
            let logits: Vec<f32> = array.to_vec()?.into_iter().map(Float::to_f32).collect();
            Ok([losses.to_vec()?, logits].concat())
        })?;
        for result in &results {
            close::<F>("losses", &[result[..rows].to_vec()], &expected, 2e-6);
            let tolerance = if size_of::<F>() == 4 { 3e-6 } else { 4e-3 };
            let left = if weight.is_some() { &gradients } else { &logits };
            let finite = |values: &[f32]| values.iter().map(|it| it.max(-1e9)).collect::<Vec<_>>();
            close::<F>("gradients", &[finite(&result[rows..])], &finite(left), tolerance);
        }
    }
    Ok(())
}

#[test]
fn cross_entropy_equals_the_formula() -> Result<()> {
    for (rows, vocab_size) in [(1, 1), (3, 77), (2, 128), (2, 9001)] {
        loss_case::<f32>(rows, vocab_size)?;
        loss_case::<bf16>(rows, vocab_size)?;
    }
    // The fused op of the CPU gives the same losses.
    let (x, w) = (tensor(&random(6, 1), (2, 3))?, tensor(&random(15, 2), (5, 3))?);
    let on_cpu = glan_kernels::cross_entropy::losses(&x, &w, &[4, 0], glan_kernels::matmul::Precision::F32)?;
    assert!(worst(&on_cpu, &losses(&values(&x.matmul(&w.t()?)?)?, &[4, 0], 1.0).0) < 1e-6);
    Ok(())
}
