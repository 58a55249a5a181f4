//! The `glan` executable: parse, run, print the error chain, exit code.

use std::process::ExitCode;

/// glibc's allocator keeps freed activations; mimalloc hands them back.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    glan::cli::main()
}
