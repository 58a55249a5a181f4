#!/usr/bin/env bash
# Kills `glan evaluate` (SIGKILL) at KILLS points (20 by default), lets it go on, and compares scores, samples and answers
# with those of a run that was left alone. The tests do it three times.
set -euo pipefail
cd "$(dirname "$0")/.."

GLAN_KILLS=${1:-20} cargo test --release --locked --test suite evaluate_kill:: -- --nocapture
