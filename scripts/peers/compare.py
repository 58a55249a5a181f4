#!/usr/bin/env python3
"""glan, transformers and llama.cpp in turn on the same weights, and the ratios of their rates.

Called by scripts/bench_peers.sh; see there. `--what train` compares fine-tuning with PyTorch instead, rows of 512 tokens. Each is a process of its own, one after the other, pass after pass, so that
whatever else the machine does falls on all. The best of the passes counts. With one thread the rates are per second of
processor time of the process, which other work on the machine disturbs least; with more they are per second of wall time.
llama.cpp (llama-batched-bench, on the PATH or by --llama) tells wall time only; it reads the GGUF file that glan exports.
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
# glan's --dtype: transformers', llama.cpp's file.
DTYPES = {"f32": ("fp32", "f32"), "bf16": ("bf16", "bf16")}
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


def missing_peers(llama):
    missing = [name for name in ("torch", "transformers", "safetensors") if importlib.util.find_spec(name) is None]
    if missing:
        print("missing peer: transformers (no Python module " + ", ".join(missing) + ")", file=sys.stderr)
    if not llama:
        print("missing peer: llama.cpp (llama-batched-bench is not on the PATH)", file=sys.stderr)
    return bool(missing)


def llama_file(args, model, dtype):
    """The GGUF file for llama.cpp, from a folder beside the model's: such a file needs a tokenizer, any will do."""
    folder = model + "-gguf"
    path = os.path.join(folder, f"{dtype}.gguf")
    if not os.path.exists(path):
        os.makedirs(folder, exist_ok=True)
        tokenizer = os.path.join(HERE, "../../models/primer-base")
        for source, names in ((model, ("config.json", "model.safetensors")),
                              (tokenizer, ("tokenizer.json", "tokenizer_config.json"))):
            for name in names:
                if not os.path.exists(os.path.join(folder, name)):
                    os.symlink(os.path.abspath(os.path.join(source, name)), os.path.join(folder, name))
        command = [args.glan, "-q", "export", "--model", folder, "--output", path, "--quantization", DTYPES[dtype][1]]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"error: {' '.join(command)}\n{done.stderr.strip()}")
    return path


def llama_rows(args, file):
    """llama-batched-bench's rows under our names. Its best of --repeats runs counts like that of the others."""
    batches = [int(batch) for batch in args.batch.split(",")]
    threads = str(args.threads)
    command = [args.llama, "-m", file, "-c", str(max(batches) * (args.prompt + args.new)), "-npp", str(args.prompt),
               "-ntg", str(args.new), "-npl", args.batch, "-t", threads, "-tb", threads, "-fa", "on",
               "-b", "2048", "-ub", "512", "--output-format", "jsonl"]
    for _ in range(args.repeats):
        for row in lines(command):
            yield dict(batch=row["pl"], prefill_tok_s=row["speed_pp"], decode_tok_s=row["speed_tg"])


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--glan", required=True, help="the executable")
    p.add_argument("--what", choices=["generate", "train"], default="generate")
    p.add_argument("--methods", default="full,lora", help="train: what is trained (qlora: beside PyTorch's lora)")
    p.add_argument("--steps", type=int, default=5, help="train: steps of a pass, the best of which counts")
    p.add_argument("--sizes", default="25m,125m")
    p.add_argument("--dtypes", default="f32,bf16")
    p.add_argument("--batch", default="1,8,32")
    p.add_argument("--prompt", type=int, default=128)
    p.add_argument("--new", type=int, default=128)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--repeats", type=int, default=2)
    p.add_argument("--passes", type=int, default=2)
    p.add_argument("--models", default="", help="folder for the random models (default: a temporary one)")
    p.add_argument("--llama", default=shutil.which("llama-batched-bench") or "", help="llama.cpp's llama-batched-bench")
    p.add_argument("--output", default="", help="write all results to this JSON file")
    args = p.parse_args()
    if missing_peers(args.llama):
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
                if args.what == "generate":
                    results += compare(args, size, model, dtype)
                else:
                    results += [compare_training(args, size, model, dtype, method) for method in args.methods.split(",")]
    if args.output:
        # Without the options that name places of this machine.
        places = ("glan", "models", "llama", "output")
        command = " ".join(f"--{name} {value}" for name, value in vars(args).items() if name not in places)
        facts = dict(what=args.what, command=command, python=platform.python_version(),
                     prompt=args.prompt, new=args.new, threads=args.threads, passes=args.passes, results=results)
        with open(args.output, "w") as f:
            json.dump(facts, f, indent=1)
            f.write("\n")


