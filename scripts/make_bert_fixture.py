#!/usr/bin/env python3
"""Makes tests/fixtures/bert: a tiny random BERT with its tokenizer, and the vectors that transformers gives texts.

    make_bert_fixture.py tests/fixtures/bert

Needs torch, transformers, tokenizers. Vectors are the mean of the last hidden state over all tokens, scaled to length one.
"""
import json
import pathlib
import sys

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel

TEXTS = [
    "What is the capital of France?",
    "what IS the capital, of france",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich",
    "x",
    "Add 12 and 30, then say how many apples are left. " * 12,
]


def main(out):
    out.mkdir(parents=True, exist_ok=True)
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = ["what", "is", "the", "capital", "of", "france", "add", "and", "then", "say", "how", "many", "apples", "are", "left"]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *letters, *(f"##{l}" for l in letters), *"?,.!"]
    tokenizer = Tokenizer(models.WordPiece({token: n for n, token in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(out / "tokenizer.json"))

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=64, initializer_range=0.4,
    )
    model = BertModel(config, add_pooling_layer=False).eval()
    # Norms that do nothing and biases of zero would hide what is left out.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "LayerNorm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(out, safe_serialization=True)
    expected = []
    for text in TEXTS:
        ids = tokenizer.encode(text).ids
        if len(ids) > config.max_position_embeddings:
            ids = ids[: config.max_position_embeddings - 1] + ids[-1:]
        with torch.no_grad():
            vector = model(torch.tensor([ids])).last_hidden_state[0].mean(0)
        expected.append({"text": text, "vector": (vector / vector.norm()).tolist()})
    (out / "expected.json").write_text(json.dumps(expected, ensure_ascii=False) + "\n", encoding="utf-8")
    (out / "README.md").write_text(
        "Made by `scripts/make_bert_fixture.py` with torch "
        f"{torch.__version__.split('+')[0]} and transformers {__import__('transformers').__version__}: random weights (seed 0).\n"
    )


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
