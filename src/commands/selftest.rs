//! `glan selftest`: the trainer's invariants on this machine, as a table. Changes nothing.

use std::time::Instant;

use anyhow::{Result, bail};
use clap::Args;

use crate::{
    device::DeviceKind,
    telemetry,
    train::{Check, selftest},
};

/// Arguments of `glan selftest`.
#[derive(Debug, Clone, Args)]
pub struct SelftestArgs {
    /// Where to compute.
    #[arg(long, value_enum, default_value = "auto")]
    pub device: DeviceKind,
    /// Machine-readable result on stdout.
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
///
/// **Errors**: a check that fails (exit code 1), after all of them have been printed.
pub fn main(args: &SelftestArgs) -> Result<()> {
    let (device, begun) = (args.device.open_for_training()?, Instant::now());
    let checks = selftest(&device, |check| {
        if !args.json {
            telemetry::print_result(line(check));
        }
    })?;
    if args.json {
        telemetry::print_result(serde_json::to_string_pretty(&checks)?);
    } else {
        let passed = checks.iter().filter(|check| check.passed).count();
        let seconds = begun.elapsed().as_secs_f64();
        telemetry::print_result(format!("{passed} of {} checks passed in {seconds:.1} s", checks.len()));
    }
    judge(&checks)
}

fn line(check: &Check) -> String {
    let error = match (check.error, &check.message) {
        (Some(error), _) => format!("{error:.1e}"),
        (None, Some(message)) => message.clone(),
        (None, None) => "?".to_owned(),
    };
    let bound = if check.bound == 0.0 { "to the bit".to_owned() } else { format!("at most {:.0e}", check.bound) };
    format!("{:<6} {:<42} {error:>9}  {bound}", if check.passed { "ok" } else { "FAILED" }, check.name)
}

fn judge(checks: &[Check]) -> Result<()> {
    let failed: Vec<&str> = checks.iter().filter(|check| !check.passed).map(|check| check.name.as_str()).collect();
    if failed.is_empty() {
        return Ok(());
    }
    bail!(
        "{} of {} checks failed: {}; do not train with this build on this machine",
        failed.len(),
        checks.len(),
        failed.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_check_is_shown_and_is_the_command_s_error() {
        let good =
            Check { name: "good".into(), error: Some(1e-6), bound: 1e-3, passed: true, message: None, seconds: 0.1 };
        let bad = Check { name: "bad".into(), error: Some(0.5), bound: 0.0, passed: false, ..good.clone() };
        assert!(judge(std::slice::from_ref(&good)).is_ok());
        let error = judge(&[good.clone(), bad.clone()]).expect_err("one failed");
        assert!(error.to_string().contains("1 of 2 checks failed: bad"), "{error}");
        assert_eq!(crate::error::exit_code(&error), 1);
        assert!(line(&good).starts_with("ok") && line(&good).contains("1.0e-6"));
        assert!(line(&bad).starts_with("FAILED") && line(&bad).ends_with("to the bit"));
    }
}
