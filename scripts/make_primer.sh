#!/usr/bin/env bash
# Builds models/primer-teacher and models/primer-base from nothing: text from rules, a tokenizer, two trainings from
# random weights with glan's own trainer. Run again after an interruption: finished parts are kept, training resumes.
#
# Seeds: text 0, weights and order of rows 0 (the configuration's default). About 40 CPU minutes in all.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-build/primer}
glan=target/release/glan
cargo build --release --bin glan --example train_tokenizer

if [ ! -f "$out/text.done" ]; then
  python3 -B scripts/primer/make_text.py --out "$out" --teacher-tokens 8000000 --base-tokens 5500000
  touch "$out/text.done"
fi
if [ ! -f "$out/init/tokenizer.json" ]; then
  mkdir -p "$out/init"
  cp scripts/primer/model/* "$out/init/"
  target/release/examples/train_tokenizer "$out/tokenizer.txt" "$out/init" 1024
fi

train() { # name, rows per step
  "$glan" train --model "$out/init" --data "$out/$1.jsonl" --output "$out/$1" \
    --set train.init=random --set train.learning_rate=3e-3 --set train.train_batch_size="$2" \
    --set train.num_train_epochs=1 --set train.warmup_steps=100 --set train.weight_decay=0.05 \
    --set train.adam_beta2=0.98 --set train.save_steps=200
  rm -rf "models/primer-$1"
  cp -r "$out/$1/student" "models/primer-$1"
  rm -f "models/primer-$1/README.md"
}
train teacher 64
train base 24
