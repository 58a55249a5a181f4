#!/usr/bin/env bash
# Speed of `glan evaluate` beside lm-evaluation-harness with transformers: same model, tasks, items and machine, in turn.
#
#     PYTHON=.venv/bin/python scripts/bench_lm_eval.sh --limit 50 --output benchmarks/results/DATE-cpu-lm-eval.json
#
# Needs a Python with lm_eval 0.4.13, torch and transformers, and a folder with benchmarks and tokenizers (--shared).
# All options: --help.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo build --release --locked
exec "${PYTHON:-python3}" scripts/peers/lm_eval_speed.py --glan "${CARGO_TARGET_DIR:-target}/release/glan" "$@"
