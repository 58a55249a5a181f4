#!/usr/bin/env python3
"""Open a model directory written by glan with Hugging Face transformers and compare the two.

    pip install torch transformers safetensors tokenizers jinja2
    python scripts/check_transformers.py --model DIR
    python scripts/check_transformers.py --model DIR --requests IN.jsonl --glan-output OUT.jsonl

The first form loads DIR with AutoModelForCausalLM and AutoTokenizer in float32,
prints versions, the number of parameters and missing or unexpected keys,
renders the chat template for a sample question and continues it greedily.

The second form also compares. Rows of IN.jsonl are
`{"id", "prompt_token_ids" or "messages", "max_new_tokens"}` (`max_new_tokens`
defaults to 32; `messages` go through the chat template with a generation
prompt). Rows of OUT.jsonl are what glan made of them:
`{"id", "token_ids", "text"}`. Without --requests the rows of OUT.jsonl must
hold the prompts themselves.

AutoTokenizer does not follow tokenizer.json for every model type (for `qwen2` it
builds a byte-level tokenizer of its own whatever the file says). The script
prints a note where the two give different ids for the sample question, and
--tokenizer-json makes it use the file as it stands.

A continuation is identical when transformers, decoding greedily, picks each of
glan's token ids up to glan's stop, and the stop is right: where glan returned
fewer than `max_new_tokens` ids, its last one or the one transformers would pick
next has to be an end-of-sequence id (so an empty or cut-off answer does not
pass). A missing answer counts as different. For a difference the logits of both
picks are printed, which tells a near-tie from an error.

Exit codes: 0 all is well; 1 a continuation differs or weights are missing,
unexpected or of the wrong shape; 2 the inputs cannot be used.
"""

import argparse
import json
import os
import platform
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import safetensors
import tokenizers
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast


def fail(message):
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def read_jsonl(path):
    """Rows by id, in order."""
    rows = {}
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    fail(f"{path}:{number}: not JSON: {error}")
                if not isinstance(row, dict) or "id" not in row:
                    fail(f"{path}:{number}: expected an object with an `id`")
                if row["id"] in rows:
                    fail(f"{path}:{number}: id {row['id']!r} occurs twice")
                rows[row["id"]] = row
    except OSError as error:
        fail(f"cannot read {path}: {error}")
    return rows


def eos_ids(model):
    """generation_config.json wins over config.json."""
    eos = model.generation_config.eos_token_id
    if eos is None:
        eos = model.config.eos_token_id
    if eos is None:
        return set()
    return set(eos) if isinstance(eos, (list, tuple)) else {eos}


def prompt_ids(row, tokenizer):
    ids = row.get("prompt_token_ids")
    if ids is not None:
        if not ids:
            fail(f"id {row['id']!r}: `prompt_token_ids` is empty")
        return list(ids)
    if row.get("messages"):
        if tokenizer is None or not tokenizer.chat_template:
            fail(f"id {row['id']!r} has `messages`, but the model has no tokenizer with a chat template")
        text = tokenizer.apply_chat_template(row["messages"], tokenize=False, add_generation_prompt=True)
        return tokenizer(text, add_special_tokens=False)["input_ids"]
    fail(f"id {row['id']!r} has neither `prompt_token_ids` nor `messages`")


@torch.no_grad()
def greedy_rows(model, prompt, count):
    """Yields (pick, logits) for `count` greedy steps, whatever the picks are."""
    step, cache = torch.tensor([prompt]), None
    for _ in range(count):
        out = model(input_ids=step, past_key_values=cache, use_cache=True)
        row, cache = out.logits[0, -1], out.past_key_values
        pick = int(row.argmax())
        yield pick, row
        step = torch.tensor([[pick]])


def continue_greedily(model, prompt, count, eos):
    tokens = []
    for pick, _ in greedy_rows(model, prompt, count):
        tokens.append(pick)
        if pick in eos:
            break
    return tokens


def compare(model, prompt, tokens, limit, eos):
    """None when `tokens` is transformers' greedy continuation, else what differs."""
    if len(tokens) > limit:
        return f"{len(tokens)} tokens, but max_new_tokens is {limit}"
    stopped_early = len(tokens) < limit and not (tokens and tokens[-1] in eos)
    steps = greedy_rows(model, prompt, len(tokens) + stopped_early)
    for position, (pick, row) in enumerate(steps):
        if position == len(tokens):
            if pick not in eos:
                return f"glan stopped after {position} of {limit} tokens, transformers goes on with {pick}"
        elif pick != tokens[position]:
            if not 0 <= tokens[position] < row.numel():
                return f"token {position}: {tokens[position]} is outside the vocabulary"
            ours, theirs = float(row[tokens[position]]), float(row[pick])
            return (
                f"token {position}: glan {tokens[position]} (logit {ours:.6f}), "
                f"transformers {pick} (logit {theirs:.6f}), {theirs - ours:.2e} apart"
            )
    return None


