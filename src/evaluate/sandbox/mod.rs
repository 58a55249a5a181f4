//! Runs model-written Python, for benchmarks that test code: in a sandbox that fails closed.
//!
//! Four layers, each of which alone would stop most mischief: namespaces of its own (user, mount, process, network and
//! more), Landlock (files), seccomp (system calls) and resource limits. A program is refused while a layer is missing,
//! unless the configuration names that layer. Time is limited in seconds of the processor, so that scores do not depend
//! on the machine's load; the wall clock only ends programs that sleep.
//!
//! A program passes when it ends without an exception. The pieces: this file starts our own executable anew with a
//! hidden subcommand ([`child`]), which sets up the layers around itself and then becomes the interpreter
//! ([`interpreter`]). So nothing runs between `fork` and `exec`, and no unsafe code is needed.

#[cfg(target_os = "linux")]
mod child;
#[cfg(target_os = "linux")]
mod interpreter;
#[cfg(target_os = "linux")]
mod run;
#[cfg(not(target_os = "linux"))]
#[path = "run_elsewhere.rs"]
mod run;
#[cfg(target_os = "linux")]
mod system_calls;

use serde_json::{Value, json};

pub use self::run::{ChildArgs, Sandbox, child_main, missing_layers};
pub use crate::config::SandboxLayer as Layer;

/// What became of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It ended without an exception.
    Passed,
    /// It did not; with the exception, or how the process ended.
    Failed(String),
    /// It ran into a limit of time.
    TimedOut(Clock),
    /// It asked for more memory than it may have, and the exception ended it.
    OutOfMemory,
}

impl Outcome {
    /// Whether the program passed.
    pub fn passed(&self) -> bool {
        *self == Outcome::Passed
    }

    /// As sample files hold it.
    pub fn to_value(&self) -> Value {
        match self {
            Outcome::Passed => json!({"verdict": "passed"}),
            Outcome::Failed(reason) => json!({"verdict": "failed", "reason": reason}),
            Outcome::TimedOut(Clock::Processor) => json!({"verdict": "timeout", "clock": "processor"}),
            Outcome::TimedOut(Clock::Wall) => json!({"verdict": "timeout", "clock": "wall"}),
            Outcome::OutOfMemory => json!({"verdict": "memory"}),
        }
    }
}

/// Which limit of time a program ran into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// `evaluate.code.cpu_seconds`: it computed too long.
    Processor,
    /// `evaluate.code.wall_seconds`: it slept too long.
    Wall,
}
