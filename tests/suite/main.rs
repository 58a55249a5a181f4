//! The one integration binary: the real executable, end to end, and the rules of the house.
//!
//! One binary, because every further one would link the whole library again.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test stops at the first surprise, and nobody imports it")]

mod architecture;
mod cli;
mod parity;
mod support;
mod tolerance;
