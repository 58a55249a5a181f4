//! `[evaluate.code]`: how benchmarks run the programs that a model writes.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The sandbox of code benchmarks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CodeConfig {
    /// Python 3: a name on `PATH`, or a path.
    pub python: String,
    /// Seconds of processor time per program, the interpreter's start included.
    pub cpu_seconds: u64,
    /// Seconds after which a program is ended that does not compute; generous, because a busy machine is slow.
    pub wall_seconds: u64,
    /// Address space per program, in MiB.
    pub memory_mib: u64,
    /// Layers of the sandbox that may be missing on this machine. Naming one accepts its risk.
    pub allow_missing_layers: Vec<SandboxLayer>,
}

impl Default for CodeConfig {
    fn default() -> Self {
        Self {
            python: "python3".into(),
            cpu_seconds: 3,
            wall_seconds: 120,
            memory_mib: 1024,
            allow_missing_layers: Vec::new(),
        }
    }
}

/// One barrier between a program and the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SandboxLayer {
    /// Users, mounts, processes, network, host name and shared memory of its own; an empty scratch folder in memory.
    Namespaces,
    /// Reads the interpreter's files alone, writes in the scratch folder alone.
    Landlock,
    /// Calls what a computation needs, nothing else: no new processes or threads, no sockets, no tracing.
    Seccomp,
    /// Limits of processor time, memory, file size, open files.
    Rlimits,
}

impl SandboxLayer {
    /// Every layer.
    pub const ALL: [Self; 4] = [Self::Namespaces, Self::Landlock, Self::Seccomp, Self::Rlimits];
}

impl fmt::Display for SandboxLayer {
    /// As the configuration writes it.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Namespaces => "namespaces",
            Self::Landlock => "landlock",
            Self::Seccomp => "seccomp",
            Self::Rlimits => "rlimits",
        })
    }
}
