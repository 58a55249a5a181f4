"""Shared parts of the PyTorch/transformers peer benchmarks (random weights, no downloads).

Our own program is later measured with the same model shapes and the same
counting rules, so that the JSON lines of both can stand side by side.

Counting rules
--------------
* tokens/s (train)    = batch * seq * accum / wall seconds of one optimiser step
                        (forward + backward + AdamW), every position counted.
* tokens/s (generate) = new tokens only; prompt tokens are reported apart.
* FLOP per token      = 2 * N_mm forward, N_mm = every weight that takes part in a
                        matrix product (the LM head counts, the embedding look-up
                        does not), plus causal attention 2 * L * (H*d) * S for
                        scores and values together.  Training of all weights is
                        3x that; with frozen weights (LoRA) 2x for them.
"""
import argparse
import json
import os
import platform
import resource
import sys
import threading
import time

PRESETS = {
    # name: hidden, layers, heads, kv_heads, ffn, vocab, tied, head_dim
    "2m":           (128, 4, 4, 2, 384, 4096, True, 32),
    "25m":          (384, 8, 6, 2, 1024, 32000, True, 64),
    "125m":         (768, 16, 12, 4, 2048, 32000, True, 64),
    "smollm2-135m": (576, 30, 9, 3, 1536, 49152, True, 64),
    "qwen2.5-0.5b": (896, 24, 14, 2, 4864, 151936, True, 64),
    "qwen2.5-1.5b": (1536, 28, 12, 2, 8960, 151936, True, 128),
    "qwen2.5-7b":   (3584, 28, 28, 4, 18944, 152064, False, 128),
    "llama3.2-1b":  (2048, 16, 32, 8, 8192, 128256, True, 64),
    "llama3.1-8b":  (4096, 32, 32, 8, 14336, 128256, False, 128),
}


def base_parser(desc):
    p = argparse.ArgumentParser(description=desc)
    p.add_argument("--size", default="25m", choices=sorted(PRESETS), help="model shape")
    p.add_argument("--arch", default="qwen2", choices=["qwen2", "llama"])
    p.add_argument("--model", default="", help="load this Hugging Face folder instead of random weights of --size")
    p.add_argument("--layers", type=int, default=0, help="override the number of layers")
    p.add_argument("--vocab", type=int, default=0, help="override the vocabulary size")
    p.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    p.add_argument("--dtype", default="fp32", choices=["fp32", "bf16", "amp-bf16"],
                   help="fp32; bf16 weights; amp-bf16 = fp32 weights under bf16 autocast")
    p.add_argument("--attn", default="sdpa", help="sdpa | eager | flash_attention_2 | flex_attention")
    p.add_argument("--threads", type=int, default=0, help="CPU threads (0 = torch's default)")
    p.add_argument("--compile", default="off",
                   choices=["off", "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"])
    p.add_argument("--matmul", default="", choices=["", "highest", "high", "medium"],
                   help="torch.set_float32_matmul_precision; on CPU 'medium' lets oneDNN run fp32 products in bf16")
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--peak-tflops", type=float, default=0.0,
                   help="machine's measured matmul rate; adds 'mfu' to the result")
    p.add_argument("--json", default="", help="append one JSON line to this file")
    return p


def shape(args):
    h, l, a, kv, f, v, tied, d = PRESETS[args.size]
    return dict(hidden=h, layers=args.layers or l, heads=a, kv_heads=kv, ffn=f,
                vocab=args.vocab or v, tied=tied, head_dim=d)


def make_config(args, max_pos=4096, kind=None):
    s = shape(args)
    kw = dict(hidden_size=s["hidden"], num_hidden_layers=s["layers"], num_attention_heads=s["heads"],
              num_key_value_heads=s["kv_heads"], intermediate_size=s["ffn"], vocab_size=s["vocab"],
              tie_word_embeddings=s["tied"], max_position_embeddings=max_pos, rms_norm_eps=1e-6,
              bos_token_id=None, eos_token_id=None, pad_token_id=None, use_cache=False)
    if (kind or args.arch) == "qwen2":
        from transformers import Qwen2Config
        return Qwen2Config(**kw)
    from transformers import LlamaConfig
    return LlamaConfig(head_dim=s["head_dim"], **kw)


def make_model(args, max_pos=4096):
    import torch
    from transformers import AutoModelForCausalLM
    cfg = make_config(args, max_pos)
    cfg._attn_implementation = args.attn
    dt = torch.bfloat16 if args.dtype == "bf16" else torch.float32
    if args.model:
        return AutoModelForCausalLM.from_pretrained(args.model, config=cfg, dtype=dt), cfg
    torch.manual_seed(args.seed)
    with torch.device(args.device):
        model = AutoModelForCausalLM.from_config(cfg, dtype=dt, attn_implementation=args.attn)
    return model.to(device=args.device, dtype=dt), cfg


def matmul_params(s):
    per = (s["hidden"] * s["head_dim"] * (s["heads"] * 2 + s["kv_heads"] * 2) + 3 * s["hidden"] * s["ffn"])
    return s["layers"] * per + s["vocab"] * s["hidden"]


def train_flops_per_token(s, seq, frozen=False, lora_params=0):
    n = matmul_params(s)
    attn_fwd = 2 * s["layers"] * s["heads"] * s["head_dim"] * seq      # causal half already taken
    if frozen:
        return 4 * n + 6 * lora_params + 3 * attn_fwd
    return 6 * n + 3 * attn_fwd


def setup_torch(args):
    import torch
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        torch.set_float32_matmul_precision("high")
    if args.matmul:
        torch.set_float32_matmul_precision(args.matmul)
    return torch


def sync(args):
    if args.device == "cuda":
        import torch
        torch.cuda.synchronize()


class PeakRss:
    """Peak resident set between reset() and read(), in MiB (sampled; Linux).

    VmHWM can be reset by writing 5 to /proc/self/clear_refs where permitted;
    otherwise the process-wide high-water mark is what we can give."""

    def __init__(self):
        self.resettable = True

    def reset(self):
        try:
            with open("/proc/self/clear_refs", "w") as f:
                f.write("5")
        except OSError:
            self.resettable = False

    def read(self):
        try:
            for line in open("/proc/self/status"):
                if line.startswith("VmHWM:"):
                    return round(int(line.split()[1]) / 1024, 1)
        except OSError:
            pass
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def cpu_model():
    try:
        d = {}
        for line in open("/proc/cpuinfo"):
            if ":" in line:
                k, v = line.split(":", 1)
                d.setdefault(k.strip(), v.strip())
        return f"{d.get('model name')} family {d.get('cpu family')} model {d.get('model')} x{os.cpu_count()}"
    except OSError:
        return platform.processor()


def env_info(args):
    import torch
    import transformers
    e = dict(torch=torch.__version__, transformers=transformers.__version__, python=platform.python_version(),
             threads=torch.get_num_threads(), cpu=cpu_model(), loadavg=os.getloadavg()[0])
    if args.device == "cuda":
        e["gpu"] = torch.cuda.get_device_name(0)
        e["cuda"] = torch.version.cuda
    return e


def emit(args, res):
    line = json.dumps(res)
    print(line)
    if args.json:
        with open(args.json, "a") as f:
            f.write(line + "\n")


def stats(xs):
    xs = sorted(xs)
    return dict(best=xs[0], median=xs[len(xs) // 2], worst=xs[-1], n=len(xs))
