//! Errors that the process reacts to, and the exit codes that they map to.
//!
//! Everything that people only read is an [`anyhow::Error`] with file, line and record id. A [`Failure`] is attached
//! (as the error itself or as context) where the exit code must say more than "failed".

use thiserror::Error;

/// Why the process stops, where a script may want to tell the cases apart.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The command line or the configuration is wrong (exit code 2).
    #[error("{0}")]
    Usage(String),
    /// A stage's input is missing; the message names the command that makes it (exit code 3).
    #[error("{0}")]
    MissingInput(String),
    /// A regression was found where the user asked for a gate (exit code 4).
    #[error("{0}")]
    Regression(String),
    /// Ctrl-C or SIGTERM: the state is saved (exit code 130).
    #[error("interrupted; everything finished so far is saved, run the same command again to go on")]
    Interrupted,
}

impl Failure {
    /// The process exit code of this failure.
    pub fn exit_code(&self) -> u8 {
        match self {
            Failure::Usage(_) => 2,
            Failure::MissingInput(_) => 3,
            Failure::Regression(_) => 4,
            Failure::Interrupted => 130,
        }
    }
}

/// The exit code for an error chain: that of the first [`Failure`] in it, else 1.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    // `downcast_ref` finds a `Failure` used as context; the chain walk finds one used as the source.
    if let Some(failure) = error.downcast_ref::<Failure>() {
        return failure.exit_code();
    }
    error.chain().find_map(|cause| cause.downcast_ref::<Failure>()).map_or(1, Failure::exit_code)
}

/// Shorthand for a usage error.
pub fn usage(message: impl Into<String>) -> anyhow::Error {
    Failure::Usage(message.into()).into()
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn exit_codes_survive_added_context() {
        let error = Err::<(), _>(anyhow::Error::from(Failure::Interrupted)).context("while generating");
        assert_eq!(exit_code(&error.expect_err("built as an error")), 130);
        let error = anyhow::anyhow!("disk").context(Failure::MissingInput("run `glan generate`".into()));
        assert_eq!(exit_code(&error), 3);
        assert_eq!(exit_code(&anyhow::anyhow!("other")), 1);
    }
}
