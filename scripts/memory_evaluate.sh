#!/usr/bin/env bash
# Peak memory of `glan evaluate` by number of items: it should hardly grow with them.
#
#     scripts/memory_evaluate.sh MODEL BENCHMARKS [TASK] [ITEMS ...]       # hellaswag, 100 and 1000
set -euo pipefail
cd "$(dirname "$0")/.."

model=$1 benchmarks=$2 task=${3:-hellaswag}
if (($# > 3)); then items=("${@:4}"); else items=(100 1000); fi
cargo build --release --locked
glan=${CARGO_TARGET_DIR:-target}/release/glan
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
for number in "${items[@]}"; do
    "$glan" evaluate --model "$model" --tasks "$task" --data "$benchmarks" --limit "$number" --output "$scratch/$number" >"$scratch/log" 2>&1 &
    pid=$!
    peak=0
    while read -r _ kilobytes _ < <(grep VmHWM "/proc/$pid/status" 2>/dev/null); do
        peak=$kilobytes
        sleep 0.05
    done
    wait "$pid" || { cat "$scratch/log" >&2; exit 1; }
    echo "$task, $number items: $((peak / 1024)) MiB at most"
done
