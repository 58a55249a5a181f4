#!/usr/bin/env bash
# Kills `glan generate` (SIGKILL on the real executable) at KILLS random points (50 by default), whole and in shards, lets
# it go on, and compares every file with that of a run that was left alone. The tests do it a few times.
#
#     scripts/stress.sh [KILLS] [SEED]
set -euo pipefail
cd "$(dirname "$0")/.."

GLAN_KILLS=${1:-50} GLAN_SEED=${2:-0} \
    cargo test --release --locked --test suite generate_kill::kills -- --nocapture
