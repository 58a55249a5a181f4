#!/usr/bin/env python3
"""Time `glan evaluate` and lm-evaluation-harness's transformers backend on the same tasks and random weights.

Each task is run by glan, then by the harness, --rounds times. Of glan the whole process counts, the start and the
loading of the model included; of the harness only `loglikelihood` (tokenising and the model), so neither its imports
nor its task files weigh on it. Ratios are given by wall time and by processor time; on a machine that others use too,
the second is the one to trust. The two must give the same accuracies, or there is nothing to compare.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def make_model(args, folder):
    """Random weights of a preset's shape, with a real tokenizer."""
    tokenizer = args.shared / "models" / args.tokenizer
    vocab = len(json.loads((tokenizer / "tokenizer.json").read_text())["model"]["vocab"])
    script = Path(__file__).with_name("make_hf_model.py")
    subprocess.run([sys.executable, script, "--size", args.size, "--arch", "llama", "--vocab", str(vocab), "--out", folder,
                    "--no-tokenizer"], check=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, folder)


def run_glan(args, model, task, shots, folder):
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    command = [args.glan, "evaluate", "--json", "--model", model, "--tasks", task, "--data", args.shared / "benchmarks",
               "--output", folder, "--limit", str(args.limit), "--num-fewshot", str(shots)]
    for setting in args.set:
        command += ["--set", setting]
    environment = {**os.environ, "RAYON_NUM_THREADS": str(args.threads)}
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment).stdout
    wall, after = time.monotonic() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    result = json.loads(said)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": wall, "cpu_s": cpu, "acc": result["results"][task]["acc,none"],
            "tokens": result["tokens"]["total"]}


class Harness:
    def __init__(self, args, model):
        import datasets
        import torch
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
        from make_lm_eval_reference import local_dataset
        from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

        datasets.disable_progress_bars()
        datasets.load_dataset = local_dataset(args.shared / "benchmarks")
        torch.set_num_threads(args.threads)
        settings = json.loads(Path(model, "tokenizer_config.json").read_text())
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(Path(model, "tokenizer.json")),
                                            bos_token=settings["bos_token"], eos_token=settings["eos_token"],
                                            pad_token=settings["eos_token"])
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self.lm = HFLM(pretrained=loaded, tokenizer=tokenizer, device="cpu", batch_size=args.batch_size)
        self.manager, self.limit = TaskManager(), args.limit

    def run(self, task, shots):
        import lm_eval

        times, plain = {}, self.lm.loglikelihood

        def timed(*positional, **named):
            cpu, begun = time.process_time(), time.monotonic()
            answers = plain(*positional, **named)
            times.update(wall_s=time.monotonic() - begun, cpu_s=time.process_time() - cpu)
            return answers

        self.lm.loglikelihood = timed
        result = lm_eval.simple_evaluate(model=self.lm, tasks=[task], num_fewshot=shots, limit=self.limit,
                                         bootstrap_iters=0, task_manager=self.manager)
        self.lm.loglikelihood = plain
        return {**times, "acc": float(result["results"][task]["acc,none"])}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glan", required=True)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--size", default="125m")
    parser.add_argument("--tokenizer", default="smollm2-tokenizer")
    parser.add_argument("--model", default="", help="a model folder that was made before")
    parser.add_argument("--tasks", default="hellaswag:0,mmlu_anatomy:5", help="TASK:EXAMPLES, separated by commas")
    parser.add_argument("--limit", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of glan's")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        model = args.model or str(Path(scratch, "model"))
        if not args.model:
            make_model(args, model)
        harness = Harness(args, model)
        rows = []
        for number in range(args.rounds):
            for asked in args.tasks.split(","):
                task, shots = asked.split(":")
                glan = run_glan(args, model, task, int(shots), str(Path(scratch, f"out-{number}-{task}-{shots}")))
                peer = harness.run(task, int(shots))
                row = {"task": task, "num_fewshot": int(shots), "items": args.limit, "glan": glan, "lm_eval": peer,
                       "ratio_wall": peer["wall_s"] / glan["wall_s"], "ratio_cpu": peer["cpu_s"] / glan["cpu_s"],
                       "computed_over_needed": glan["tokens"]["tokens_computed"] / glan["tokens"]["tokens_needed"]}
                rows.append(row)
                print(json.dumps(row), flush=True)
                if abs(glan["acc"] - peer["acc"]) > 1e-9:
                    raise SystemExit(f"{task}: glan's accuracy is {glan['acc']}, the harness's {peer['acc']}")
    import lm_eval
    import torch
    import transformers
    whole = {"machine": platform.processor() or platform.machine(), "cpus": os.cpu_count(), "threads": args.threads,
             "size": args.size, "tokenizer": args.tokenizer, "batch_size": args.batch_size, "set": args.set,
             "versions": {"lm_eval": lm_eval.__version__, "torch": torch.__version__,
                          "transformers": transformers.__version__}, "rows": rows}
    if args.output:
        args.output.write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
