//! Finds benchmark files and golden values that are too large for the repository, for the tests that use them.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::Value;

use crate::{records, telemetry};

/// The folder of benchmarks: under `$GLAN_SHARED`, else beside the repository.
pub fn benchmarks() -> Option<PathBuf> {
    let shared = std::env::var_os("GLAN_SHARED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"), PathBuf::from);
    Some(shared.join("benchmarks")).filter(|folder| folder.is_dir())
}

/// A file of golden values; `None`, said aloud, where the folder is not there.
pub fn golden(name: &str) -> Result<Option<Value>> {
    match benchmarks() {
        Some(folder) => records::read_json(&folder.join("golden").join(name)).map(Some),
        None => {
            telemetry::print_result(format!("skipped: no folder of benchmarks with golden/{name}"));
            Ok(None)
        }
    }
}
