//! `glan doctor`: what this machine and this binary can do. Looks, and changes nothing.

use std::{
    fmt::Write,
    path::{Path, PathBuf},
};

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use crate::{
    device::{Device, DeviceKind},
    engine::memory,
    evaluate::sandbox::{self, Layer},
    model_dir::HubEnvironment,
    telemetry,
};

/// Arguments of `glan doctor`.
#[derive(Debug, Clone, Args)]
pub struct DoctorArgs {
    /// Machine-readable result on stdout.
    #[arg(long)]
    pub json: bool,
}

/// What was found.
#[derive(Debug, Clone, Serialize)]
struct Findings {
    version: &'static str,
    target: String,
    /// Instruction sets that the kernels look for, and whether this processor has them.
    cpu_features: Vec<CpuFeature>,
    cores: usize,
    memory_bytes: Option<u64>,
    available_memory_bytes: Option<u64>,
    /// Free for this user where the current folder lies, and so by default every run.
    free_disk_bytes: Option<u64>,
    devices: Vec<DeviceFinding>,
    hugging_face_cache: CacheFinding,
    /// Layers of the code sandbox.
    code_sandbox: Vec<LayerFinding>,
    /// What would run where.
    plan: Vec<Placement>,
}

#[derive(Debug, Clone, Serialize)]
struct CpuFeature {
    name: &'static str,
    present: bool,
}

#[derive(Debug, Clone, Serialize)]
struct DeviceFinding {
    name: &'static str,
    usable: bool,
    /// A GPU's name, architecture, memory and driver.
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

#[derive(Debug, Clone, Serialize)]
struct CacheFinding {
    path: Option<PathBuf>,
    exists: bool,
    num_models: usize,
}

#[derive(Debug, Clone, Serialize)]
struct LayerFinding {
    layer: Layer,
    present: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

#[derive(Debug, Clone, Serialize)]
struct Placement {
    work: &'static str,
    device: &'static str,
    dtype: &'static str,
}

/// Runs the command.
pub fn main(args: &DoctorArgs) -> Result<()> {
    let missing = sandbox::missing_layers(&std::env::current_exe()?)?;
    let findings = look(&missing);
    if args.json {
        telemetry::print_result(serde_json::to_string_pretty(&findings)?);
    } else {
        telemetry::print_result(table(&findings).trim_end());
    }
    Ok(())
}

fn look(missing_layers: &[(Layer, String)]) -> Findings {
    let devices =
        [("cpu", DeviceKind::Cpu), ("cuda", DeviceKind::Cuda), ("metal", DeviceKind::Metal)].map(|(name, kind)| {
            match kind.open() {
                Ok(Device::Cpu) => DeviceFinding { name, usable: true, model: None, reason: None },
                Ok(Device::Gpu(gpu)) => DeviceFinding { name, usable: true, model: Some(gpu.name()), reason: None },
                Err(error) => DeviceFinding { name, usable: false, model: None, reason: Some(error.to_string()) },
            }
        });
    // What `device = "auto"` chooses: see `DeviceKind::open`.
    let plan = ["teacher", "student", "train"].map(|work| Placement { work, device: "cpu", dtype: "f32" });
    Findings {
        version: env!("CARGO_PKG_VERSION"),
        target: format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
        cpu_features: cpu_features(),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        memory_bytes: memory::total_bytes(),
        available_memory_bytes: memory::available_bytes(),
        free_disk_bytes: rustix::fs::statvfs(".").ok().map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize)),
        devices: devices.into(),
        hugging_face_cache: look_at_cache(HubEnvironment::from_process().cache()),
        code_sandbox: Layer::ALL.map(|layer| layer_finding(layer, missing_layers)).into(),
        plan: plan.into(),
    }
}

fn layer_finding(layer: Layer, missing: &[(Layer, String)]) -> LayerFinding {
    let reason = missing.iter().find(|(it, _)| *it == layer).map(|(_, reason)| reason.clone());
    LayerFinding { layer, present: reason.is_none(), reason }
}

