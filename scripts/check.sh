#!/usr/bin/env bash
# Everything that must hold before a change is merged; continuous integration runs exactly this.
#
# Reads nothing but the repository and, when crates are not downloaded yet, cargo's registry. One target folder and the
# release profile throughout, so that every dependency is built once and checked once. The tests come last, so that the
# output ends with the runner's own summary.
#
# Where nvcc is at hand (scripts/cuda_env.sh brings it), the CUDA kernels are compiled for two architectures, and what they take is
# compared with kernels/cuda_resources.txt. `--cuda` does no more than that, checks the whole program with the feature, builds it, and lists what
# machine code it holds; `--cuda check` leaves the build out.
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '\n== %s\n' "$*"; }

cuda_kernels() {
    step CUDA kernels
    local home=build/cuda/nvidia/cu13 nvcc=nvcc
    [ ! -x "$home/bin/nvcc" ] || nvcc=$PWD/$home/bin/nvcc
    if ! command -v "$nvcc" > /dev/null; then
        echo "skipped: no nvcc (scripts/cuda_env.sh brings it)"
        return
    fi
    mkdir -p build
    NVCC=$nvcc scripts/cuda_report.sh > build/cuda_resources.txt
    diff kernels/cuda_resources.txt build/cuda_resources.txt ||
        { echo "kernels/cuda_resources.txt is out of date: copy build/cuda_resources.txt over it"; exit 1; }
}

if [ "${1:-}" = --cuda ]; then
    eval "$(scripts/cuda_env.sh)"
    cuda_kernels
    step lints with CUDA
    NVCC=$PWD/scripts/nvcc_stand_in.sh cargo clippy --release --locked --workspace --all-targets --features cuda -- -D warnings
    if [ "${2:-}" != check ]; then
        step build with CUDA
        cargo build --release --locked --features cuda
        scripts/list_cuda.py target/release/glan
        target/release/glan doctor
    fi
    exit
fi

step format
cargo fmt --all --check

step lints
cargo clippy --release --locked --workspace --all-targets -- -D warnings

step documentation
# The reader of this documentation has the sources, so a public page may point at a private item.
RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" cargo doc --release --locked --workspace --no-deps

cuda_kernels

step documentation examples
cargo test --release --locked --workspace --doc

step tests
cargo test --release --locked --workspace --tests
