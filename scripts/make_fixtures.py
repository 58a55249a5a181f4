#!/usr/bin/env python3
"""Make the model parity fixtures of glan with PyTorch and Hugging Face transformers.

    pip install torch transformers safetensors tokenizers jinja2 numpy
    python scripts/make_fixtures.py --out tests/fixtures/models

For every family this writes one small directory holding a random model in the
Hugging Face format (config.json, safetensors, tokenizer.json) and
`expected.json`: what transformers computes with it (logits, greedy tokens,
log-probabilities). For the families with `train=True` it also writes
`train_expected.json` and `gradients.safetensors`: the loss and the gradients
of one batch, and a ten-step AdamW trajectory. `PROVENANCE.md` in the output
directory says what each file holds and with which versions it was made.

The weights are drawn with a large standard deviation, so that attention is
peaked, logits are well apart and a mistake in any part shows. Seeds are fixed;
a seed is skipped (and the next one tried) when two of the best logits along a
greedy or scored path come closer than MIN_GAP, so that no expected argmax hangs
on rounding. Every expected value is computed from the model as loaded back
from the written directory, so a rewritten config.json is checked too.
"""

import argparse
import copy
import json
import os
import platform
import shutil
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy
import safetensors
import tokenizers
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    get_cosine_schedule_with_warmup,
)

PROMPT_LENGTHS = [1, 7, 33, 60]
NEW_TOKENS = 24
LAST_POSITIONS = 3
MIN_GAP = 2e-3
FIRST_ORDINARY_ID = 3  # 0 <unk>, 1 <s>, 2 </s>

BASE_LR = 3e-3
TOTAL_STEPS = 10
WARMUP_STEPS = 3
WEIGHT_DECAY = 0.1
MAX_GRAD_NORM = 1.0

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}t3 {{ message['content'] }} </s> "
    "{% elif message['role'] == 'assistant' %}t4 {{ message['content'] }} </s> "
    "{% else %}t5 {{ message['content'] }} </s> {% endif %}"
    "{% endfor %}{% if add_generation_prompt %}t4 {% endif %}"
)

