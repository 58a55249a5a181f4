//! The trainer's invariants on the machine at hand: what the test suite holds against PyTorch and finite differences, in a
//! form that ships. `glan selftest` prints it.
//!
//! Every check measures one error and holds it against a bound; a bound of zero means: to the bit.

mod invariants;
mod operations;

use std::time::Instant;

use anyhow::Result;
use candle_core::Device;
use rand::Rng;
use serde::Serialize;

use crate::seed;

/// What one check found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Check {
    /// What was compared.
    pub name: String,
    /// Largest relative difference; `None` where the check itself failed.
    pub error: Option<f64>,
    /// The largest that passes.
    pub bound: f64,
    /// Whether it is within the bound.
    pub passed: bool,
    /// Why there is no error to speak of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Time that it took.
    pub seconds: f64,
}

impl Check {
    fn of(name: &str, bound: f64, measure: impl FnOnce() -> Result<f64>) -> Self {
        let begun = Instant::now();
        let (error, message) = match measure() {
            Ok(error) => (Some(error), None),
            Err(error) => (None, Some(format!("{error:#}"))),
        };
        // A difference that is no number is never within the bound.
        let passed = error.is_some_and(|error| error <= bound);
        Self { name: name.to_owned(), error, bound, passed, message, seconds: begun.elapsed().as_secs_f64() }
    }
}

/// Runs all checks on a device; `done` is told of each.
///
/// **Errors**: none of a check that fails, which is a result; only where the shipped model cannot be read.
pub fn run(device: &Device, mut done: impl FnMut(&Check)) -> Result<Vec<Check>> {
    let model = invariants::Shipped::load(device)?;
    let mut checks = Vec::new();
    let mut take = |check: Check| {
        done(&check);
        checks.push(check);
    };
    operations::run(&mut take);
    invariants::run(&model, &mut take);
    Ok(checks)
}

/// Normal numbers (the sum of twelve uniform ones) of a stream of their own.
fn normal(len: usize, name: &str) -> Vec<f32> {
    let mut random = seed::stream(1, "selftest", name);
    (0..len).map(|_| ((0..12).map(|_| random.random::<f64>()).sum::<f64>() - 6.0) as f32).collect()
}

/// `‖found - wanted‖ / ‖wanted‖`; infinite where the lengths differ.
fn distance(found: &[f32], wanted: &[f32]) -> f64 {
    if found.len() != wanted.len() {
        return f64::INFINITY;
    }
    let square = |value: f64| value * value;
    let scale: f64 = wanted.iter().map(|value| square(f64::from(*value))).sum();
    let off: f64 = found.iter().zip(wanted).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    if off == 0.0 { 0.0 } else { (off / scale).sqrt() }
}

/// 0 where all bits are equal, else infinite.
fn bits(found: &[f32], wanted: &[f32]) -> f64 {
    let same = found.len() == wanted.len() && found.iter().zip(wanted).all(|(a, b)| a.to_bits() == b.to_bits());
    if same { 0.0 } else { f64::INFINITY }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_check_passes_here() -> Result<()> {
        let mut told = 0;
        let checks = run(&Device::Cpu, |_| told += 1)?;
        assert!(told == checks.len() && told > 20, "{told}");
        for check in &checks {
            assert!(check.passed, "{check:?}");
        }
        Ok(())
    }

    #[test]
    fn a_check_fails_on_what_is_too_far_off_no_number_or_an_error() {
        assert!(Check::of("close", 1e-3, || Ok(1e-3)).passed);
        assert!(!Check::of("far", 1e-3, || Ok(1.1e-3)).passed);
        assert!(!Check::of("nan", 1e-3, || Ok(f64::NAN)).passed);
        let failed = Check::of("failed", 1e-3, || anyhow::bail!("no such file"));
        assert!(!failed.passed && failed.message.as_deref() == Some("no such file"));
        assert_eq!((bits(&[1.0], &[1.0]), bits(&[0.0], &[-0.0])), (0.0, f64::INFINITY));
        assert!(distance(&[f32::NAN], &[1.0]).is_nan() && distance(&[1.0], &[1.0, 2.0]).is_infinite());
        assert_eq!((distance(&[2.0, 0.0], &[1.0, 0.0]), distance(&[0.0], &[0.0])), (1.0, 0.0));
    }
}
