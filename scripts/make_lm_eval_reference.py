#!/usr/bin/env python3
"""Record what lm-evaluation-harness computes on small models, for glan's tests to compare with.

    pip install lm_eval==0.4.13 torch transformers accelerate
    python scripts/make_lm_eval_reference.py --shared ../shared --out tests/fixtures/lm_eval [--only NAME,...]

Runs the harness itself (its task files, its transformers backend, float32 on the CPU) over the first --limit items
of every task that compares log-likelihoods and whose data is in SHARED/benchmarks. Only numbers are written: per
request the log-likelihood (4 decimals) and whether the continuation is greedy, per task the scores.

Models: `stories260K`, a real checkpoint, and one of random weights per family. The weights are a formula of the
tensor's name and the place in it (`weight`), so the test makes the very same ones; `weights_sha256` proves it. The
tokenizers are real ones from SHARED/models, opened as tokenizer.json stands.

The harness asks a hub for its data. Here `datasets.load_dataset` is replaced by `local_dataset`, which gives the rows
of SHARED/benchmarks the hub's field names; the harness's own task files do everything else. AGIEval is the exception:
the hub's rows hold ready-made queries, so `agieval` makes these.
"""

import argparse
import csv
import gzip
import hashlib
import io
import json
import math
import os
import platform
import tempfile
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import datasets
import lm_eval
import numpy
import torch
import transformers
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

AGIEVAL = ["aqua-rat", "gaokao-biology", "gaokao-physics", "lsat-ar", "sat-math"]
# Task and number of examples; the names are glan's where the two differ (see HARNESS_NAME).
MAIN = [
    ("arc_easy", 0), ("arc_challenge", 0), ("arc_challenge", 5), ("hellaswag", 0), ("winogrande", 0), ("piqa", 0),
    ("truthfulqa_mc1", 0), ("mmlu_anatomy", 0), ("mmlu_anatomy", 5), ("crows_pairs_english", 0),
]
REST = [
    ("truthfulqa_mc2", 0), ("mmlu_high_school_european_history", 0), ("mmlu_moral_scenarios", 5),
    ("mmlu_world_religions", 5), ("mmlu_anatomy_continuation", 0), ("bbq", 0), ("winogender_all", 0),
    ("toxigen_demonstrations", 0),
] + [(f"agieval_{name.replace('-', '_')}", 0) for name in AGIEVAL]
HARNESS_NAME = {"toxigen_demonstrations": "toxigen"}


def base(model_type, vocab, hidden, **more):
    return {
        "architectures": [{"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM",
                           "qwen3": "Qwen3ForCausalLM"}[model_type]],
        "model_type": model_type, "vocab_size": vocab, "hidden_size": hidden, "intermediate_size": 2 * hidden,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_act": "silu",
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 512, "tie_word_embeddings": False,
        "torch_dtype": "float32", "bos_token_id": 1, "eos_token_id": 2, **more,
    }


LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}
# Configuration, tokenizer, tasks. Short contexts make sure that prompts are cut on the left.
FAMILIES = {
    "llama": (base("llama", 512, 64), "stories260K", MAIN),
    "llama3": (base("llama", 512, 64, rope_scaling=LLAMA3, tie_word_embeddings=True), "stories260K", MAIN),
    "mistral": (base("mistral", 512, 64, head_dim=32), "stories260K", MAIN),
    "mistral_sliding": (base("mistral", 512, 64, sliding_window=48), "stories260K", MAIN),
    "qwen2": (base("qwen2", 512, 64, tie_word_embeddings=True, use_sliding_window=False), "stories260K", MAIN),
    "qwen3": (base("qwen3", 512, 64, head_dim=16, num_key_value_heads=1), "stories260K", MAIN),
    # Byte-level tokenizers that put nothing in front.
    "llama_gpt2": (base("llama", 50257, 32, bos_token_id=50256, eos_token_id=50256,
                        max_position_embeddings=1024), "gpt2-tokenizer", MAIN),
    "qwen2_smollm2": (base("qwen2", 49152, 32, max_position_embeddings=256), "smollm2-tokenizer", MAIN),
}


# --- weights -------------------------------------------------------------------------------------------------------

