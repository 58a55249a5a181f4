#!/usr/bin/env bash
# What each part of the method is worth, on the primer world at equal sizes: the strategies of questions alone, without
# deduplication, without filters, evened out by discipline, and against data that the same teacher wrote without the
# taxonomy. For each: the student's score on the held-out benchmark, and how much of the benchmark its rows come near to.
#
#     scripts/ablations.sh [FOLDER] [SEEDS]      # by default runs/ablations "0 1"; about 25 minutes a seed on two cores
#
# What is there already is not made again. Every variant of a seed is trained on as many rows (the smallest one's), drawn at
# random, with the settings of configs/quick.toml; decontamination is on in all.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=${1:-runs/ablations}
seeds=${2:-0 1}
config=configs/quick.toml
glan=${GLAN:-${CARGO_TARGET_DIR:-target}/release/glan}
python=${PYTHON:-python3}
rows="$python scripts/ablation_rows.py"
random_topics=8000
mkdir -p "$folder"

generate() { # NAME SEED OVERRIDE…: questions and answers
    local run="$folder/$1-$2" set=()
    for override in "${@:3}"; do set+=(--set "$override"); done
    "$glan" -q generate -c "$config" --run-dir "$run" --set "seed=$2" "${set[@]}" > /dev/null
}
curate() { # NAME SEED FROM OVERRIDE…: curates what FROM has generated
    local run="$folder/$1-$2" set=()
    for override in "${@:4}"; do set+=(--set "$override"); done
    if [ -f "$run/curate/stats.json" ]; then return; fi
    if [ "$1" != "$3" ]; then
        mkdir -p "$run"
        cp -r "$folder/$3-$2/run.toml" "$folder/$3-$2/generate" "$run/"
    fi
    "$glan" -q curate --run-dir "$run" "${set[@]}" > /dev/null
}
random() { # SEED: what the teacher writes by itself
    local run="$folder/random-$1"
    if [ -f "$run/curate/stats.json" ]; then return; fi
    mkdir -p "$run"
    local complete=("$glan" -q complete --model models/primer-teacher --device cpu)
    $rows ask "$random_topics" "$1" > "$run/ask.jsonl"
    "${complete[@]}" --requests "$run/ask.jsonl" --output "$run/topics.jsonl" > /dev/null
    $rows questions "$run/topics.jsonl" "$1" > "$run/ask_questions.jsonl"
    "${complete[@]}" --requests "$run/ask_questions.jsonl" --output "$run/questions.jsonl" > /dev/null
    $rows answers "$run/questions.jsonl" > "$run/ask_answers.jsonl"
    "${complete[@]}" --requests "$run/ask_answers.jsonl" --output "$run/answers.jsonl" > /dev/null
    $rows rows "$run/questions.jsonl" "$run/answers.jsonl" > "$run/rows.jsonl"
    "$glan" -q curate -c "$config" --set "seed=$1" --data "$run/rows.jsonl" --output "$run/curate" > /dev/null
}

variants="glan random one_session two_sessions no_deduplication no_filter rebalanced"
for seed in $seeds; do
    generate glan "$seed"
    generate one_session "$seed" generate.two_session_ratio=0
    generate two_sessions "$seed" generate.two_session_ratio=1
    curate glan "$seed" glan
    curate one_session "$seed" one_session
    curate two_sessions "$seed" two_sessions
    curate no_deduplication "$seed" glan curate.near_duplicate_threshold=1
    curate no_filter "$seed" glan 'curate.answer_pattern=""' curate.min_question_chars=1 curate.min_answer_chars=1 \
        curate.max_question_chars=8000 curate.max_answer_chars=32000
    curate rebalanced "$seed" glan curate.max_rows_per_discipline=200
    random "$seed"
    least=
    for variant in $variants; do
        run="$folder/$variant-$seed"
        cp "$run/curate/train.jsonl" "$run/rows_all.jsonl"
        if [ "$variant" = no_deduplication ]; then
            $rows with-duplicates "$run/curate" "$folder/glan-$seed/generate/answers.jsonl" > "$run/rows_all.jsonl"
        fi
        count=$(wc -l < "$run/rows_all.jsonl")
        if [ -z "$least" ] || [ "$count" -lt "$least" ]; then least=$count; fi
    done
    echo "seed $seed: $least rows each"
    for variant in $variants; do
        run="$folder/$variant-$seed"
        if [ -f "$run/done-$least" ]; then continue; fi
        $rows sample "$run/rows_all.jsonl" "$least" "$seed" > "$run/rows.train.jsonl"
        $rows coverage benchmarks/primer/primer.jsonl "$run/rows.train.jsonl" > "$run/coverage.json"
        rm -rf "$run/train" "$run/evaluate"
        "$glan" -q train -c "$config" --set "seed=$seed" --model models/primer-base --data "$run/rows.train.jsonl" \
            --output "$run/train" > /dev/null
        "$glan" -q evaluate -c "$config" --model "$run/train/student" --tasks primer --apply-chat-template \
            --output "$run/evaluate" > /dev/null
        touch "$run/done-$least"
    done
done

"$python" - "$folder" "$variants" "$seeds" <<'PYTHON'
import glob, json, math, sys

folder, variants, seeds = sys.argv[1], sys.argv[2].split(), sys.argv[3].split()


def samples(run):
    rows = map(json.loads, open(sorted(glob.glob(f"{run}/evaluate/*/samples_primer_*.jsonl"))[-1], encoding="utf-8"))
    return {row["doc_id"]: row["exact_match"] for row in rows}


print("| variant | seed | rows before sampling | score | against glan (McNemar p) | coverage | disciplines | evenness | wordings |")
print("|---|---|---|---|---|---|---|---|---|")
for variant in variants:
    for seed in seeds:
        run = f"{folder}/{variant}-{seed}"
        own, glan = samples(run), samples(f"{folder}/glan-{seed}")
        better = sum(own[doc] > glan[doc] for doc in own)
        worse = sum(own[doc] < glan[doc] for doc in own)
        both = better + worse
        tail = sum(math.comb(both, k) for k in range(min(better, worse) + 1)) / 2**both
        against = "" if variant == "glan" else f"+{better} -{worse} ({min(1.0, 2 * tail):.2g})"
        near = json.load(open(f"{run}/coverage.json"))
        total = sum(1 for _ in open(f"{run}/rows_all.jsonl"))
        print(f"| {variant} | {seed} | {total} | {100 * sum(own.values()) / len(own):.1f} % | {against} | "
              f"{100 * near['coverage']:.1f} % | {near['disciplines']} | {near['evenness']:.3f} | {near['wordings']} |")
PYTHON
