#!/usr/bin/env bash
# The pipeline, command by command: what `glan run -c configs/quick.toml` does in one go.
#
#     scripts/run.sh [CONFIG] [RUN_DIR]
#
# Every command picks up where it was stopped, so after a failure or Ctrl-C simply run the script again.
set -euo pipefail
cd "$(dirname "$0")/.."

config="${1:-configs/quick.toml}"
run_dir="${2:-runs/$(basename "$config" .toml)}"

cargo build --release --locked
glan="${CARGO_TARGET_DIR:-target}/release/glan"

# 1. Taxonomy to subjects, syllabi, questions and answers, written by the teacher.
"$glan" generate -c "$config" --run-dir "$run_dir"

# 2. Filters, deduplication, decontamination, split into train, valid and test.
"$glan" curate -c "$config" --run-dir "$run_dir"

# 3. Fine-tunes the student; the result is a Hugging Face directory, train/student.
"$glan" train -c "$config" --run-dir "$run_dir"

# 4. The student before and after on the same items, with a paired test.
"$glan" evaluate -c "$config" --run-dir "$run_dir"

# 5. One HTML page with all of it.
"$glan" report -c "$config" --run-dir "$run_dir"