def weight(name, shape, hidden):
    """Uniform numbers from splitmix64 of the place in the tensor, keyed by FNV-1a of its name."""
    key = 0xCBF29CE484222325
    for byte in name.encode():
        key = ((key ^ byte) * 0x100000001B3) % 2**64
    with numpy.errstate(over="ignore"):
        x = numpy.arange(1, math.prod(shape) + 1, dtype=numpy.uint64) * numpy.uint64(0x9E3779B97F4A7C15)
        x += numpy.uint64(key)
        x = (x ^ (x >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
        x ^= x >> numpy.uint64(31)
    u = (x >> numpy.uint64(40)).astype(numpy.float64) / 2.0**23 - 1.0
    center, width = spread(name, shape, hidden)
    return torch.from_numpy((center + u * width).astype(numpy.float32).reshape(shape))


def spread(name, shape, hidden):
    """Middle and half width: attention peaked, logits well apart."""
    if name.endswith("norm.weight"):
        return 1.0, 0.3
    if name.endswith("bias"):
        return 0.0, 0.5
    if name.startswith("model.embed_tokens"):
        return 0.0, 4.0 / math.sqrt(hidden)
    gain = 4.0 if name.startswith("lm_head") else 2.5
    return 0.0, gain / math.sqrt(shape[-1])


def random_model(config):
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(config))
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
    tensors, digest = [], hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        value = weight(name, list(parameter.shape), config["hidden_size"])
        with torch.no_grad():
            parameter.copy_(value)
        tensors.append([name, list(parameter.shape)])
        digest.update(value.numpy().tobytes())
    return model.eval(), {"config": config, "tensors": tensors, "weights_sha256": digest.hexdigest()}


# --- data ----------------------------------------------------------------------------------------------------------

def text_of(path):
    for candidate in (path, Path(f"{path}.gz")):
        if candidate.is_file():
            data = candidate.read_bytes()
            return (gzip.decompress(data) if candidate.suffix == ".gz" else data).decode("utf-8-sig")
    raise FileNotFoundError(path)


def rows_of(path):
    return [json.loads(line) for line in text_of(path).split("\n") if line.strip()]


def arc(row):
    labels = "ABCDE"[: len(row["choices"])]
    return {"question": row["question"], "choices": {"text": row["choices"], "label": list(labels)},
            "answerKey": labels[row["answer"]]}


def truthful(row):
    def targets(key):
        return {"choices": list(row[key]), "labels": list(row[key].values())}
    return {"question": row["question"], "mc1_targets": targets("mc1_targets"), "mc2_targets": targets("mc2_targets")}


def winogender(line):
    sentid, sentence = line.split("\t")
    occupation, participant, answer, gender, _ = sentid.split(".")
    words = {"he", "she", "they", "his", "her", "their", "him", "them"}
    pronoun = next(word for word in sentence.replace(".", " ").replace(",", " ").split() if word.lower() in words)
    return {"sentence": sentence, "pronoun": pronoun, "occupation": occupation, "participant": participant,
            "label": int(answer), "gender": gender}


def agieval(row, chinese):
    options, last = row["options"], "ABCDEFGH"[len(row["options"]) - 1]
    passage, joined = row["passage"] or "", " ".join(row["options"])
    if chinese:
        query = f"{passage}问题：{row['question']} 选项：{joined}\n答案：从A到{last}, 我们应选择"
    else:
        query = f"{passage}Q: {row['question']} Answer Choices: {joined}\nA: Among A through {last}, the answer is"
    return {"query": query, "choices": options, "gold": [ord(letter) - ord("A") for letter in row["label"]]}


def bbq(row):
    # Hugging Face's tables want one type per column; nothing else of these is read.
    info = {key: [str(part) for part in parts] for key, parts in row["answer_info"].items()}
    groups = [str(group) for group in row["additional_metadata"]["stereotyped_groups"]]
    kept = ["question_polarity", "context_condition", "category", "context", "question", "ans0", "ans1", "ans2", "label"]
    return {**{key: row[key] for key in kept}, "answer_info": info, "additional_metadata": {"stereotyped_groups": groups}}


def splits(folder, path, name):
    """The rows of a hub data set, by split, under the hub's field names."""
    if path == "allenai/ai2_arc":
        stem = name.lower().replace("-", "_")
        return {split: [arc(row) for row in rows_of(folder / f"arc/{stem}_{split}.jsonl")] for split in ("test", "train")}
    if path == "Rowan/hellaswag":
        return {"validation": rows_of(folder / "hellaswag/hellaswag_val_1000.jsonl")}
    if path == "allenai/winogrande":
        return {"validation": rows_of(folder / "winogrande/winogrande_val.jsonl")}
    if path == "baber/piqa":
        labels = text_of(folder / "piqa/valid-labels.lst").split()
        rows = rows_of(folder / "piqa/valid.jsonl")
        return {"validation": [{**row, "label": int(label)} for row, label in zip(rows, labels, strict=True)]}
    if path == "truthfulqa/truthful_qa":
        rows = json.loads(text_of(folder / "truthfulqa/mc_task_v0.json"))
        return {"validation": [truthful(row) for row in rows]}
    if path == "cais/mmlu":
        return {split: [row for row in rows_of(folder / f"mmlu/{split}.jsonl") if row["subject"] == name]
                for split in ("test", "dev")}
    if path == "jannalu/crows_pairs_multilingual":
        table = csv.DictReader(io.StringIO(text_of(folder / "crows_pairs/crows_pairs_anonymized.csv")))
        return {"test": [{key: row[key] for key in ("sent_more", "sent_less", "bias_type")} for row in table]}
    if path == "oskarvanderwal/bbq":
        files = sorted((folder / "bbq").glob("*.jsonl*"))
        return {"test": [bbq(row) for file in files for row in rows_of(Path(str(file).removesuffix(".gz")))]}
    if path == "oskarvanderwal/winogender":
        lines = text_of(folder / "winogender/all_sentences.tsv").split("\n")[1:]
        return {"test": [winogender(line.rstrip("\r")) for line in lines if line]}
    if path == "skg/toxigen-data":
        hateful = {"hate": 5.0, "neutral": 1.0}
        rows = rows_of(folder / "toxigen/demonstrations.jsonl")
        return {"test": [{"text": row["text"], "toxicity_ai": hateful[row["label"]],
                          "toxicity_human": hateful[row["label"]]} for row in rows]}
    if path.startswith("hails/agieval-"):
        file = path.removeprefix("hails/agieval-")
        chinese = file.startswith("gaokao") and file != "gaokao-english"
        return {"test": [agieval(row, chinese) for row in rows_of(folder / f"agieval/{file}.jsonl")]}
    raise SystemExit(f"no local data for {path} {name}")


def local_dataset(folder):
    def load(path, name=None, **_):
        found = splits(folder, path, name)
        found.setdefault("train", found.get("validation", found.get("test"))[:1])
        return datasets.DatasetDict({split: datasets.Dataset.from_list(rows) for split, rows in found.items()})
    return load


# --- the run -------------------------------------------------------------------------------------------------------

def evaluate(lm, manager, tasks, num_fewshot, limit):
    """Some tasks with one number of examples: per task what the test compares."""
    names = [HARNESS_NAME.get(task, task) for task in tasks]
    result = lm_eval.simple_evaluate(model=lm, tasks=names, num_fewshot=num_fewshot, limit=limit, log_samples=True,
                                     bootstrap_iters=0, task_manager=manager)
    for task, name in zip(tasks, names, strict=True):
        samples = sorted(result["samples"][name], key=lambda sample: sample["doc_id"])
        pairs = [[response[0] for response in sample["resps"]] for sample in samples]
        numbers = {key: float(value) for key, value in result["results"][name].items()
                   if "," in key and "stderr" not in key and isinstance(value, (int, float)) and not math.isnan(value)}
        yield {
            "task": task, "num_fewshot": num_fewshot,
            "scores": {key: round(value, 10) for key, value in numbers.items()},
            "items": [[round(float(pair[0]), 4) for pair in item] for item in pairs],
            "greedy": ["".join("1" if str(pair[1]) == "True" else "0" for pair in item) for item in pairs],
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--out", type=Path, default=Path("tests/fixtures/lm_eval"))
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--main", action="store_true", help="only the tasks that every model has")
    parser.add_argument("--rest", action="store_true", help="only the other tasks, on stories260K, as stories260K_rest")
    parser.add_argument("--only", default="", help="names of models, separated by commas")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1, help="more only pays on idle cores")
    args = parser.parse_args()
    datasets.disable_progress_bars()
    datasets.load_dataset = local_dataset(args.shared / "benchmarks")
    torch.set_num_threads(args.threads)
    manager = TaskManager()
    args.out.mkdir(parents=True, exist_ok=True)
    names = [name for name in args.only.split(",") if name] or ["stories260K", *FAMILIES]
    for name in ["stories260K"] if args.rest else names:
        begun = time.monotonic()
        if name == "stories260K":
            tokenizer, tasks, made = name, REST if args.rest else MAIN if args.main else MAIN + REST, {}
            model = AutoModelForCausalLM.from_pretrained(args.shared / "models" / name, dtype=torch.float32).eval()
        else:
            config, tokenizer, tasks = FAMILIES[name]
            model, made = random_model(config)
        folder = args.shared / "models" / tokenizer
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        opened = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), bos_token=settings["bos_token"],
                                         eos_token=settings["eos_token"], pad_token=settings["eos_token"])
        lm = HFLM(pretrained=model, tokenizer=opened, device="cpu", batch_size=args.batch_size)
        done = []
        for shots in sorted({shots for _, shots in tasks}):
            asked = [task for task, number in tasks if number == shots]
            done.extend(evaluate(lm, manager, asked, shots, args.limit))
        for task in done:
            print(f"{name} {task['task']} {task['num_fewshot']}-shot: {task['scores']}", flush=True)
        versions = {module.__name__: module.__version__ for module in (torch, transformers, datasets)}
        versions |= {"lm_eval": lm_eval.__version__, "python": platform.python_version()}
        whole = {"model": {"name": name, "tokenizer": tokenizer, **made}, "limit": args.limit,
                 "max_length": lm.max_length, "versions": versions, "tasks": done}
        text = json.dumps(whole, separators=(",", ":")).encode()
        file_name = f"{name}_rest.json.gz" if args.rest else f"{name}.json.gz"
        with open(args.out / file_name, "wb") as raw, gzip.GzipFile("", "wb", 9, raw, 0) as file:
            file.write(text)
        print(f"{name}: {len(text)} bytes before packing, {time.monotonic() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main()