def compare(args, size, model, dtype):
    common = ["--threads", str(args.threads), "--repeats", str(args.repeats)]
    ours = [args.glan, "-q", "bench", "generate", "--model", model, "--dtype", dtype, "--batch", args.batch,
            "--prompt-tokens", str(args.prompt), "--new-tokens", str(args.new), "--json", *common]
    theirs = [sys.executable, os.path.join(HERE, "generate_torch.py"), "--size", size, "--arch", "llama",
              "--model", model, "--dtype", DTYPES[dtype][0], "--batch", *args.batch.split(","),
              "--prompt", str(args.prompt), "--new", str(args.new), *common]
    programs = {"glan": lambda: lines(ours), "transformers": lambda: lines(theirs)}
    if args.llama:
        file = llama_file(args, model, dtype)
        programs["llama.cpp"] = lambda: llama_rows(args, file)
    best = {name: {} for name in programs}
    about = {}
    for _ in range(args.passes):
        for name, rows in programs.items():
            for row in rows():
                keep_best(best[name].setdefault(row["batch"], {}), row)
                about.update({key: row[key] for key in ("torch", "transformers", "cpu") if key in row})
    clock = "cpu_s" if args.threads == 1 else "s"
    print(f"\n{size} {dtype}, {args.threads} thread(s), prompt {args.prompt}, new {args.new}, tokens per second of "
          f"{'the processor (beside llama.cpp: of wall time)' if clock == 'cpu_s' else 'wall time'}; "
          f"transformers {about.get('transformers')}")
    print(f"{'batch':>5} {'what':>9} {'glan':>10} {'peer':>10}  {'ratio':>6}  peer's name")
    rows = []
    for batch, ours in best["glan"].items():
        ratios = {}
        for peer in list(programs)[1:]:
            per = "_tok_per_cpu_s" if clock == "cpu_s" and peer == "transformers" else "_tok_s"
            theirs = best[peer].get(batch, {})
            for what, field in (("prefill", "prefill" + per), ("decode", "decode" + per), ("peak_rss", "peak_rss_mib")):
                # A rate that no pass could tell (a disturbed run) has no ratio.
                if ours.get(field) and theirs.get(field):
                    ratio = ours[field] / theirs[field]
                    print(f"{batch:>5} {what:>9} {ours[field]:>10.1f} {theirs[field]:>10.1f} {ratio:>6.2f}x  {peer}")
                    ratios.setdefault(peer, {})[what] = round(ratio, 3)
        rows.append(dict(size=size, dtype=dtype, batch=batch, clock=clock, about=about, ratios=ratios,
                         **{name: of_batch.get(batch) for name, of_batch in best.items()}))
    sys.stdout.flush()
    return rows


def compare_training(args, size, model, dtype, method):
    common = ["--batch", "4", "--seq", "512", "--steps", str(args.steps), "--threads", str(args.threads)]
    ours = [args.glan, "-q", "bench", "train", "--model", model, "--dtype", dtype, "--method", method, "--json", *common]
    theirs = [sys.executable, os.path.join(HERE, "train_torch.py"), "--size", size, "--arch", "llama",
              "--dtype", DTYPES[dtype][0], "--mode", "lora" if method == "qlora" else method, *common]
    best = {"glan": {}, "pytorch": {}}
    about = {}
    for _ in range(args.passes):
        for name, command in (("glan", ours), ("pytorch", theirs)):
            for row in lines(command):
                for key in ("tok_s_best", "tok_s_median", "tok_per_cpu_s_best"):
                    best[name][key] = max(best[name].get(key, 0), row.get(key) or 0)
                best[name]["peak_rss_mib"] = min(best[name].get("peak_rss_mib", float("inf")), row["peak_rss_mib"])
                about.update({key: row[key] for key in ("torch", "transformers", "cpu") if key in row})
    print(f"\n{size} {dtype} {method}, {args.threads} thread(s), batch 4 x 512; PyTorch {about.get('torch')}")
    ratios = {}
    for key in ("tok_s_best", "tok_s_median", "tok_per_cpu_s_best", "peak_rss_mib"):
        a, b = best["glan"][key], best["pytorch"][key]
        ratios[key] = round(a / b, 3) if b else None
        print(f"{key:>20} {a:>10.1f} {b:>10.1f} {ratios[key] or float('nan'):>6.2f}x")
    sys.stdout.flush()
    return dict(size=size, dtype=dtype, method=method, about=about, ratios=ratios, **best)


if __name__ == "__main__":
    main()