#[cfg(target_arch = "x86_64")]
fn cpu_features() -> Vec<CpuFeature> {
    vec![
        CpuFeature { name: "avx2", present: is_x86_feature_detected!("avx2") },
        CpuFeature { name: "fma", present: is_x86_feature_detected!("fma") },
        CpuFeature { name: "avx512f", present: is_x86_feature_detected!("avx512f") },
        CpuFeature { name: "avx512bf16", present: is_x86_feature_detected!("avx512bf16") },
    ]
}

#[cfg(not(target_arch = "x86_64"))]
fn cpu_features() -> Vec<CpuFeature> {
    // The other supported architectures have their vectors in the base set.
    Vec::new()
}

fn look_at_cache(path: Option<PathBuf>) -> CacheFinding {
    let exists = path.as_deref().is_some_and(Path::is_dir);
    let entries = path.as_deref().and_then(|path| path.read_dir().ok());
    let num_models = entries.map_or(0, |entries| {
        entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with("models--")).count()
    });
    CacheFinding { path, exists, num_models }
}

fn table(findings: &Findings) -> String {
    let mut text = String::new();
    let mut row = |name: &str, value: &str| writeln!(text, "{name:<20}{value}").expect("a string takes all text");
    row("glan", findings.version);
    row("target", &findings.target);
    row("cores", &findings.cores.to_string());
    let features: Vec<String> = findings
        .cpu_features
        .iter()
        .map(|feature| format!("{} {}", feature.name, if feature.present { "yes" } else { "no" }))
        .collect();
    row("cpu features", &features.join(", "));
    row("memory", &size(findings.memory_bytes));
    row("memory available", &size(findings.available_memory_bytes));
    row("disk free here", &size(findings.free_disk_bytes));
    for device in &findings.devices {
        let line = match (&device.model, &device.reason) {
            (Some(model), _) => format!("usable: {model}; inference only, when asked for by name"),
            (None, reason) => reason.clone().unwrap_or_else(|| "usable".to_owned()),
        };
        row(&format!("device {}", device.name), &line);
    }
    let cache = &findings.hugging_face_cache;
    let place = cache.path.as_ref().map_or("unknown".to_owned(), |path| format!("`{}`", path.display()));
    let state = if cache.exists { format!("{} models", cache.num_models) } else { "not there".to_owned() };
    row("hugging face cache", &format!("{place}: {state}"));
    let missing: Vec<String> = findings
        .code_sandbox
        .iter()
        .filter_map(|finding| finding.reason.as_ref().map(|reason| format!("{} missing ({reason})", finding.layer)))
        .collect();
    row("code sandbox", &if missing.is_empty() { "complete".to_owned() } else { missing.join("; ") });
    for placement in &findings.plan {
        row(placement.work, &format!("{} in {}", placement.device, placement.dtype));
    }
    text
}

fn size(bytes: Option<u64>) -> String {
    bytes.map_or("unknown".to_owned(), |bytes| format!("{:.1} GiB", bytes as f64 / f64::from(1u32 << 30)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_in_the_cache_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("models--a--b")).unwrap();
        std::fs::create_dir(folder.path().join("datasets--a--b")).unwrap();
        let found = look_at_cache(Some(folder.path().to_owned()));
        assert_eq!((found.exists, found.num_models), (true, 1));
        assert!(!look_at_cache(Some(folder.path().join("none"))).exists);
    }

    #[test]
    fn the_table_names_everything_that_the_json_has() {
        let findings = look(&[(Layer::Landlock, "an old kernel".to_owned())]);
        let table = table(&findings);
        for word in [
            findings.version,
            "cores",
            "cpu features",
            "disk free",
            "device cpu",
            "usable",
            "teacher",
            "train",
            "f32",
            "landlock missing (an old kernel)",
        ] {
            assert!(table.contains(word), "`{word}` is missing in\n{table}");
        }
        assert!(findings.devices.iter().any(|device| device.name == "cpu" && device.usable));
        assert_eq!(findings.code_sandbox.iter().filter(|finding| finding.present).count(), Layer::ALL.len() - 1);
        assert_eq!(size(None), "unknown");
        assert_eq!(size(Some(3 << 29)), "1.5 GiB");
    }
}
