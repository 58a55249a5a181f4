#!/usr/bin/env python3
"""Check glan's GGUF files with the `gguf` package of llama.cpp and, where it can be had, with llama.cpp itself.

    pip install numpy torch safetensors gguf tokenizers      # and xllamacpp for the last part
    cargo build --release
    python scripts/check_gguf.py --model DIR [--model DIR …] [--random] [--glan target/release/glan]

For every model directory (safetensors) and every quantization (`--random` adds random models of each family, with rows
long enough for the blocks of k-quants and the tokenizer of the first directory):

1. glan exports it; `gguf.GGUFReader` reads the file and `gguf.quants` unpacks it, independently of glan. Every tensor
   is put back into Hugging Face's order of rows and compared with the source.
2. glan turns its file back into a directory in f32; that is compared with what `gguf.quants` unpacked, bit by bit.
3. `gguf.GGUFWriter` writes the model (f32, f16, bf16, q8_0, q4_0, q5_0); glan reads that, and again every value is
   compared bit by bit.
4. llama.cpp continues prompts from glan's file greedily, and so does glan: the same tokens, or where they part and by
   how many nats llama.cpp prefers its own pick. Only f32 is held to equality (but for near-ties): llama.cpp packs the
   activations too, where weights are packed, and rounds them to bf16 beside bf16 weights. It is given token ids, and
   text where glan did not say that llama.cpp cuts text in another way.

Exit codes: 0 all is well; 1 something differs; 2 the inputs cannot be used.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
import safetensors
from safetensors.numpy import save_file

QUANTIZATIONS = ["f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0"]
# Relative norm of the error of a tensor: the spacing of each format for normal weights, and half as much again.
BOUNDS = {"F32": 0.0, "F16": 5e-4, "BF16": 4e-3, "Q8_0": 0.01, "Q6_K": 0.03, "Q5_K": 0.06, "Q4_K": 0.12,
          "Q5_0": 0.075, "Q5_1": 0.075, "Q4_0": 0.15}
FOREIGN = {"f32": gguf.GGMLQuantizationType.F32, "f16": gguf.GGMLQuantizationType.F16,
           "bf16": gguf.GGMLQuantizationType.BF16, "q8_0": gguf.GGMLQuantizationType.Q8_0,
           "q4_0": gguf.GGMLQuantizationType.Q4_0, "q5_0": gguf.GGMLQuantizationType.Q5_0}
PROMPTS = ["Once upon a time", "The dog and the cat", "What is 3 + 4?"]
NEW_TOKENS = 48
# Nats between two tokens that another order of summation may swap.
NEAR_TIE = 0.005

failures = []


def check(holds, what):
    if not holds:
        failures.append(what)
        print(f"  FAILED: {what}")
    return holds


def run(glan, *arguments):
    done = subprocess.run([glan, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode != 0:
        print(f"error: glan {' '.join(map(str, arguments))}\n{done.stderr}", file=sys.stderr)
        raise SystemExit(1)
    return done.stdout


def source_tensors(folder):
    """All tensors of a directory in f32."""
    tensors = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        with safetensors.safe_open(path, framework="pt") as file:  # numpy has no bfloat16
            for name in file.keys():
                tensors[name] = file.get_tensor(name).float().numpy()
    return tensors


def gguf_name(name):
    fixed = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
             "lm_head.weight": "output.weight"}
    if name in fixed:
        return fixed[name]
    parts = name.split(".")
    module = {"input_layernorm": "attn_norm", "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v",
              "o_proj": "attn_output", "q_norm": "attn_q_norm", "k_norm": "attn_k_norm",
              "post_attention_layernorm": "ffn_norm", "gate_proj": "ffn_gate", "up_proj": "ffn_up",
              "down_proj": "ffn_down"}[parts[-2]]
    return f"blk.{parts[2]}.{module}.{parts[-1]}"


def heads_of(name, config):
    return config["num_attention_heads"] if ".q_proj." in name else config["num_key_value_heads"]


def is_permuted(name, config):
    return config["model_type"] in ("llama", "mistral") and (".q_proj." in name or ".k_proj." in name)


def to_gguf(name, values, config):
    """llama.cpp's order of rows (its converter's `permute`)."""
    if not is_permuted(name, config):
        return values
    heads = heads_of(name, config)
    return values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def from_gguf(name, values, config):
    if not is_permuted(name, config):
        return values
    heads = heads_of(name, config)
    return values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def unpacked(path, names, config):
    """Tensors of a GGUF file by Hugging Face name, with their types."""
    reader = gguf.GGUFReader(path)
    by_name = {tensor.name: tensor for tensor in reader.tensors}
    tensors = {}
    for name in names:
        tensor = by_name.pop(gguf_name(name))
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        values = values.reshape([int(size) for size in reversed(tensor.shape)])
        tensors[name] = (from_gguf(name, values, config), tensor.tensor_type.name)
    check(set(by_name) <= {"rope_freqs.weight"}, f"{path}: tensors that nobody asked for: {sorted(by_name)}")
    return reader, tensors


def same_bits(left, right):
    return left.shape == right.shape and np.array_equal(left.view(np.uint32), right.view(np.uint32))


def check_metadata(reader, folder, config, what):
    field = lambda key: reader.fields[key].contents() if key in reader.fields else None
    tokenizer = json.loads((Path(folder) / "tokenizer.json").read_text())
    architecture = {"mistral": "llama"}.get(config["model_type"], config["model_type"])
    check(field("general.architecture") == architecture, f"{what}: general.architecture")
    check(field(f"{architecture}.block_count") == config["num_hidden_layers"], f"{what}: block_count")
    tokens = field("tokenizer.ggml.tokens")
    check(len(tokens) == config["vocab_size"], f"{what}: {len(tokens)} tokens")
    vocabulary = dict(tokenizer["model"]["vocab"])
    vocabulary.update({token["content"]: token["id"] for token in tokenizer["added_tokens"]})
    check(all(tokens[number] == token for token, number in vocabulary.items()), f"{what}: a token has another id")
    merges = field("tokenizer.ggml.merges")
    if merges is not None:
        expected = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
        check(merges == expected, f"{what}: merges")
    template = Path(folder) / "chat_template.jinja"
    if template.is_file():
        check(field("tokenizer.chat_template") == template.read_text(), f"{what}: chat template")


def check_exports(glan, folder, scratch, config, source):
    files = {}
    for quantization in QUANTIZATIONS:
        path, back = scratch / f"{quantization}.gguf", scratch / f"{quantization}-back"
        report = json.loads(run(glan, "export", "--model", folder, "--output", path, "--quantization", quantization,
                                "--json"))
        run(glan, "export", "--model", path, "--output", back, "--format", "safetensors", "--dtype", "f32")
        reader, tensors = unpacked(path, source, config)
        check_metadata(reader, folder, config, f"{folder} {quantization}")
        ours = source_tensors(back)
        worst, identical = {}, 0
        for name, values in source.items():
            written, kind = tensors[name]
            error = float(np.linalg.norm(written - values) / max(np.linalg.norm(values), 1e-30))
            worst[kind] = max(worst.get(kind, 0.0), error)
            check(error <= BOUNDS[kind], f"{quantization}: {name} in {kind} is off by {error:.2e}")
            if check(same_bits(ours[name], written), f"{quantization}: {name} in {kind} unpacks in another way"):
                identical += 1
        errors = ", ".join(f"{kind} {error:.1e}" for kind, error in sorted(worst.items()))
        print(f"  export {quantization:7} {path.stat().st_size:>9} bytes; relative error of the worst tensor: {errors}; "
              f"{identical} of {len(source)} tensors unpacked by glan bit for bit as by gguf {version('gguf')}")
        files[quantization] = (path, report)
    return files


def check_foreign(glan, scratch, config, source, exported):
    """A file written by the gguf package, with the metadata of an exported one."""
    reader = gguf.GGUFReader(exported)
    for quantization, kind in FOREIGN.items():
        path, back = scratch / f"foreign-{quantization}.gguf", scratch / f"foreign-{quantization}-back"
        writer = gguf.GGUFWriter(path, reader.fields["general.architecture"].contents())
        for key, field in reader.fields.items():
            if key.startswith("GGUF.") or key == "general.architecture":
                continue
            sub = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type=sub)
        expected = {}
        for tensor in reader.tensors:
            if tensor.name == "rope_freqs.weight":
                writer.add_tensor(tensor.name, tensor.data)
        for name, values in source.items():
            permuted = np.ascontiguousarray(to_gguf(name, values, config))
            block = gguf.GGML_QUANT_SIZES[kind][0]
            used = kind if values.ndim > 1 and values.shape[-1] % block == 0 else gguf.GGMLQuantizationType.F32
            packed = gguf.quants.quantize(permuted, used)
            writer.add_tensor(gguf_name(name), packed, raw_dtype=used)
            expected[name] = from_gguf(name, gguf.quants.dequantize(packed, used).reshape(permuted.shape), config)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        run(glan, "export", "--model", path, "--output", back, "--format", "safetensors", "--dtype", "f32")
        ours = source_tensors(back)
        equal = sum(check(same_bits(ours[name], values.astype(np.float32)), f"foreign {quantization}: {name}")
                    for name, values in expected.items())
        print(f"  import {quantization:7} written by gguf {version('gguf')}: {equal} of {len(expected)} tensors bit for bit")


def random_models(folder, scratch):
    """Random models of every family; wide enough for k-quants, sure enough of themselves for greedy decoding."""
    common = {"vocab_size": json.loads((Path(folder) / "config.json").read_text())["vocab_size"], "hidden_size": 256,
              "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2,
              "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "hidden_act": "silu",
              "eos_token_id": 0}
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 64}
    families = {"llama": {"tie_word_embeddings": False, "rope_scaling": scaling},
                "qwen2": {"tie_word_embeddings": True}, "qwen3": {"tie_word_embeddings": False, "head_dim": 64}}
    made = []
    for family, extra in families.items():
        config = {**common, "model_type": family, "head_dim": 32, **extra}
        target = scratch / f"random-{family}"
        target.mkdir()
        (target / "config.json").write_text(json.dumps(config))
        for name in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]:
            if (Path(folder) / name).is_file():
                (target / name).write_text((Path(folder) / name).read_text())
        tensors = random_tensors(config, np.random.default_rng(7))
        silence(tensors, json.loads((Path(folder) / "tokenizer.json").read_text()))
        save_file(tensors, target / "model.safetensors")
        made.append(target)
    return made


def silence(tensors, tokenizer):
    """Logits of 0, which never win, for special tokens and parts of characters: llama.cpp's server leaves those out of
    its answers, so that they could not be compared."""
    head = tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"])
    for token, number in tokenizer["model"]["vocab"].items():
        if not token.replace("Ġ", " ").isascii():
            head[number] = 0
    for token in tokenizer["added_tokens"]:
        head[token["id"]] = 0


def random_tensors(config, draw):
    hidden, wide, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    query = config["num_attention_heads"] * config["head_dim"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    normal = lambda *shape: (draw.standard_normal(shape) * 0.08).astype(np.float32)
    near_one = lambda size: (1 + draw.standard_normal(size) * 0.1).astype(np.float32)
    tensors = {"model.embed_tokens.weight": normal(vocab, hidden), "model.norm.weight": near_one(hidden)}
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = normal(vocab, hidden)
    for layer in range(config["num_hidden_layers"]):
        put = lambda name, values: tensors.__setitem__(f"model.layers.{layer}.{name}", values)
        put("input_layernorm.weight", near_one(hidden))
        put("post_attention_layernorm.weight", near_one(hidden))
        for name, shape in [("self_attn.q_proj", (query, hidden)), ("self_attn.k_proj", (kv, hidden)),
                            ("self_attn.v_proj", (kv, hidden)), ("self_attn.o_proj", (hidden, query)),
                            ("mlp.gate_proj", (wide, hidden)), ("mlp.up_proj", (wide, hidden)),
                            ("mlp.down_proj", (hidden, wide))]:
            put(f"{name}.weight", normal(*shape))
        if config["model_type"] == "qwen2":
            for name, size in [("q", query), ("k", kv), ("v", kv)]:
                put(f"self_attn.{name}_proj.bias", normal(size))
        if config["model_type"] == "qwen3":
            put("self_attn.q_norm.weight", near_one(config["head_dim"]))
            put("self_attn.k_norm.weight", near_one(config["head_dim"]))
    return tensors


def version(package):
    from importlib.metadata import version as of
    return of(package)


def llama_cpp(path, prompts):
    """Greedy tokens of llama.cpp for prompts that are texts or token ids."""
    import xllamacpp
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx = 512
    params.n_parallel = 1
    params.n_gpu_layers = 0
    params.warmup = False
    params.cpuparams.n_threads = 2
    params.cache_type_k = xllamacpp.ggml_type.GGML_TYPE_F32
    params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.verbosity = -1
    server = xllamacpp.Server(params)
    found = []
    for prompt in prompts:
        answer = server.handle_completions({"prompt": prompt, "max_tokens": NEW_TOKENS, "temperature": 0, "logprobs": 5})
        if "choices" not in answer:
            raise RuntimeError(f"llama.cpp: {answer}")
        found.append(answer["choices"][0]["logprobs"]["content"])
    return found


def parting(ours, theirs):
    """How many tokens are equal, of how many, and how much better llama.cpp finds its own pick where they part."""
    length = min(len(ours), len(theirs))
    at = next((at for at in range(length) if ours[at] != theirs[at]["id"]), length)
    if at == length:
        return at, length, None
    likely = {token["id"]: token["logprob"] for token in theirs[at]["top_logprobs"]}
    return at, length, theirs[at]["logprob"] - likely.get(ours[at], -np.inf)


def check_llama_cpp(glan, scratch, files, folder):
    try:
        import xllamacpp  # noqa: F401
    except ImportError:
        print("  llama.cpp: not done, the package xllamacpp is not installed")
        return
    from tokenizers import Tokenizer
    tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    ids = [tokenizer.encode(prompt).ids for prompt in PROMPTS]
    for quantization, (path, report) in files.items():
        own_words = not any("cuts text" in note for note in report["notes"])
        forms = {"token ids": ids, **({"text": PROMPTS} if own_words else {})}
        for form, prompts in forms.items():
            requests, answers = scratch / "requests.jsonl", scratch / f"answers-{quantization}-{form[0]}.jsonl"
            key = "prompt" if form == "text" else "prompt_token_ids"
            rows = [{"id": str(number), key: prompt, "max_new_tokens": NEW_TOKENS, "temperature": 0.0}
                    for number, prompt in enumerate(prompts)]
            requests.write_text("".join(json.dumps(row) + "\n" for row in rows))
            run(glan, "complete", "--model", path, "--requests", requests, "--output", answers)
            ours = [json.loads(line)["token_ids"] for line in answers.read_text().splitlines()]
            theirs = llama_cpp(path, prompts)
            found = [parting(left, right) for left, right in zip(ours, theirs)]
            whole = sum(gap is None for _, _, gap in found)
            if quantization == "f32":
                # Two sums of the same products in another order: they part at near-ties alone.
                check(all(gap is None or gap < NEAR_TIE for _, _, gap in found), f"llama.cpp f32 ({form}): {found}")
            shown = ", ".join(f"{at}/{length}" + ("" if gap is None else f" (gap {gap:.4f})") for at, length, gap in found)
            print(f"  llama.cpp ({version('xllamacpp')}) {quantization:7} prompts as {form:9}: {whole} of {len(found)} "
                  f"continuations equal; equal tokens {shown}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", required=True, help="model directory; may be repeated")
    parser.add_argument("--random", action="store_true", help="random models of every family too")
    parser.add_argument("--glan", default="target/release/glan", help="the executable")
    arguments = parser.parse_args()
    if not os.access(arguments.glan, os.X_OK):
        print(f"error: `{arguments.glan}` is not there; cargo build --release makes it", file=sys.stderr)
        raise SystemExit(2)
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        folders = [Path(folder) for folder in arguments.model]
        folders += random_models(folders[0], scratch) if arguments.random else []
        for number, folder in enumerate(folders):
            config = json.loads((folder / "config.json").read_text())
            source = source_tensors(folder)
            config.setdefault("num_key_value_heads", config["num_attention_heads"])
            name = folder.name if folder.is_relative_to(scratch) else folder
            print(f"{name}: {config['model_type']}, {len(source)} tensors, "
                  f"{sum(values.size for values in source.values())} parameters", flush=True)
            place = scratch / str(number)
            place.mkdir()
            files = check_exports(arguments.glan, folder, place, config, source)
            check_foreign(arguments.glan, place, config, source, files["f32"][0])
            check_llama_cpp(arguments.glan, place, files, folder)
    print(f"{len(failures)} failures")
    raise SystemExit(1 if failures else 0)


if __name__ == "__main__":
    main()
