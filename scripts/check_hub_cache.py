#!/usr/bin/env python3
"""Evaluate from a data folder and from a Hugging Face cache with the same rows: the results must be the same.

    python scripts/check_hub_cache.py --glan target/release/glan [--shared ../shared] [--limit 20]

The cache is made here, as `datasets` writes it: Parquet files under the names and fields of the hub, links in
`snapshots/` to files in `blobs/`. Needs lm_eval 0.4.13 and datasets (see make_lm_eval_reference.py).
"""

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path

from make_lm_eval_reference import datasets, rows_of, splits

# Data set, configuration as `splits` names it, folder in the snapshot.
DATA_SETS = [
    ("allenai/ai2_arc", "ARC-Easy", "ARC-Easy"), ("allenai/ai2_arc", "ARC-Challenge", "ARC-Challenge"),
    ("Rowan/hellaswag", None, "data"), ("allenai/winogrande", None, "winogrande_xl"), ("baber/piqa", None, "data"),
    ("truthfulqa/truthful_qa", None, "multiple_choice"), ("cais/mmlu", "anatomy", "anatomy"),
    ("cais/mmlu", "world_religions", "world_religions"),
]
# Plain rows, as they are on the hub too.
SAME = [
    ("openai/gsm8k", "gsm8k/test.jsonl", "main/test"), ("openai/gsm8k", "gsm8k/train.jsonl", "main/train"),
    ("google/IFEval", "ifeval/input_data.jsonl", "ifeval_input_data"),
]
TASKS = "arc_easy,arc_challenge,hellaswag,winogrande,piqa,truthfulqa_mc1,truthfulqa_mc2,mmlu_anatomy,mmlu_world_religions,gsm8k_cot"


def put(cache, repository, name, write):
    """One file of a data set: a blob, and a link to it in the snapshot."""
    folder = cache / f"datasets--{repository.replace('/', '--')}"
    blob = folder / "blobs" / name.replace("/", "-")
    link = folder / "snapshots/0123abc" / name
    for path in (blob, link, folder / "refs/main"):
        path.parent.mkdir(parents=True, exist_ok=True)
    (folder / "refs/main").write_text("0123abc")
    write(blob)
    link.symlink_to(os.path.relpath(blob, link.parent))


def make_cache(benchmarks, cache):
    for repository, configuration, folder in DATA_SETS:
        for split, rows in splits(benchmarks, repository, configuration).items():
            name = f"{folder}/{split}-00000-of-00001.parquet"
            put(cache, repository, name, lambda blob: datasets.Dataset.from_list(rows).to_parquet(blob))
    for repository, file, name in SAME:
        lines = "".join(json.dumps(row) + "\n" for row in rows_of(benchmarks / file))
        put(cache, repository, f"{name}.jsonl", lambda blob: blob.write_text(lines))


def evaluate(args, data, output):
    command = [args.glan, "evaluate", "--json", "--model", args.shared / "models/stories260K", "--tasks", TASKS,
               "--data", data, "--output", output, "--limit", str(args.limit)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    results = json.loads(done.stdout)["results"]
    # Where the rows came from and how many more there are is not a result.
    return {task: {key: value for key, value in found.items() if key != "partial"} for task, found in results.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glan", default="target/release/glan")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--limit", type=int, default=20)
    args = parser.parse_args()
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        make_cache(args.shared / "benchmarks", scratch / "cache/hub")
        folder = evaluate(args, args.shared / "benchmarks", scratch / "folder")
        cached = evaluate(args, scratch / "cache", scratch / "cached")
    wrong = [task for task in folder if folder[task] != cached.get(task)]
    for task in wrong:
        print(f"{task}: {folder[task]} from the folder, {cached.get(task)} from the cache")
    print(f"{len(folder) - len(wrong)} of {len(folder)} tasks have the same results from a folder and from a cache")
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
