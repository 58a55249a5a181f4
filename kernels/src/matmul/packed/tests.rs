//! Every kernel that this processor can run, against f64 and against itself bit for bit.

use candle_core::Device;
use rayon::ThreadPoolBuilder;

use super::*;

/// `len` values between -1 and 1.
pub(in super::super) fn random(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as f32 / u32::MAX as f32 * 2.0 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn pack(w: &[f32], (out, inner): (usize, usize), dtype: WeightDtype) -> PackedWeight {
    let fill = |first: usize, rows: &mut [f32]| -> std::result::Result<(), ()> {
        rows.copy_from_slice(&w[first * inner..first * inner + rows.len()]);
        Ok(())
    };
    PackedWeight::pack((out, inner), dtype, fill).expect("fill does not fail")
}

/// The value rounded to bf16.
pub(in super::super) fn bf16(value: f32) -> f32 {
    f32::from_bits(tile::pair(value, 0.0) << 16)
}

const SHAPES: [(usize, usize, usize); 9] = [
    (1, 1, 1),
    (1, 5, 3),
    (2, 31, 33),
    (3, 64, 32),
    (7, 65, 96),
    (12, 129, 31),
    (13, 48, 64),
    (40, 700, 97),
    (129, 257, 130),
];

#[test]
fn every_kernel_is_the_product_of_what_it_was_given() {
    for dtype in [WeightDtype::F32, WeightDtype::Bf16] {
        for kernel in tile::kernels(dtype) {
            for (rows, inner, out) in SHAPES {
                let (x, w) = (random(rows * inner, 1), random(out * inner, 2));
                let (bias, residual) = (random(out, 3), random(rows * out, 4));
                let mut got = residual.clone();
                let place = Place::new(&mut got, rows, out, Some(&bias), true);
                pack(&w, (out, inner), dtype).multiply(kernel, &Rows::Plain(&x), rows, &place);
                // What rounding the operands alone costs is no error of the kernel.
                let w: Vec<f32> = if dtype == WeightDtype::Bf16 { w.into_iter().map(bf16).collect() } else { w };
                let x: Vec<f32> = if kernel.name == "avx512bf16" { x.into_iter().map(bf16).collect() } else { x };
                for (i, got) in got.iter().enumerate() {
                    let (row, column) = (i / out, i % out);
                    let products = x[row * inner..].iter().zip(&w[column * inner..]).take(inner);
                    let sum: f64 = products.map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                    let expected = sum + f64::from(bias[column]) + f64::from(residual[i]);
                    let error = (f64::from(*got) - expected).abs();
                    assert!(
                        error < 1e-5 * (inner as f64).sqrt().max(2.0),
                        "{} {rows} {inner} {out}: {error}",
                        kernel.name
                    );
                }
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_among_any_number_of_rows_and_threads() {
    let pools = [1, 2].map(|threads| ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool"));
    for dtype in [WeightDtype::F32, WeightDtype::Bf16] {
        for kernel in tile::kernels(dtype) {
            for (inner, out) in [(64, 172), (172, 64), (601, 48), (2048, 300)] {
                let (x, w) = (random(130 * inner, 5), pack(&random(out * inner, 6), (out, inner), dtype));
                let bits = |x: &[f32], rows: usize| -> Vec<u32> {
                    w.multiply_to_vec(kernel, &Rows::Plain(x), rows, None).into_iter().map(f32::to_bits).collect()
                };
                let all = pools[0].install(|| bits(&x, 130));
                for pool in &pools {
                    for rows in [1, 2, 3, 8, 13, 31, 64, 129] {
                        for first in [0, 130 - rows] {
                            let part = pool.install(|| bits(&x[first * inner..(first + rows) * inner], rows));
                            assert_eq!(
                                part,
                                all[first * out..(first + rows) * out],
                                "{} {inner} {out} {rows}",
                                kernel.name
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn kernels_of_one_kind_agree() {
    // f32 kernels differ by nothing but their vectors' width where all of them fuse; widened bf16 likewise.
    let (rows, inner, out) = (5, 300, 70);
    let (x, w) = (random(rows * inner, 7), random(out * inner, 8));
    for dtype in [WeightDtype::F32, WeightDtype::Bf16] {
        let w = pack(&w, (out, inner), dtype);
        let results: Vec<Vec<f32>> = tile::kernels(dtype)
            .into_iter()
            .map(|kernel| w.multiply_to_vec(kernel, &Rows::Plain(&x), rows, None))
            .collect();
        for result in &results {
            for (a, b) in result.iter().zip(&results[0]) {
                // One rounding of the activations to 8 bits, over sums of 300 products.
                assert!((a - b).abs() < 0.1, "{a} {b}");
            }
        }
    }
}

#[test]
fn gathered_rows_are_the_matrix() -> Result<()> {
    for (out, inner) in [(70, 33), (3, 8)] {
        let w = random(out * inner, 9);
        for dtype in [WeightDtype::F32, WeightDtype::Bf16] {
            let packed = PackedWeight::from_tensor(&Tensor::from_slice(&w, (out, inner), &Device::Cpu)?, dtype)?;
            assert_eq!(packed.dims(), (out, inner));
            let rows: Vec<u32> = (0..out as u32).rev().collect();
            let got = packed.gather(&rows)?.to_vec2::<f32>()?;
            for (row, got) in rows.iter().zip(got) {
                let expected = &w[*row as usize * inner..][..inner];
                let rounded: Vec<f32> = match dtype {
                    WeightDtype::F32 => expected.to_vec(),
                    WeightDtype::Bf16 => expected.iter().map(|value| bf16(*value)).collect(),
                };
                assert_eq!(got, rounded);
            }
            assert!(packed.gather(&[out as u32]).is_err());
        }
    }
    Ok(())
}

#[test]
fn values_are_rounded_to_the_nearest_bf16_and_nan_stays() {
    assert_eq!(bf16(1.0), 1.0);
    assert_eq!(bf16(1.0 + 1.0 / 256.0), 1.0, "a tie goes to even");
    assert_eq!(bf16(1.0 + 3.0 / 256.0), 1.0 + 4.0 / 256.0);
    assert_eq!(bf16(1.0 + 1.01 / 256.0), 1.0 + 2.0 / 256.0);
    assert_eq!(bf16(f32::NEG_INFINITY), f32::NEG_INFINITY);
    assert_eq!(bf16(f32::MAX), f32::INFINITY);
    assert!(bf16(f32::from_bits(0x7f80_0001)).is_nan());
    assert_eq!(tile::pair(1.0, -2.0), 0xc000_3f80);
}

#[test]
fn a_norm_or_a_gate_on_the_way_has_the_bits_of_the_op_by_itself() -> Result<()> {
    let (rows, inner, out) = (29, 70, 40);
    let tensor =
        |len: usize, width: usize, seed| Tensor::from_vec(random(len, seed), (len / width, width), &Device::Cpu);
    let (x, gate_up) = (tensor(rows * inner, inner, 10)?, tensor(2 * rows * inner, 2 * inner, 11)?);
    let norm = Tensor::from_vec(random(inner, 12), inner, &Device::Cpu)?;
    let bias = Tensor::from_vec(random(out, 13), out, &Device::Cpu)?;
    let normed = crate::rms_norm::forward(&x, &norm, 1e-5)?.0;
    let gated = crate::swiglu::forward(&gate_up)?;
    for dtype in [WeightDtype::F32, WeightDtype::Bf16] {
        let w = PackedWeight::from_tensor(&tensor(out * inner, inner, 14)?, dtype)?;
        for (fused, plain) in
            [(Input::RmsNorm { x: &x, w: &norm, eps: 1e-5 }, &normed), (Input::SwiGlu(&gate_up), &gated)]
        {
            let expected = w.forward(Input::Rows(plain), Some(&bias))?.to_vec2::<f32>()?;
            assert_eq!(w.forward(fused, Some(&bias))?.to_vec2::<f32>()?, expected);
            // Into memory with more rows than are needed, and on top of what is there.
            let y = Tensor::ones((rows + 3, out), candle_core::DType::F32, &Device::Cpu)?;
            w.forward_into(fused, Some(&bias), &y)?;
            assert_eq!(y.narrow(0, 0, rows)?.to_vec2::<f32>()?, expected);
            w.add_to(fused, Some(&bias), &y)?;
            let twice: Vec<Vec<f32>> =
                expected.iter().map(|row| row.iter().map(|value| value + value).collect()).collect();
            assert_eq!(y.narrow(0, 0, rows)?.to_vec2::<f32>()?, twice);
            assert_eq!(y.narrow(0, rows, 3)?.to_vec2::<f32>()?, vec![vec![1.0; out]; 3]);
        }
    }
    Ok(())
}

#[test]
fn wrong_shapes_are_refused() -> Result<()> {
    let zeros = |shape: &[usize]| Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu);
    let w = PackedWeight::from_tensor(&zeros(&[4, 3])?, WeightDtype::F32)?;
    let x = zeros(&[2, 3])?;
    assert_eq!(w.forward(Input::Rows(&x), None)?.dims(), [2, 4]);
    assert!(w.forward(Input::Rows(&zeros(&[2, 4])?), None).is_err());
    assert!(w.forward(Input::Rows(&x), Some(&zeros(&[3])?)).is_err());
    assert!(w.forward(Input::SwiGlu(&x), None).is_err());
    assert!(w.forward(Input::RmsNorm { x: &x, w: &zeros(&[4])?, eps: 1e-5 }, None).is_err());
    assert!(w.forward_into(Input::Rows(&x), None, &zeros(&[1, 4])?).is_err());
    assert!(w.add_to(Input::Rows(&x), None, &zeros(&[2, 3])?).is_err());
    assert_eq!(w.forward(Input::Rows(&zeros(&[0, 3])?), None)?.dims(), [0, 4]);
    Ok(())
}
