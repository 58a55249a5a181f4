//! The `glan` executable: parse, run, print the error chain, exit code.

use std::process::ExitCode;

/// glibc's allocator keeps freed activations for ever; mimalloc hands them back after [`KEPT_FOR_MS`].
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How long freed memory waits for its next use. Longer than a training step: the next one asks for the same sizes again,
/// and memory fresh from the system costs as much as a pass over it (a sixth of a step, measured, with mimalloc's second).
const KEPT_FOR_MS: std::ffi::c_long = 30_000;

fn main() -> ExitCode {
    keep_freed_memory();
    glan::cli::main()
}

#[expect(unsafe_code, reason = "the allocator's options are set through its C interface")]
fn keep_freed_memory() {
    // `mi_option_purge_delay` in mimalloc.h; the binding does not name it.
    const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
    // An option of the user's own goes first.
    if std::env::var_os("MIMALLOC_PURGE_DELAY").is_none() {
        // SAFETY: sets a number; allowed at any time.
        unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, KEPT_FOR_MS) };
    }
}
