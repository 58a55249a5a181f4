//! Ctrl-C and SIGTERM: the first asks every loop to stop at its next safe point, the second ends the process.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::Failure;

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Installs the handler. Call once, at the start of the process.
pub fn install() {
    let handler = || {
        if REQUESTED.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        tracing::warn!("stopping at the next safe point; press Ctrl-C again to stop at once");
    };
    // Fails only when a handler is already there, which is then as good as ours.
    let _ = ctrlc::set_handler(handler);
}

/// Fails with [`Failure::Interrupted`] once a stop was asked for. Long loops call it where their state is saved.
pub fn check() -> Result<(), Failure> {
    if REQUESTED.load(Ordering::Relaxed) { Err(Failure::Interrupted) } else { Ok(()) }
}
