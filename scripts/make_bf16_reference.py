#!/usr/bin/env python3
"""Make tests/fixtures/bf16_training.json: ten AdamW steps by PyTorch in bf16, beside its own in f32.

    pip install torch transformers safetensors
    python scripts/make_bf16_reference.py > tests/fixtures/bf16_training.json

For the families of tests/fixtures/models with a training fixture: f32 master weights, forward and backward under
`torch.autocast` in bf16 on the CPU, the optimizer of `train_expected.json`. `gradient_error` is the relative L2 norm of
the first gradient's difference from the f32 one.
"""
import json
import pathlib

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

MODELS = pathlib.Path(__file__).resolve().parent.parent / "tests/fixtures/models"


def batch_loss(model, expected):
    total = 0
    for item in expected["sequences"]:
        ids, labels = torch.tensor([item["input_ids"]]), torch.tensor(item["labels"])
        logits = model(input_ids=ids).logits[0].float()
        total = total + torch.nn.functional.cross_entropy(logits[:-1], labels[1:], ignore_index=-100, reduction="sum")
    return total / expected["num_trained_tokens"]


def main():
    torch.set_num_threads(1)
    found = {"torch": torch.__version__}
    for family in ["llama", "qwen2", "qwen3"]:
        expected = json.loads((MODELS / family / "train_expected.json").read_text())
        with_ = expected["optimizer"]
        model = AutoModelForCausalLM.from_pretrained(MODELS / family, dtype=torch.float32, attn_implementation="eager")
        decays = [p for p in model.parameters() if p.dim() > 1]
        rest = [p for p in model.parameters() if p.dim() <= 1]
        groups = [dict(params=decays, weight_decay=with_["weight_decay"]), dict(params=rest, weight_decay=0.0)]
        optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(with_["beta1"], with_["beta2"]), eps=with_["eps"])
        losses, error = [], None
        for step in expected["steps"]:
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = batch_loss(model, expected)
            loss.backward()
            losses.append(loss.item())
            if error is None:
                exact = load_file(MODELS / family / "gradients.safetensors")
                got = dict(model.named_parameters())
                square = lambda values: sum(float(value.double().pow(2).sum()) for value in values)
                error = (square(got[k].grad - v for k, v in exact.items()) / square(exact.values())) ** 0.5
            torch.nn.utils.clip_grad_norm_(model.parameters(), with_["max_grad_norm"])
            for group in optimizer.param_groups:
                group["lr"] = step["lr"]
            optimizer.step()
        found[family] = {"losses": losses, "gradient_error": error}
    print(json.dumps(found, indent=1))


main()