def compare_all(model, tokenizer, requests, results, default_limit, show):
    eos = eos_ids(model)
    identical = past_eos = texts = same_texts = prompts = same_prompts = tokens_compared = 0
    shown = 0
    for key, request in requests.items():
        result, difference = results.get(key), None
        if result is None:
            difference = "no answer from glan"
        elif not isinstance(result.get("token_ids"), list):
            difference = "glan's row has no `token_ids`"
        else:
            tokens = result["token_ids"]
            prompt = prompt_ids(request, tokenizer)
            limit = request.get("max_new_tokens") or default_limit
            difference = compare(model, prompt, tokens, limit, eos)
            tokens_compared += len(tokens)
            past_eos += any(t in eos for t in tokens[:-1])
            if request is not result and result.get("prompt_token_ids") is not None:
                prompts += 1
                same_prompts += result["prompt_token_ids"] == prompt
            if tokenizer is not None and isinstance(result.get("text"), str):
                texts += 1
                same_texts += tokenizer.decode(tokens, skip_special_tokens=True) == result["text"]
        if difference is None:
            identical += 1
        elif shown < show:
            shown += 1
            print(f"id {key!r}: {difference}")
    unknown = [key for key in results if key not in requests]
    if unknown:
        print(f"{len(unknown)} rows of glan's output belong to no request, first {unknown[0]!r}")
    if past_eos:
        print(f"{past_eos} of glan's continuations go on after an end-of-sequence id")
    if prompts:
        print(f"{same_prompts} of {prompts} rendered prompts identical")
    if texts:
        print(f"{same_texts} of {texts} texts equal transformers' decoding of the same ids (special tokens skipped)")
    print(f"{tokens_compared} tokens compared")
    print(f"{identical} of {len(requests)} continuations identical")
    return identical == len(requests) and same_prompts == prompts


def sample(model, tokenizer, question, count):
    if tokenizer.chat_template:
        messages = [{"role": "user", "content": question}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        print(f"chat template renders {text!r}")
    else:
        ids = tokenizer(question)["input_ids"]
        print("no chat template; the plain question is continued")
    if not ids:
        print("the sample question has no tokens; nothing to continue")
        return
    tokens = continue_greedily(model, ids, count, eos_ids(model))
    print(f"{len(ids)} prompt tokens: {ids}")
    print(f"{len(tokens)} greedy tokens: {tokens}")
    print(f"text: {tokenizer.decode(tokens, skip_special_tokens=True)!r}")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], epilog="See the head of the script for the file formats."
    )
    parser.add_argument("--model", required=True, help="model directory in the Hugging Face format")
    parser.add_argument("--requests", help="JSONL of prompts that glan was given")
    parser.add_argument("--glan-output", help="JSONL of what glan answered")
    parser.add_argument("--question", default="What is the sum of 17 and 25?", help="sample question")
    parser.add_argument("--max-new-tokens", type=int, default=32, help="for the sample and for rows that name none")
    parser.add_argument("--show", type=int, default=10, help="differences to print")
    parser.add_argument("--tokenizer-json", action="store_true", help="follow tokenizer.json instead of AutoTokenizer")
    parser.add_argument("--threads", type=int, help="torch threads")
    args = parser.parse_args()
    if args.requests and not args.glan_output:
        parser.error("--requests needs --glan-output")
    if args.threads:
        torch.set_num_threads(args.threads)
    transformers.utils.logging.disable_progress_bar()

    print(
        f"python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"safetensors {safetensors.__version__}, tokenizers {tokenizers.__version__}"
    )
    if not os.path.isfile(os.path.join(args.model, "config.json")):
        fail(f"{args.model} holds no config.json")
    model, info = AutoModelForCausalLM.from_pretrained(
        args.model,
        dtype=torch.float32,
        attn_implementation="eager",
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # so that they are listed below
    )
    model.eval()
    count = sum(p.numel() for p in model.parameters())
    tied = "tied" if model.config.tie_word_embeddings else "untied"
    print(f"{type(model).__name__}, {count} parameters, {tied} head, eos ids {sorted(eos_ids(model))}")
    good = True
    for key in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = sorted(str(name) for name in info[key])
        print(f"{key.replace('_', ' ')}: {len(names)}" + (" " + ", ".join(names[:20]) if names else ""))
        good = good and not names

    tokenizer = None
    if os.path.isfile(os.path.join(args.model, "tokenizer.json")):
        tokenizer_class = PreTrainedTokenizerFast if args.tokenizer_json else AutoTokenizer
        tokenizer = tokenizer_class.from_pretrained(args.model)
        print(f"{type(tokenizer).__name__}, {len(tokenizer)} tokens, model vocabulary {model.config.vocab_size}")
        plain = tokenizers.Tokenizer.from_file(os.path.join(args.model, "tokenizer.json"))
        if plain.encode(args.question).ids != tokenizer(args.question)["input_ids"]:
            print(
                f"note: {type(tokenizer).__name__} does not give the ids of tokenizer.json for the sample question; "
                "see --tokenizer-json"
            )
        sample(model, tokenizer, args.question, args.max_new_tokens)
    else:
        print("no tokenizer.json")

    if args.glan_output:
        results = read_jsonl(args.glan_output)
        requests = read_jsonl(args.requests) if args.requests else results
        if not requests:
            fail("there is nothing to compare")
        good = compare_all(model, tokenizer, requests, results, args.max_new_tokens, args.show) and good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
