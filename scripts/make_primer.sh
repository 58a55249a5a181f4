#!/usr/bin/env bash
# Builds models/primer-teacher and models/primer-base from nothing: text from rules, a tokenizer, two trainings from
# random weights with glan's own trainer. Run again after an interruption: finished parts are kept, training resumes.
#
# Seeds: text 0, weights and order of rows 0 (the configuration's default). Measured on 2 cores shared with other work, from
# nothing, killed once in the second training and started again: 28 minutes; text 1, base 15 (10.6 M tokens, last losses
# around 0.40), teacher 11 (6.9 M tokens of 11.4 M, 0.27 over all tokens).
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-build/primer}
glan=target/release/glan
cargo build --release --bin glan --example train_tokenizer

if [ ! -f "$out/text.done" ]; then
  python3 -B scripts/primer/make_text.py --out "$out" --teacher-tokens 9000000 --base-tokens 10000000
  touch "$out/text.done"
fi
if [ ! -f "$out/init/tokenizer.json" ]; then
  mkdir -p "$out/init"
  cp scripts/primer/model/* "$out/init/"
  target/release/examples/train_tokenizer "$out/tokenizer.txt" "$out/init" 1024
fi

train() { # name, model to start from, further settings
  local name=$1 from=$2
  shift 2
  "$glan" train --model "$from" --data "$out/$name.jsonl" --output "$out/$name" --set train.warmup_steps=100 \
    --set train.weight_decay=0.05 --set train.adam_beta2=0.98 --set train.save_steps=100 "$@"
  rm -rf "models/primer-$name"
  cp -r "$out/$name/student" "models/primer-$name"
  rm "models/primer-$name/README.md"
}

# The base reads plain text from random weights. The teacher goes on from the base, as instruct models do: copying words
# and digits out of a question is learnt from plain text far sooner than from answers alone.
train base "$out/init" --set train.init=random --set train.learning_rate=3e-3 --set train.train_batch_size=10 \
  --set train.num_train_epochs=1
train teacher "$out/base/student" --set train.assistant_only_loss=false --set train.learning_rate=2e-3 \
  --set train.train_batch_size=24 --set train.max_steps=4200
