#!/usr/bin/env bash
# Speed and memory of curation: MinHash beside rensa and datasketch (same texts, word 5-grams, 128 functions, one core, in
# turn, in one run), then a million synthetic pairs through the whole stage.
#
#     PYTHON=.venv/bin/python scripts/bench_curation.sh [ROWS] [FOLDER]     # by default 1,000,000 rows under a temporary folder
#
# Needs a Python with rensa and datasketch for the peers; says which are missing. A million pairs take 1.5 GB of disk for
# the input and as much for the result, which are removed at the end.
set -euo pipefail
cd "$(dirname "$0")/.."

rows=${1:-1000000}
folder=$(mktemp -d "${2:-${TMPDIR:-/tmp}}/curation.XXXXXX")
trap 'rm -rf "$folder"' EXIT
python=${PYTHON:-python3}
target=${CARGO_TARGET_DIR:-target}/release
if [ -z "${SKIP_BUILD:-}" ]; then cargo build --release --locked --bin glan --example curation_bench; fi

"$python" scripts/peers/curation.py "$folder/docs.jsonl" --make 12
for _ in 1 2; do
    "$target/examples/curation_bench" minhash "$folder/docs.jsonl" 128
    "$python" scripts/peers/curation.py "$folder/docs.jsonl" --perm 128
done | tee "$folder/rates.jsonl"
"$python" - "$folder/rates.jsonl" <<'PYTHON'
import json, sys

best = {}
for line in open(sys.argv[1]):
    row = json.loads(line)
    if "mb_s" in row:
        best[row["peer"]] = max(best.get(row["peer"], 0), row["mb_s"])
for kind in ("signatures", "shingles and signatures"):
    for peer in ("rensa RMinHash", "rensa CMinHash", "datasketch"):
        other = best.get(f"{peer} {kind}")
        if other:
            ours = best[f"glan {kind}"]
            print(f"{kind}: glan {ours:.1f} MB/s, {peer} {other:.1f} MB/s: {ours / other:.2f}x")
PYTHON

"$target/examples/curation_bench" pairs "$rows" > "$folder/pairs.jsonl"
"$python" - "$target/glan" "$folder" "$rows" <<'PYTHON'
import json, os, resource, subprocess, sys, time

glan, folder, rows = sys.argv[1:]
size = os.path.getsize(f"{folder}/pairs.jsonl") / 1e6
start = time.time()
command = [glan, "curate", "--json", "--data", f"{folder}/pairs.jsonl", "--output", f"{folder}/out"]
stats = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
processor = usage.ru_utime + usage.ru_stime
print(f"{rows} pairs, {size:.0f} MB: {time.time() - start:.0f} s, {processor:.0f} s of processor time, "
      f"{size / processor:.1f} MB per processor second, largest resident set {usage.ru_maxrss / 1024:.0f} MiB")
print(json.dumps({key: stats[key] for key in ("rows_in", "kept", "rejected")}))
PYTHON