COMMON = {
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def rope(theta):
    return {"rope_type": "default", "rope_theta": theta}


# spelling: "new" keeps what transformers 5 writes (rope_parameters, dtype);
#           "old" is rewritten to rope_theta / rope_scaling / torch_dtype.
# drop:     further keys taken out of config.json (old checkpoints lack them).
# extra:    keys put into config.json after saving.
# generation: "none" (no generation_config.json), "same" (eos as config.json),
#           "list" / "single" (an eos of its own, which wins; chosen among the
#           greedy tokens, so that generation really stops).
# eos_list: config.json holds a list of eos ids.
FAMILIES = [
    {
        "name": "llama",
        "seed": 1000,
        "classes": (LlamaConfig, LlamaForCausalLM),
        "config": {"rope_parameters": rope(10000.0), "tie_word_embeddings": False, "rms_norm_eps": 1e-5},
        "spelling": "new",
        "generation": "none",
        "train": True,
        "chat": True,
        "about": "GQA 4/2, untied head, no `generation_config.json`, chat template in its own file",
    },
    {
        "name": "llama3",
        "seed": 2000,
        "classes": (LlamaConfig, LlamaForCausalLM),
        "config": {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": True, "rms_norm_eps": 1e-5},
        "spelling": "old",
        "drop": ["head_dim"],
        "generation": "none",
        "eos_list": True,
        "about": "llama3 rope scaling (original length 64), tied head, no `head_dim` key, `eos_token_id` a list in "
        "`config.json`, no `generation_config.json`",
    },
    {
        "name": "mistral",
        "seed": 3000,
        "classes": (MistralConfig, MistralForCausalLM),
        "config": {
            "rope_parameters": rope(100000.0),
            "tie_word_embeddings": False,
            "head_dim": 16,
            "intermediate_size": 72,
            "sliding_window": None,
        },
        "spelling": "old",
        "generation": "same",
        "about": "`head_dim` 16 (not 48/4), untied head, `sliding_window` null",
    },
    {
        "name": "mistral_sliding",
        "seed": 4000,
        "classes": (MistralConfig, MistralForCausalLM),
        "config": {
            "rope_parameters": rope(10000.0),
            "tie_word_embeddings": False,
            "head_dim": 8,
            "num_key_value_heads": 1,
            "sliding_window": 16,
        },
        "spelling": "new",
        "generation": "none",
        "about": "sliding window of 16 positions (position i sees i-15..=i), one kv head, `head_dim` 8, untied head",
    },
    {
        "name": "qwen2",
        "seed": 5000,
        "classes": (Qwen2Config, Qwen2ForCausalLM),
        "config": {"rope_parameters": rope(1000000.0), "tie_word_embeddings": True},
        "spelling": "old",
        "drop": ["layer_types"],
        # A window is named but not in use, as in real Qwen2 checkpoints: it must be ignored.
        "extra": {"sliding_window": 8, "use_sliding_window": False, "max_window_layers": 1},
        "generation": "list",
        "train": True,
        "chat": True,
        "about": "random q/k/v biases, tied head, `sliding_window` 8 named but `use_sliding_window` false, a "
        "`generation_config.json` whose eos list differs from `config.json` and wins, chat template in "
        "`tokenizer_config.json`",
    },
    {
        "name": "qwen3",
        "seed": 6000,
        "classes": (Qwen3Config, Qwen3ForCausalLM),
        "config": {
            "rope_parameters": rope(1000000.0),
            "tie_word_embeddings": False,
            "head_dim": 16,
            "num_key_value_heads": 1,
            "intermediate_size": 72,
        },
        "spelling": "new",
        "generation": "single",
        "train": True,
        "about": "q/k norms with random weights, `head_dim` 16, one kv head, untied head, a `generation_config.json` "
        "whose single eos differs from `config.json` and wins",
    },
    {
        "name": "llama_sharded",
        "seed": 7000,
        "classes": (LlamaConfig, LlamaForCausalLM),
        "config": {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": False},
        "spelling": "new",
        "generation": "same",
        "shard": "70KB",
        "about": "several shards with `model.safetensors.index.json`; llama3 rope scaling inside `rope_parameters`",
    },
    {
        "name": "llama_bf16",
        "seed": 8000,
        "classes": (LlamaConfig, LlamaForCausalLM),
        "config": {"rope_parameters": rope(10000.0), "tie_word_embeddings": False, "intermediate_size": 96},
        "spelling": "old",
        "generation": "same",
        "bf16": True,
        "about": "weights stored in bf16 (`torch_dtype` bfloat16); expected values computed in f32 from them",
    },
]


# ---------------------------------------------------------------- writing JSON


def sig7(x):
    """A float rounded to 7 significant digits."""
    return float(f"{float(x):.7g}")


def dump(value, path):
    """JSON with one line per row of numbers, so that diffs stay readable."""

    def flat(v):
        return not isinstance(v, (list, dict)) or (isinstance(v, list) and all(not isinstance(x, (list, dict)) for x in v))

    def text(v, pad):
        inner = pad + " "
        if flat(v):
            return json.dumps(v, separators=(",", ":"))
        if isinstance(v, dict):
            if v and all(not isinstance(x, (list, dict)) for x in v.values()) and len(v) <= 5:
                return json.dumps(v)
            rows = [f"{inner}{json.dumps(k)}: {text(x, inner)}" for k, x in v.items()]
            return "{\n" + ",\n".join(rows) + f"\n{pad}}}"
        rows = [inner + text(x, inner) for x in v]
        return "[\n" + ",\n".join(rows) + f"\n{pad}]"

    Path(path).write_text(text(value, "") + "\n")


# ------------------------------------------------------------------ the models


def random_model(family, seed):
    """A model of the family with every parameter drawn afresh from `seed`."""
    config_class, model_class = family["classes"]
    settings = copy.deepcopy({**COMMON, **family["config"]})
    config = config_class(**settings)
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    model = model_class(config).float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_((1.0 + 0.3 * noise).clamp(min=0.2))
            elif name.endswith("bias"):
                parameter.copy_(0.3 * noise)
            elif "embed_tokens" in name or "lm_head" in name:
                parameter.copy_(0.3 * noise)
            else:
                parameter.copy_(0.25 * noise)
        if family.get("bf16"):
            for parameter in model.parameters():
                parameter.copy_(parameter.to(torch.bfloat16).float())
    return model


def load(directory):
    model, info = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    for key in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[key], (directory, key, info[key])
    return model.eval()


@torch.no_grad()
def logits_of(model, ids):
    """[T, V] logits, in one full pass without a cache."""
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]


def gap(row):
    best = row.topk(2).values
    return float(best[0] - best[1])


def greedy(model, ids, count):
    """`count` greedy tokens by full recomputation, and the smallest top-2 gap."""
    ids, new, smallest = list(ids), [], float("inf")
    for _ in range(count):
        row = logits_of(model, ids)[-1]
        smallest = min(smallest, gap(row))
        new.append(int(row.argmax()))
        ids.append(new[-1])
    return new, smallest


def score(model, context, continuation):
    """Log-probabilities of `continuation` after `context`, and the smallest top-2 gap."""
    rows = logits_of(model, context + continuation)[len(context) - 1 : -1]
    # The logits are f32; only the normalization is done in f64.
    log_probs = F.log_softmax(rows.double(), dim=-1)
    token = [float(log_probs[i, t]) for i, t in enumerate(continuation)]
    result = {
        "context_ids": context,
        "continuation_ids": continuation,
        "logprob": sig7(sum(token)),
        "token_logprobs": [sig7(x) for x in token],
        "is_greedy": [int(t) for t in rows.argmax(-1)] == continuation,
    }
    return result, min(gap(row) for row in rows)


def expectations(model, seed):
    """The parts of expected.json that depend on the weights, and the smallest gap met."""
    generator = torch.Generator().manual_seed(seed + 500)
    vocabulary = model.config.vocab_size

    def draw(n):
        return torch.randint(FIRST_ORDINARY_ID, vocabulary, (n,), generator=generator).tolist()

    prompts = [draw(n) for n in PROMPT_LENGTHS]
    new, gaps = [], []
    for prompt in prompts:
        tokens, smallest = greedy(model, prompt, NEW_TOKENS)
        new.append(tokens)
        gaps.append(smallest)
    almost = new[3][:5]
    almost[3] = (almost[3] + 1) % vocabulary
    cases = [
        (prompts[1], draw(5)),
        (prompts[2], new[2][:6]),
        (prompts[0], draw(4)),
        (prompts[3], almost),
        (prompts[1], new[1][:1]),
    ]
    scores = []
    for context, continuation in cases:
        result, smallest = score(model, list(context), list(continuation))
        scores.append(result)
        gaps.append(smallest)
    logits = [[[sig7(x) for x in row] for row in logits_of(model, p)[-LAST_POSITIONS:]] for p in prompts]
    body = {"prompts": prompts, "logits": logits, "greedy": new, "score": scores}
    varied = len({t for tokens in new for t in tokens}) >= 12
    return body, min(gaps), varied


def eos_from(tokens):
    """A token that the greedy path first emits somewhere in its middle."""
    for token in tokens[4:16]:
        if 4 <= tokens.index(token) and token >= FIRST_ORDINARY_ID:
            return token
    return None


def rewrite_config(family, directory, config_eos):
    """config.json in the spelling that the family asks for."""
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config["eos_token_id"] = config_eos
    if family.get("bf16"):
        config["dtype"] = "bfloat16"
    if family["spelling"] == "old":
        parameters = dict(config.pop("rope_parameters"))
        config["rope_theta"] = parameters.pop("rope_theta")
        config["rope_scaling"] = None if parameters["rope_type"] == "default" else parameters
        config["torch_dtype"] = config.pop("dtype")
        config.pop("transformers_version", None)
        for key in family.get("drop", []):
            config.pop(key, None)
    config.update(family.get("extra", {}))
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def write_tokenizer(family, directory):
    """Words `t3`..`tN` (id = number) split at white space, after three special tokens."""
    size = COMMON["vocab_size"]
    specials = ["<unk>", "<s>", "</s>"]
    vocabulary = {token: i for i, token in enumerate(specials)}
    vocabulary.update({f"t{i}": i for i in range(len(specials), size)})
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in specials])
    if not family["name"].startswith("qwen"):
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
        )
    assert tokenizer.get_vocab_size() == size
    if family["spelling"] == "new":
        fast = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            bos_token="<s>",
            eos_token="</s>",
            unk_token="<unk>",
            model_max_length=256,
            clean_up_tokenization_spaces=False,
        )
        if family.get("chat"):
            fast.chat_template = CHAT_TEMPLATE
        fast.save_pretrained(directory)
    else:
        tokenizer.save(str(directory / "tokenizer.json"))
        config = {
            "bos_token": "<s>",
            "clean_up_tokenization_spaces": False,
            "eos_token": "</s>",
            "model_max_length": 256,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": "<unk>",
        }
        if family.get("chat"):
            config["chat_template"] = CHAT_TEMPLATE
        (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def tokenizer_cases(directory):
    """What transformers makes of a few texts with this tokenizer.json.

    AutoTokenizer builds a byte-level Qwen2Tokenizer for every model of type qwen2,
    whatever tokenizer.json and `tokenizer_class` say, so that the file is opened
    with the class that follows it; for the other types the two must agree.
    """
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    auto = AutoTokenizer.from_pretrained(directory)
    follows = type(auto).__name__ != "Qwen2Tokenizer"
    cases = []
    for text in ["t5 t90 t17", "t7  hello\nt8", "<s>t9 t10</s>", ""]:
        plain = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert not follows or auto(text)["input_ids"] == tokenizer(text)["input_ids"]
        cases.append(
            {
                "text": text,
                "ids": plain,
                "ids_with_special": tokenizer(text)["input_ids"],
                "decoded": tokenizer.decode(plain, skip_special_tokens=False),
                "decoded_without_special": tokenizer.decode(plain, skip_special_tokens=True),
            }
        )
    chat = None
    if tokenizer.chat_template:
        messages = [
            {"role": "user", "content": "t20 t21"},
            {"role": "assistant", "content": "t22"},
            {"role": "user", "content": "t23"},
        ]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        chat = {
            "messages": messages,
            "text": text,
            "ids": tokenizer(text, add_special_tokens=False)["input_ids"],
        }
    return cases, chat


# ---------------------------------------------------------------------- training


def training_batch(seed, vocabulary):
    generator = torch.Generator().manual_seed(seed + 700)
    batch = []
    for length, prompt in [(9, 4), (17, 6), (26, 11)]:
        ids = torch.randint(FIRST_ORDINARY_ID, vocabulary, (length,), generator=generator).tolist()
        labels = [-100] * prompt + ids[prompt:]
        if length == 26:
            labels[17:20] = [-100] * 3  # a second turn's prompt in the middle
        batch.append({"input_ids": ids, "labels": labels})
    return batch


def token_losses(model, item):
    """The sum of the token losses of one sequence and the number of trained tokens."""
    logits = model(input_ids=torch.tensor([item["input_ids"]]), use_cache=False).logits[0]
    targets = torch.tensor(item["labels"][1:])
    total = F.cross_entropy(logits[:-1], targets, ignore_index=-100, reduction="sum")
    return total, int((targets != -100).sum())


def batch_loss(model, batch):
    parts = [token_losses(model, item) for item in batch]
    count = sum(n for _, n in parts)
    return sum(total for total, _ in parts) / count, [total.item() for total, _ in parts], count


def train(model, batch):
    """Gradients at the start, then ten AdamW steps."""
    model.train()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    decayed = [name for name, p in model.named_parameters() if p.dim() >= 2]
    groups = [
        {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=BASE_LR, betas=(0.9, 0.999), eps=1e-8, foreach=False)
    schedule = get_cosine_schedule_with_warmup(optimizer, WARMUP_STEPS, TOTAL_STEPS)
    steps, gradients, first_sums, count = [], None, None, None
    for step in range(TOTAL_STEPS):
        optimizer.zero_grad()
        loss, sums, count = batch_loss(model, batch)
        loss.backward()
        if step == 0:
            gradients = {name: p.grad.detach().clone() for name, p in model.named_parameters()}
            first_sums = sums
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM, foreach=False)
        steps.append({"step": step, "lr": optimizer.param_groups[0]["lr"], "loss": loss.item(), "grad_norm": float(norm)})
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        final = batch_loss(model, batch)[0].item()
    parameters = {}
    for name, p in model.named_parameters():
        p = p.detach().double()
        parameters[name] = {
            "l2": float(p.norm()),
            "change_l2": float((p - start[name].double()).norm()),
        }
    return {
        "gradients": gradients,
        "sequence_loss_sums": first_sums,
        "num_trained_tokens": count,
        "steps": steps,
        "final_loss": final,
        "parameters": parameters,
        "decayed": decayed,
    }


def relative(a, b):
    return abs(a - b) / max(abs(b), 1e-30)


def write_training(directory, seed):
    model = load(directory)
    batch = training_batch(seed, model.config.vocab_size)
    # transformers' own loss (shifted inside) must be ours.
    with torch.no_grad():
        _, sums, count = batch_loss(model, batch)
        for item, total in zip(batch, sums):
            theirs = model(
                input_ids=torch.tensor([item["input_ids"]]),
                labels=torch.tensor([item["labels"]]),
                num_items_in_batch=count,
            ).loss.item()
            assert relative(theirs * count, total) < 1e-5, (theirs * count, total)
    run = train(model, batch)
    # The same in f64 (norms and rope still pass through f32): how far f32 rounding reaches.
    wide = train(load(directory).double(), batch)
    gradient_error = {
        name: float((g.double() - wide["gradients"][name].double()).norm() / wide["gradients"][name].double().norm())
        for name, g in run["gradients"].items()
    }
    rounding = {
        "loss_max_abs": sig7(max(abs(a["loss"] - b["loss"]) for a, b in zip(run["steps"], wide["steps"]))),
        "final_loss_abs": sig7(abs(run["final_loss"] - wide["final_loss"])),
        "grad_norm_max_rel": sig7(max(relative(a["grad_norm"], b["grad_norm"]) for a, b in zip(run["steps"], wide["steps"]))),
        "gradient_max_rel_l2": sig7(max(gradient_error.values())),
        "parameter_l2_max_rel": sig7(
            max(relative(run["parameters"][n]["l2"], wide["parameters"][n]["l2"]) for n in run["parameters"])
        ),
        "parameter_change_l2_max_rel": sig7(
            max(relative(run["parameters"][n]["change_l2"], wide["parameters"][n]["change_l2"]) for n in run["parameters"])
        ),
    }
    save_file({k: v.contiguous() for k, v in run["gradients"].items()}, directory / "gradients.safetensors", {"format": "pt"})
    dump(
        {
            "sequences": batch,
            "num_trained_tokens": run["num_trained_tokens"],
            "sequence_loss_sums": [sig7(x) for x in run["sequence_loss_sums"]],
            "optimizer": {
                "name": "AdamW",
                "base_lr": BASE_LR,
                "schedule": "cosine_with_warmup",
                "warmup_steps": WARMUP_STEPS,
                "total_steps": TOTAL_STEPS,
                "beta1": 0.9,
                "beta2": 0.999,
                "eps": 1e-8,
                "weight_decay": WEIGHT_DECAY,
                "max_grad_norm": MAX_GRAD_NORM,
            },
            "decayed_parameters": run["decayed"],
            # lr stays exact; the measured values carry 8 digits (an f32 has about 7).
            "steps": [
                {
                    "step": s["step"],
                    "lr": s["lr"],
                    "loss": float(f"{s['loss']:.8g}"),
                    "grad_norm": float(f"{s['grad_norm']:.8g}"),
                }
                for s in run["steps"]
            ],
            "final_loss": float(f"{run['final_loss']:.8g}"),
            "parameters_after": {
                name: {key: float(f"{x:.8g}") for key, x in values.items()} for name, values in run["parameters"].items()
            },
            "f32_rounding": rounding,
        },
        directory / "train_expected.json",
    )
    return run, rounding


# ------------------------------------------------------------------------- peft

PEFT = [
    {"name": "lora", "base": "llama", "options": {"target_modules": "all-linear"}},
    {"name": "rslora", "base": "qwen2", "options": {"target_modules": ["q_proj", "v_proj", "down_proj"], "use_rslora": True}},
    {"name": "dora", "base": "qwen3", "options": {"target_modules": "all-linear", "use_dora": True}},
]
PEFT_STEPS = 5
PEFT_LR = 1e-2


def make_peft(models, out):
    """Adapters with random values, and what peft computes with them: logits, gradients, AdamW steps."""
    import peft

    for case in PEFT:
        directory = out / case["name"]
        if directory.exists():
            shutil.rmtree(directory)
        base = models / case["base"]
        torch.manual_seed(5)
        config = peft.LoraConfig(r=3, lora_alpha=7, lora_dropout=0.0, task_type="CAUSAL_LM", **case["options"])
        model = peft.get_peft_model(load(base), config)
        generator = torch.Generator().manual_seed(11)
        trainable = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        with torch.no_grad():
            for name, p in trainable:
                noise = torch.randn(p.shape, generator=generator)
                # B starts at zero, and a zero B would hide most mistakes.
                p.copy_(p * (1 + 0.2 * noise) if "magnitude" in name else 0.15 * noise)
        model.save_pretrained(directory)
        (directory / "README.md").unlink()
        settings = json.loads((directory / "adapter_config.json").read_text())
        settings["base_model_name_or_path"] = f"tests/fixtures/models/{case['base']}"
        if isinstance(settings["target_modules"], list):
            settings["target_modules"] = sorted(settings["target_modules"])
        (directory / "adapter_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")

        batch = json.loads((base / "train_expected.json").read_text())["sequences"]
        prompt = batch[-1]["input_ids"]
        logits = logits_of(model, prompt)[-1]
        optimizer = torch.optim.AdamW([p for _, p in trainable], lr=PEFT_LR, weight_decay=0.0, foreach=False)
        steps, gradients = [], None
        for step in range(PEFT_STEPS):
            optimizer.zero_grad()
            loss, _, count = batch_loss(model, batch)
            loss.backward()
            if gradients is None:
                gradients = {n.replace(".default", "").removesuffix(".weight") if "magnitude" in n else n.replace(".default", ""): p.grad.clone() for n, p in trainable}
            norm = torch.nn.utils.clip_grad_norm_([p for _, p in trainable], MAX_GRAD_NORM, foreach=False)
            steps.append({"loss": float(f"{loss.item():.8g}"), "grad_norm": float(f"{float(norm):.8g}")})
            optimizer.step()
        with torch.no_grad():
            final = batch_loss(model, batch)[0].item()
        save_file({k: v.contiguous() for k, v in gradients.items()}, directory / "gradients.safetensors", {"format": "pt"})
        dump(
            {
                "base": case["base"],
                "sequences": batch,
                "num_trained_tokens": count,
                "prompt": prompt,
                "logits": [sig7(x) for x in logits.tolist()],
                "learning_rate": PEFT_LR,
                "max_grad_norm": MAX_GRAD_NORM,
                "steps": steps,
                "final_loss": float(f"{final:.8g}"),
            },
            directory / "expected.json",
        )
        for path in directory.iterdir():
            path.chmod(0o644)
        print(f"peft {case['name']}: {len(trainable)} tensors, losses", *(f"{s['loss']:.4f}" for s in steps), f"-> {final:.4f}")
    (out / "PROVENANCE.md").write_text(
        "# Where these adapters come from\n\n"
        "Random values on the bases of `../models`, and what peft computes with them. Made by\n\n"
        "    python scripts/make_fixtures.py --peft-only --out tests/fixtures/models --peft-out tests/fixtures/peft\n\n"
        f"with peft {peft.__version__}, " + ", ".join(f"{k} {v}" for k, v in versions().items()) + ".\n\n"
        "- `adapter_config.json` (keys sorted, base renamed), `adapter_model.safetensors`: written by `save_pretrained`.\n"
        "- `expected.json`: `logits` after the last token of `prompt`; `steps` (loss and gradient norm before clipping,\n"
        "  each before its update) of AdamW at a constant rate without decay on `sequences` (the base's training batch);\n"
        "  `final_loss` after them.\n"
        "- `gradients.safetensors`: of every adapter tensor before the first step, not clipped.\n\n"
        "| directory | base | options |\n|---|---|---|\n"
        + "".join(f"| `{c['name']}` | `{c['base']}` | `{json.dumps(c['options'])}` |\n" for c in PEFT)
    )


# ------------------------------------------------------------------------- main


def make(family, out):
    """One fixture directory. Returns what PROVENANCE.md says about it."""
    directory = out / family["name"]
    if directory.exists():
        shutil.rmtree(directory)
    directory.mkdir(parents=True)

    for seed in range(family["seed"], family["seed"] + 50):
        model = random_model(family, seed)
        body, smallest, varied = expectations(model, seed)
        first, second = eos_from(body["greedy"][1]), eos_from(body["greedy"][2])
        # An eos of the file's own never repeats that of config.json: it must replace it, not add to it.
        generation_eos = {"none": 2, "same": 2, "list": [first, second], "single": first}[family["generation"]]
        config_eos = [2, second] if family.get("eos_list") else 2
        chosen = [first, second] if family.get("eos_list") or family["generation"] in ("list", "single") else []
        if smallest > MIN_GAP and varied and None not in chosen and len(set(chosen)) == len(chosen):
            break
    else:
        raise SystemExit(f"{family['name']}: no seed gives clear argmaxes")

    if family.get("bf16"):
        model = model.to(torch.bfloat16)
    options = {"max_shard_size": family["shard"]} if "shard" in family else {}
    model.save_pretrained(directory, **options)
    rewrite_config(family, directory, config_eos)
    generation = directory / "generation_config.json"
    if family["generation"] == "none":
        generation.unlink(missing_ok=True)
    else:
        generation.write_text(
            json.dumps({"bos_token_id": 1, "do_sample": False, "eos_token_id": generation_eos}, indent=2) + "\n"
        )
    write_tokenizer(family, directory)

    # From here on: the model as written.
    loaded = load(directory)
    body, smallest, _ = expectations(loaded, seed)
    assert smallest > MIN_GAP
    prompts = body["prompts"]
    wide = load(directory).double()
    noise = max(
        float((logits_of(loaded, p).double() - logits_of(wide, p).double()).abs().max()) for p in prompts
    )
    logit_range = max(abs(x) for rows in body["logits"] for row in rows for x in row)
    check_that_it_matters(family, directory, loaded, prompts)

    eos = loaded.generation_config.eos_token_id
    eos = sorted(eos if isinstance(eos, list) else [eos])
    before = []
    for tokens in body["greedy"]:
        stop = next((i for i, t in enumerate(tokens) if t in eos), len(tokens))
        before.append(tokens[:stop])
    cases, chat = tokenizer_cases(directory)
    expected = {
        "family": family["name"],
        "seed": seed,
        **body,
        "eos_token_ids": eos,
        "greedy_before_eos": before,
        "tokenizer": cases,
        "chat": chat,
        "min_top2_gap": sig7(smallest),
        "f32_rounding": {"logits_max_abs": sig7(noise)},
    }
    dump(expected, directory / "expected.json")

    facts = {
        "seed": seed,
        "parameters": sum(p.numel() for p in loaded.parameters()),
        "gap": smallest,
        "noise": noise,
        "range": logit_range,
        "eos": eos,
        "stopped": [len(b) for b in before],
    }
    if family.get("train"):
        run, rounding = write_training(directory, seed)
        facts["train"] = (run, rounding)
    for path in directory.iterdir():
        path.chmod(0o644)
    print(
        f"{family['name']}: seed {seed}, {facts['parameters']} parameters, largest |logit| {logit_range:.2f}, "
        f"smallest top-2 gap {smallest:.2e}, f32 against f64 logits {noise:.1e}, "
        f"greedy lengths before eos {facts['stopped']}"
    )
    if "train" in facts:
        run, rounding = facts["train"]
        print("  losses " + " ".join(f"{s['loss']:.4f}" for s in run["steps"]) + f" -> {run['final_loss']:.4f}")
        print("  gradient norms " + " ".join(f"{s['grad_norm']:.3f}" for s in run["steps"]))
        print("  f32 against f64: " + ", ".join(f"{k} {v:.1e}" for k, v in rounding.items()))
    return facts


def check_that_it_matters(family, directory, model, prompts):
    """A fixture for a feature must come out differently without the feature."""
    longest = prompts[-1]
    here = logits_of(model, longest)[-1]

    def differs(change, least=0.05):
        config = transformers.AutoConfig.from_pretrained(directory)
        change(config)
        other = AutoModelForCausalLM.from_pretrained(
            directory, config=config, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        difference = float((logits_of(other, longest)[-1] - here).abs().max())
        assert difference > least, (family["name"], difference)

    rope_parameters = model.config.rope_parameters

    def plain_rope(config):
        config.rope_parameters = rope(rope_parameters["rope_theta"])

    def other_theta(config):
        config.rope_parameters = {**rope_parameters, "rope_theta": 12345.0}

    if rope_parameters["rope_type"] != "default":
        differs(plain_rope)
    differs(other_theta)
    window = getattr(model.config, "sliding_window", None)
    if window is not None:
        assert window < len(longest)
        differs(lambda config: setattr(config, "sliding_window", None))
        differs(lambda config: setattr(config, "sliding_window", window + 1), 1e-3)
        differs(lambda config: setattr(config, "sliding_window", window - 1), 1e-3)
    if family["name"] == "qwen2":
        assert window is None, "use_sliding_window false must switch the window off"
    stored = {}
    for part in sorted(directory.glob("model*.safetensors")):
        stored.update(load_file(part))
    tied = model.config.tie_word_embeddings
    assert ("lm_head.weight" in stored) != tied
    wanted = torch.bfloat16 if family.get("bf16") else torch.float32
    assert all(t.dtype == wanted for t in stored.values())
    if "shard" in family:
        assert len(list(directory.glob("model-*.safetensors"))) >= 2


def versions():
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "safetensors": safetensors.__version__,
        "tokenizers": tokenizers.__version__,
        "numpy": numpy.__version__,
    }


def provenance(out, facts):
    lines = [
        "# Where these fixtures come from",
        "",
        "Random models and what PyTorch with Hugging Face transformers computes with them.",
        "Nothing here was downloaded. Made by",
        "",
        "    python scripts/make_fixtures.py --out tests/fixtures/models",
        "",
        "with " + ", ".join(f"{k} {v}" for k, v in versions().items()) + f", on the CPU ({platform.machine()}),",
        "one thread, float32, `attn_implementation=\"eager\"`. The seeds are fixed: the same versions",
        "give the same weights and token ids; on another CPU the last digits of the expected numbers may differ.",
        "",
        "## Files",
        "",
        "- `config.json`, `generation_config.json`, `model*.safetensors`: written by `save_pretrained`. Some",
        "  `config.json` keep the transformers 5 spelling (`rope_parameters`, `dtype`), some were rewritten to the",
        "  older one (`rope_theta`, `rope_scaling`, `torch_dtype`). All expected values come from the model as loaded",
        "  back from the rewritten directory.",
        "- `tokenizer.json`, `tokenizer_config.json` (and `chat_template.jinja`): a word-level tokenizer; id 0 `<unk>`,",
        "  1 `<s>`, 2 `</s>`, then `t3` to `t95` with the number as the id. The llama and mistral ones put `<s>` in front.",
        "  (Open the qwen2 one with `PreTrainedTokenizerFast`: for that model type `AutoTokenizer` builds a byte-level",
        "  tokenizer whatever the file says.)",
        "- `expected.json`: `prompts` (token ids); `logits` (for each prompt the logits of its last three positions, or",
        "  of its only one, in order, 7 significant digits); `greedy` (24 tokens after each prompt, without a stop, each",
        "  from a full pass without a cache); `score` (`context_ids`, `continuation_ids`, `logprob`, `token_logprobs`,",
        "  `is_greedy`; natural logarithm); `eos_token_ids` (what stops generation: `generation_config.json` where",
        "  there is one, else `config.json`) and `greedy_before_eos` (`greedy` cut in front of the first of them);",
        "  `tokenizer` (texts, their ids without and with special tokens, and the decoded text); `chat` (a rendered",
        "  conversation, or null); `min_top2_gap` (the smallest distance between the two best logits on any greedy or",
        "  scored path); `f32_rounding.logits_max_abs` (largest difference from the model run in f64).",
        "- `train_expected.json`: `sequences` (`input_ids`, and `labels` aligned with them, -100 where not trained; the",
        "  label at position i is predicted from position i-1); `num_trained_tokens`; `sequence_loss_sums` (sum of the",
        "  token losses of each sequence before training); `optimizer`; `decayed_parameters` (all matrices, including",
        "  the embedding; norms and biases are not decayed); `steps` (`step`, `lr`, `loss`, and `grad_norm` before",
        "  clipping, each taken before the step's update); `final_loss` after the ten updates; `parameters_after`",
        "  (`l2`: norm of the parameter, `change_l2`: norm of its difference from the start); `f32_rounding` (how far",
        "  the same run in f64 is away, most of it, as norms and rope pass through f32 there too).",
        "- `gradients.safetensors`: the gradient of every parameter before the first step, not clipped, float32, named",
        "  as in the checkpoint. A tied head has one gradient, that of `model.embed_tokens.weight`.",
        "",
        "Training: one batch of three sequences, each run by itself without padding; the loss is the sum of all token",
        "losses divided by the number of trained tokens of the batch. `torch.optim.AdamW` (betas 0.9 and 0.999, eps",
        "1e-8, decay 0.1 on matrices), base rate 3e-3, transformers' `get_cosine_schedule_with_warmup` with 3 of 10",
        "steps of warm-up (so the first step has rate 0), `clip_grad_norm_` with 1.0.",
        "",
        "## Directories",
        "",
        "| directory | seed | parameters | config spelling | what is special |",
        "|---|---|---|---|---|",
    ]
    for family in FAMILIES:
        fact = facts[family["name"]]
        lines.append(
            f"| `{family['name']}` | {fact['seed']} | {fact['parameters']} | {family['spelling']} | {family['about']} |"
        )
    lines += [
        "",
        "## Measured while making them",
        "",
        "| directory | largest logit | smallest top-2 gap | f32 against f64 logits | eos ids | greedy tokens before eos |",
        "|---|---|---|---|---|---|",
    ]
    for family in FAMILIES:
        f = facts[family["name"]]
        lines.append(
            f"| `{family['name']}` | {f['range']:.2f} | {f['gap']:.1e} | {f['noise']:.1e} | "
            f"{', '.join(map(str, f['eos']))} | {', '.join(map(str, f['stopped']))} |"
        )
    lines += [
        "",
        "| directory | loss at the start and after ten steps | gradient norm at the start | f32 against f64 |",
        "|---|---|---|---|",
    ]
    for family in FAMILIES:
        if "train" in facts[family["name"]]:
            run, rounding = facts[family["name"]]["train"]
            spread = ", ".join(f"{k} {v:.1e}" for k, v in rounding.items())
            lines.append(
                f"| `{family['name']}` | {run['steps'][0]['loss']:.4f}, {run['final_loss']:.4f} | "
                f"{run['steps'][0]['grad_norm']:.3f} | {spread} |"
            )
    (out / "PROVENANCE.md").write_text("\n".join(lines) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="directory to write; existing fixtures there are replaced")
    parser.add_argument("--peft-out", type=Path, help="directory for adapters; needs the peft package")
    parser.add_argument("--peft-only", action="store_true", help="leave the models as they are")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.utils.logging.disable_progress_bar()
    print(", ".join(f"{k} {v}" for k, v in versions().items()))
    if args.peft_only:
        make_peft(args.out, args.peft_out)
        return 0
    args.out.mkdir(parents=True, exist_ok=True)
    facts = {family["name"]: make(family, args.out) for family in FAMILIES}
    provenance(args.out, facts)
    if args.peft_out:
        make_peft(args.out, args.peft_out)
    size = sum(p.stat().st_size for p in args.out.rglob("*") if p.is_file())
    print(f"{len(facts)} directories, {size} bytes in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
