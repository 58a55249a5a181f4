//! What plays the GPU must find faults: the other tests are worth no more than it.

use candle_core::Result;
use glan_kernels::gpu::{Arg, Array, Gpu, Launch};

use crate::host::{device, random};

fn launch(gpu: &Gpu, kernel: &'static str, shared_bytes: usize, args: &[Arg]) -> Result<()> {
    let launch = Launch { module: "faults", kernel, blocks: [1; 3], threads: 64, shared_bytes, args };
    // SAFETY: the arrays are as long as the kernels need, or what they do past their end is caught by the guard.
    unsafe { gpu.launch(&launch) }
}

#[test]
fn races_waits_for_ever_and_writes_past_the_end_are_found() -> Result<()> {
    let run = |seed: u64, wait: bool| -> Result<Option<Vec<f32>>> {
        let Some(gpu) = device(seed) else { return Ok(None) };
        let (x, y) = (Array::from_slice(&gpu, &random(64, 1))?, Array::<f32>::uninit(&gpu, 64)?);
        launch(&gpu, "faults_barrier", 256, &[(&y).into(), (&x).into(), wait.into()])?;
        Ok(Some(y.to_vec()?))
    };
    let Some(first) = run(1, true)? else { return Ok(()) };
    assert_eq!(Some(&first), run(2, true)?.as_ref());
    let without = run(1, false)?.expect("a compiler");
    assert!(without.iter().any(|value| value.is_nan()), "a read of shared memory before its write");
    let other = run(2, false)?.expect("a compiler");
    assert!(without.iter().zip(&other).any(|(a, b)| a.to_bits() != b.to_bits()), "two orders give the same");

    let gpu = device(1).expect("a compiler");
    let (long, short) = (Array::<f32>::uninit(&gpu, 64)?, Array::<f32>::uninit(&gpu, 63)?);
    let error = |kernel, shared_bytes, array: &Array<f32>| {
        launch(&gpu, kernel, shared_bytes, &[array.into()]).expect_err(kernel).to_string()
    };
    assert!(error("faults_half_waits", 0, &long).contains("never come"));
    assert!(error("faults_shared", 256, &long).contains("past its 256 bytes of shared memory"));
    assert!(launch(&gpu, "faults_shared", 260, &[(&long).into()]).is_ok());
    assert!(launch(&gpu, "faults_array", 0, &[(&long).into()]).is_ok());
    assert!(error("faults_array", 0, &short).contains("past the end of an array of 252 bytes"));
    Ok(())
}
