//! Runs every GPU kernel of every dialect on the host and compares it with the op on the CPU.
//!
//! The sources are compiled as they stand, with headers that play the GPU (`kernels/host`), and launched by the code
//! that launches them on a GPU. That shows indices and arithmetic; it does not show speed, the memory model or the driver.
//! Outputs start as NaN, arrays have exactly their size and a guard behind them, and every case runs under several
//! orders of blocks and threads, which must agree in every bit.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test stops at the first surprise and says what it skips"
)]
#![expect(unsafe_code, reason = "the host plays a device: raw addresses and a loaded library")]

mod attention;
mod faults;
mod host;
mod memory_bound;
mod training;
