#!/usr/bin/env python3
"""glan and transformers in turn on the same weights, and the ratios of their rates.

Called by scripts/bench_peers.sh; see there. Each is a process of its own, one after the other, pass after pass, so that
whatever else the machine does falls on both. The best of the passes counts. With one thread the rates are per second of
processor time of the process, which other work on the machine disturbs least; with more they are per second of wall time.
"""
import argparse
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
KEYS = ("prefill_tok_s", "decode_tok_s", "prefill_tok_per_cpu_s", "decode_tok_per_cpu_s")


def lines(command):
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ, PYTHONDONTWRITEBYTECODE="1"))
    if done.returncode:
        raise SystemExit(f"error: {' '.join(command)}\n{done.stderr.strip()}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def keep_best(best, row):
    """The best rate of every kind, and the least memory."""
    for key in KEYS:
        if row.get(key) is not None:
            best[key] = max(best.get(key, 0), row[key])
    if row.get("peak_rss_mib") is not None:
        best["peak_rss_mib"] = min(best.get("peak_rss_mib", float("inf")), row["peak_rss_mib"])


def missing_peers():
    missing = [name for name in ("torch", "transformers", "safetensors") if importlib.util.find_spec(name) is None]
    if missing:
        print("missing peer: transformers (no Python module " + ", ".join(missing) + ")", file=sys.stderr)
    have = "found, but not run by this script" if shutil.which("llama-batched-bench") else "not on the PATH"
    print(f"missing peer: llama.cpp (llama-batched-bench {have})", file=sys.stderr)
    return bool(missing)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--glan", required=True, help="the executable")
    p.add_argument("--sizes", default="25m,125m")
    p.add_argument("--dtypes", default="f32,bf16")
    p.add_argument("--batch", default="1,8,32")
    p.add_argument("--prompt", type=int, default=128)
    p.add_argument("--new", type=int, default=128)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--repeats", type=int, default=2)
    p.add_argument("--passes", type=int, default=2)
    p.add_argument("--models", default="", help="folder for the random models (default: a temporary one)")
    p.add_argument("--output", default="", help="write all results to this JSON file")
    args = p.parse_args()
    if missing_peers():
        raise SystemExit(2)

    with tempfile.TemporaryDirectory() as temporary:
        folder = args.models or temporary
        results = []
        for size in args.sizes.split(","):
            model = os.path.join(folder, f"{size}-llama")
            if not os.path.exists(os.path.join(model, "model.safetensors")):
                lines([sys.executable, os.path.join(HERE, "make_hf_model.py"), "--size", size, "--arch", "llama",
                       "--no-tokenizer", "--out", model])
            for dtype in args.dtypes.split(","):
                results += compare(args, size, model, dtype)
    if args.output:
        facts = dict(command=" ".join(sys.argv[1:]).replace(args.glan, "glan"), python=platform.python_version(),
                     prompt=args.prompt, new=args.new, threads=args.threads, passes=args.passes, results=results)
        with open(args.output, "w") as f:
            json.dump(facts, f, indent=1)
            f.write("\n")


def compare(args, size, model, dtype):
    common = ["--threads", str(args.threads), "--repeats", str(args.repeats)]
    ours = [args.glan, "-q", "bench", "generate", "--model", model, "--dtype", dtype, "--batch", args.batch,
            "--prompt-tokens", str(args.prompt), "--new-tokens", str(args.new), "--json", *common]
    theirs = [sys.executable, os.path.join(HERE, "generate_torch.py"), "--size", size, "--arch", "llama",
              "--model", model, "--dtype", "fp32" if dtype == "f32" else "bf16", "--batch", *args.batch.split(","),
              "--prompt", str(args.prompt), "--new", str(args.new), *common]
    best = {"glan": {}, "transformers": {}}
    about = {}
    for _ in range(args.passes):
        for name, command in (("glan", ours), ("transformers", theirs)):
            for row in lines(command):
                keep_best(best[name].setdefault(row["batch"], {}), row)
                about.update({key: row[key] for key in ("torch", "transformers", "cpu") if key in row})
    clock = "cpu_s" if args.threads == 1 else "s"
    key = {"cpu_s": ("prefill_tok_per_cpu_s", "decode_tok_per_cpu_s"), "s": ("prefill_tok_s", "decode_tok_s")}[clock]
    print(f"\n{size} {dtype}, {args.threads} thread(s), prompt {args.prompt}, new {args.new}, tokens per "
          f"{'processor ' if clock == 'cpu_s' else ''}second; transformers {about.get('transformers')}")
    print(f"{'batch':>5} {'what':>12} {'glan':>10} {'transformers':>13} {'ratio':>7}")
    rows = []
    for batch in best["glan"]:
        a, b = best["glan"][batch], best["transformers"][batch]
        for what, field in (("prefill", key[0]), ("decode", key[1]), ("peak MiB", "peak_rss_mib")):
            if a.get(field) and b.get(field):
                print(f"{batch:>5} {what:>12} {a[field]:>10.1f} {b[field]:>13.1f} {a[field] / b[field]:>6.2f}x")
        rows.append(dict(size=size, dtype=dtype, batch=batch, clock=clock, glan=a, transformers=b, about=about,
                         prefill_ratio=round(a[key[0]] / b[key[0]], 3), decode_ratio=round(a[key[1]] / b[key[1]], 3)))
    sys.stdout.flush()
    return rows


if __name__ == "__main__":
    main()
