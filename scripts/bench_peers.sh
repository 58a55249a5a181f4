#!/usr/bin/env bash
# Speed of glan beside transformers and llama.cpp (generation) or PyTorch (training), on the same random weights, in
# turn, in one run.
#
#     scripts/bench_peers.sh                                   # 25m and 125m, f32 and bf16, one thread, by processor time
#     scripts/bench_peers.sh --sizes 125m --threads 2          # two threads, by wall time: only on an idle machine
#     scripts/bench_peers.sh --what train --dtypes f32         # fine-tuning, full and LoRA
#     PYTHON=.venv/bin/python scripts/bench_peers.sh --output results.json
#
# Needs a Python with torch, transformers and safetensors; says which peers are missing. All options: --help.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo build --release --locked
exec "${PYTHON:-python3}" scripts/peers/compare.py --glan "${CARGO_TARGET_DIR:-target}/release/glan" "$@"
