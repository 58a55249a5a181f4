#!/usr/bin/env bash
# One shard of `glan generate`, or the merge, inside of a Slurm array or a Kubernetes indexed job. All of them share one
# run directory (NFS, Lustre mounted with `flock`, a ReadWriteMany volume); each goes on where it was killed.
#
#     sbatch --array=0-7 scripts/generate_shard.sh CONFIG RUN_DIR 8                       # eight shards, in any order
#     sbatch --dependency=afterok:JOB scripts/generate_shard.sh CONFIG RUN_DIR merge      # then one file
#
# A failed task is submitted again by its number: sbatch --array=3 scripts/generate_shard.sh CONFIG RUN_DIR 8.
# Kubernetes: scripts/kubernetes_generate.yaml.
#SBATCH --job-name=glan-generate
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@60
set -euo pipefail
# Slurm runs a copy of this file from a folder of its own.
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"

[ $# -eq 3 ] || { echo "usage: $0 CONFIG RUN_DIR NUMBER_OF_SHARDS|merge" >&2; exit 2; }
glan="${CARGO_TARGET_DIR:-target}/release/glan"
[ -x "$glan" ] || glan=glan

# `exec`, so that the signal before a time limit reaches glan: it finishes what it is at and saves.
if [ "$3" = merge ]; then
    exec "$glan" generate -c "$1" --run-dir "$2" --merge
fi
index="${SLURM_ARRAY_TASK_ID:-${JOB_COMPLETION_INDEX:-}}"
[ -n "$index" ] || { echo "$0: neither SLURM_ARRAY_TASK_ID nor JOB_COMPLETION_INDEX is set" >&2; exit 2; }
exec "$glan" generate -c "$1" --run-dir "$2" --shard "$index/$3"
