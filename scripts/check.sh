#!/usr/bin/env bash
# Everything that must hold before a change is merged; continuous integration runs exactly this.
#
# Reads nothing but the repository and, when crates are not downloaded yet, cargo's registry. One target folder and the
# release profile throughout, so that every dependency is built once and checked once. The tests come last, so that the
# output ends with the runner's own summary.
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '\n== %s\n' "$*"; }

step format
cargo fmt --all --check

step lints
cargo clippy --release --locked --workspace --all-targets -- -D warnings

step documentation
# The reader of this documentation has the sources, so a public page may point at a private item.
RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" cargo doc --release --locked --workspace --no-deps

step documentation examples
cargo test --release --locked --workspace --doc

step tests
cargo test --release --locked --workspace --tests
