//! `[report]`: the page that people read.

use serde::{Deserialize, Serialize};

/// Stage 5.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReportConfig {
    /// Training rows and evaluation items shown.
    pub num_samples: usize,
}

impl Default for ReportConfig {
    fn default() -> Self {
        Self { num_samples: 12 }
    }
}
