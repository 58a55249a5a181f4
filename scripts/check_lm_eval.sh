#!/usr/bin/env bash
# Compares every log-likelihood of tests/fixtures/lm_eval with ours, 200 items of each task on each model: minutes. The
# tests do so for stories260K and take the first items of the other models. Needs ../shared (models and benchmarks).
set -euo pipefail
cd "$(dirname "$0")/.."

GLAN_LM_EVAL_ALL=1 cargo test --release --locked --test suite lm_eval:: -- --nocapture
