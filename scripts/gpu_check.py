#!/usr/bin/env python3
"""The parts of gpu_check.sh (which see): parity, inference, training.

The kernels are those of the program itself, loaded through the driver and launched on PyTorch's tensors with the grids of
kernels/src/gpu. Times are of CUDA events, best of five runs of twenty launches.
"""
import argparse, ctypes, datetime, json, math, pathlib, re, shutil, subprocess, sys, tempfile, time

sys.path.insert(0, str(pathlib.Path(__file__).parent))
ROOT = pathlib.Path(__file__).parent.parent
LIMIT_S = 470
TOLERANCE = {"f32": 1e-5, "bf16": 1e-2}
started = time.monotonic()


class Table:
    """Rows of the result."""

    def __init__(self):
        self.rows = []

    def add(self, name, unit, ours=None, peer=None, share=None, target=None, met=None, note=None):
        # JSON has no NaN: a result that is none is none, and misses its target.
        ours = ours if ours is None or math.isfinite(ours) else None
        ratio = ours / peer if ours and peer else None
        row = dict(name=name, unit=unit, ours=ours, peer=peer, ratio=ratio, ceiling_share=share, target=target, met=met)
        if note:
            row["note"] = note
        self.rows.append(row)
        show = lambda it: "-" if it is None else f"{it:.4g}" if isinstance(it, float) else str(it)
        print(f"{name:<52} {show(ours):>10} {show(peer):>10} {unit:<10} ratio {show(ratio):>7} ceiling {show(share):>7} "
              f"{'' if met is None else 'met' if met else 'MISSED'} {note or ''}", flush=True)


class Kernels:
    """The modules that a program carries, on the current context."""

    def __init__(self, program, torch):
        from list_cuda import containers
        self.torch, self.cuda, self.modules = torch, ctypes.CDLL("libcuda.so.1"), []
        torch.zeros(1, device="cuda")
        data = pathlib.Path(program).read_bytes()
        for start, end in containers(data):
            module, image = ctypes.c_void_p(), ctypes.create_string_buffer(data[start - 16 : end], end - start + 16)
            self.check(self.cuda.cuModuleLoadData(ctypes.byref(module), image), "loading a module")
            self.modules.append(module)

    def check(self, code, what):
        if code:
            raise RuntimeError(f"{what}: CUDA error {code}")

    def launch(self, name, blocks, threads, shared, *args):
        function = ctypes.c_void_p()
        if all(self.cuda.cuModuleGetFunction(ctypes.byref(function), it, name.encode()) for it in self.modules):
            raise RuntimeError(f"the program carries no kernel {name}")
        if shared > 48 << 10:
            self.check(self.cuda.cuFuncSetAttribute(function, 8, shared), name)
        kinds = {int: ctypes.c_int, float: ctypes.c_float}
        values = [kinds[type(it)](it) if type(it) in kinds else ctypes.c_void_p(it.data_ptr()) for it in args]
        pointers = (ctypes.c_void_p * len(values))(*[ctypes.addressof(it) for it in values])
        x, y = (*blocks, 1)[:2]
        stream = ctypes.c_void_p(self.torch.cuda.current_stream().cuda_stream)
        self.check(self.cuda.cuLaunchKernel(function, x, y, 1, threads, 1, 1, shared, stream, pointers, None), name)


def threads(width, at_once, most):
    return min(max((-(-width // at_once) + 31) // 32 * 32, 32), most)


def error(got, expected):
    got, expected = got.double(), expected.double()
    return ((got - expected).abs().max() / expected.abs().max().clamp_min(1e-20)).item() if got.isfinite().all() else math.nan


def seconds(torch, run):
    for _ in range(3):
        run()
    best = math.inf
    for _ in range(5):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(20):
            run()
        end.record()
        torch.cuda.synchronize()
        best = min(best, start.elapsed_time(end) / 20e3)
    return best


def cases(torch, kernels, dtype, rows, width):
    """Name, what our kernel writes, how it runs, PyTorch's way in f32, PyTorch's way in the type, bytes."""
    suffix, size = ("f32", 4) if dtype == torch.float32 else ("bf16", 2)
    at_once = 16 // size if width % (16 // size) == 0 else 1
    new = lambda *shape, scale=1.0: (torch.randn(*shape, device="cuda") * scale).to(dtype)
    x, more, w = new(rows, width), new(rows, width), new(width)
    y, total, rstd = torch.empty_like(x), torch.empty_like(x), torch.empty(rows, device="cuda")
    norm = lambda x, w: torch.nn.functional.rms_norm(x, (width,), w, 1e-5)
    yield ("rms_norm + residual", y,
           lambda: kernels.launch(f"rms_norm_{suffix}", (rows,), threads(width, at_once, 512), 128, y, total, rstd, x, more,
                                  w, width, 1e-5, 1, 1),
           lambda: norm((x.float() + more.float()).to(dtype).float(), w.float()), lambda: norm(x + more, w),
           4 * size * rows * width)
    gate_up, out = new(rows, 2 * width, scale=3.0), torch.empty_like(x)
    gate, up = gate_up[:, :width], gate_up[:, width:]
    silu = torch.nn.functional.silu
    count = threads(width, at_once, 256)
    yield ("swiglu", out,
           lambda: kernels.launch(f"swiglu_{suffix}", (rows, -(-width // (count * at_once))), count, 0, out, gate_up, width),
           lambda: silu(gate.float()) * up.float(), lambda: silu(gate) * up, 3 * size * rows * width)
    if width % 64 == 0:
        half, heads = 32, width // 64
        angles = torch.outer(torch.arange(4096, device="cuda").float(), 0.8 ** torch.arange(half, device="cuda").float())
        cos, sin = angles.cos(), angles.sin()
        positions = torch.arange(rows, device="cuda", dtype=torch.int32) % 4096
        turned = x.clone()

        def rotated(x):
            low, high = x.view(rows, heads, 2, half).unbind(2)
            c, s = (it[positions.long()][:, None].to(x.dtype) for it in (cos, sin))
            return torch.stack((low * c - high * s, high * c + low * s), 2).view(rows, width)

        def ours():
            turned.copy_(x)
            kernels.launch(f"rope_{suffix}", (rows,), threads(heads * half, at_once, 256), 0, turned, cos, sin, positions,
                           heads, half, width, 1.0)
        yield "rope (and a copy)", turned, ours, lambda: rotated(x.float()), lambda: rotated(x), 4 * size * rows * width
    logits, losses = new(rows, width, scale=4.0), torch.empty(rows, device="cuda")
    targets = torch.randint(0, width, (rows,), device="cuda", dtype=torch.int32)
    entropy = lambda it: torch.nn.functional.cross_entropy(it, targets.long(), reduction="none")
    yield ("cross_entropy", losses,
           lambda: kernels.launch(f"cross_entropy_{suffix}", (rows,), threads(width, at_once, 1024), 128, logits, losses,
                                  targets, width, 1.0, 0),
           lambda: entropy(logits.float()), lambda: entropy(logits), size * rows * width)


def attention_row(torch, kernels, table, dtype, length, heads, kv_heads, dim):
    suffix = "f32" if dtype == torch.float32 else "bf16"
    qkv = torch.randn(length, (heads + 2 * kv_heads) * dim, device="cuda").to(dtype)
    o, lse = torch.empty(length, heads * dim, device="cuda", dtype=dtype), torch.empty(length, heads, device="cuda")
    chunk = min(heads // kv_heads, 16)
    step = max(16 // chunk, 1)
    units = [[at, min(step, length - at), 0, 0, min(at + step, length), 0, 0, 0] for at in range(0, length, step)]
    units = torch.tensor(units, device="cuda", dtype=torch.int32)
    rows = torch.tensor([[at, at, -1, 0] for at in range(length)], device="cuda", dtype=torch.int32)
    chunks = -(-(heads // kv_heads) // chunk)
    run = lambda: kernels.launch(f"attention_packed_{suffix}", (len(units), kv_heads * chunks), 128, 80 * (dim + 4) * 4, o, lse,
                                 qkv, units, rows, heads, kv_heads, dim, 0, chunk, 1 / math.sqrt(dim))
    q, k, v = (it.view(1, length, -1, dim).transpose(1, 2) for it in qkv.split([heads * dim, kv_heads * dim, kv_heads * dim], 1))
    sdpa = lambda q, k, v: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    run()
    off = error(o.view(length, heads, dim).transpose(0, 1), sdpa(q.float(), k.float(), v.float())[0])
    name = f"attention packed {suffix} {length} x {heads}/{kv_heads} x {dim}"
    table.add(name, "error", off, target=TOLERANCE[suffix], met=off <= TOLERANCE[suffix])
    flops = 2 * length * length * heads * dim
    ours, peer = (flops / seconds(torch, it) / 1e12 for it in (run, lambda: sdpa(q, k, v)))
    table.add(name, "TFLOP/s", ours, peer, target=350.0 if dim == 128 and length >= 4096 else None,
              met=ours >= 350 if dim == 128 and length >= 4096 else None)


def adamw_row(torch, kernels, table, count):
    p, g = torch.randn(count, device="cuda"), torch.randn(count, device="cuda")
    m, v, scale = torch.zeros_like(p), torch.zeros_like(p), torch.ones(1, device="cuda")
    theirs = p.clone().requires_grad_()
    theirs.grad = g.clone()
    optimizer = torch.optim.AdamW([theirs], lr=1e-2, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1, fused=True)
    blocks = min(max(-(-(count // 4) // 256), 1), 16 * torch.cuda.get_device_properties(0).multi_processor_count)
    run = lambda: kernels.launch("adamw_step", (blocks,), 256, 0, p, p, m, v, g, scale, count // 4, count % 4, 0, 1e-2 / 0.1,
                                 1 / math.sqrt(0.01), 1 - 1e-3, 0.9, 0.99, 0.1, 0.01, 1e-8)
    run()
    optimizer.step()
    off = error(p, theirs.detach())
    table.add(f"adamw f32 {count}", "error", off, target=1e-6, met=off <= 1e-6)
    return run, optimizer.step, 28 * count


def parity(torch, kernels, table, program):
    source, target = torch.randn(1 << 27, device="cuda"), torch.empty(1 << 27, device="cuda")
    copy = 8 * source.numel() / seconds(torch, lambda: target.copy_(source)) / 1e9
    del source, target
    table.add("copy, the ceiling of what follows", "GB/s", peer=copy)
    for dtype, suffix in ((torch.float32, "f32"), (torch.bfloat16, "bf16")):
        for rows, width in ((1, 1), (3, 77), (5, 1000), (7, 4096), (3, 151936)):
            for name, written, run, exact, _, _ in cases(torch, kernels, dtype, rows, width):
                run()
                off = error(written, exact())
                table.add(f"{name} {suffix} {rows} x {width}", "error", off, target=TOLERANCE[suffix],
                          met=off <= TOLERANCE[suffix])
        for name, _, run, _, theirs, size in cases(torch, kernels, dtype, 16384, 4096):
            ours, peer = (size / seconds(torch, it) / 1e9 for it in (run, theirs))
            table.add(f"{name} {suffix} 16384 x 4096", "GB/s", ours, peer, ours / copy, 0.8 * copy, ours >= 0.8 * copy)
        for shape in ((77, 4, 2, 64), (1000, 14, 2, 64), (4096, 32, 8, 128)):
            attention_row(torch, kernels, table, dtype, *shape)
    for count in (1, 1003, 1 << 27):
        run, theirs, size = adamw_row(torch, kernels, table, count)
    ours, peer = (size / seconds(torch, it) / 1e9 for it in (run, theirs))
    table.add(f"adamw f32 {1 << 27}", "GB/s", ours, peer, ours / copy, 0.8 * copy, ours >= 0.8 * copy)
    engine_row(table, program)


def engine_row(table, program, devices=("cpu", "cuda")):
    """Greedy tokens of a shipped model on the GPU in f32 against the CPU's."""
    requests = [dict(id=str(i), prompt=prompt, max_new_tokens=32, temperature=0.0)
                for i, prompt in enumerate(["Which town lies at the river?", "What is 2 + 3?", "Name a metal."])]
    with tempfile.TemporaryDirectory() as folder:
        asked, said = pathlib.Path(folder, "requests.jsonl"), []
        asked.write_text("".join(json.dumps(it) + "\n" for it in requests))
        for number, device in enumerate(devices):
            output = pathlib.Path(folder, f"{number}.jsonl")
            command = [program, "-q", "complete", "--model", "models/primer-teacher", "--device", device, "--dtype", "f32",
                       "--requests", str(asked), "--output", str(output)]
            result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
            if result.returncode:
                note = (result.stderr.strip().splitlines() or ["no message"])[-1][:200]
                return table.add("engine: greedy text as on the CPU", "of 3", target=3, met=False, note=f"{device}: {note}")
            said.append([json.loads(line) for line in output.read_text().splitlines()])
    same = sum(one["text"] == other["text"] for one, other in zip(*said))
    table.add("engine: greedy text as on the CPU", "of 3", same, target=3, met=same == 3 == len(said[1]))


def run_json(command, table, name, unit):
    """The JSON objects that a command prints or writes; a row that says so where it fails."""
    left = LIMIT_S - (time.monotonic() - started)
    try:
        result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=max(left, 1))
        if result.returncode == 0:
            return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
        note = (result.stderr.strip().splitlines() or ["no message"])[-1][:160]
    except (OSError, subprocess.TimeoutExpired, ValueError) as problem:
        note = str(problem)[:160]
    table.add(name, unit, note=note)
    return []


def inference(torch, kernels, table, program):
    batches = ["1", "32", "256"]
    for size in ("qwen2.5-0.5b", "qwen2.5-1.5b"):
        with tempfile.TemporaryDirectory() as folder:
            run_json([sys.executable, "scripts/peers/make_hf_model.py", "--size", size, "--dtype", "bf16", "--no-tokenizer",
                      "--out", folder], table, f"{size}: weights", "")
            ours = run_json([program, "-q", "bench", "generate", "--model", folder, "--device", "cuda", "--dtype", "bf16",
                             "--batch", ",".join(batches), "--prompt-tokens", "1024", "--new-tokens", "64", "--repeats", "1",
                             "--json"], table, f"{size}: ours", "tokens/s")
            peers = run_json([sys.executable, "scripts/peers/generate_torch.py", "--model", folder, "--device", "cuda", "--dtype",
                              "bf16", "--engine", "cb", "--batch", *batches, "--prompt", "1024", "--new", "64", "--repeats", "1"],
                             table, f"{size}: transformers, continuous batching", "tokens/s")
        for batch in map(int, batches):
            one, other = ([it for it in rows if it["batch"] == batch] for rows in (ours, peers))
            for key, target in (("decode_tok_s", 3.0), ("prefill_tok_s", None)):
                mine, theirs = (rows[0][key] if rows else None for rows in (one, other))
                met = mine / theirs >= target if mine and theirs and target else None
                table.add(f"{size} bf16 batch {batch} {key}", "tokens/s", mine, theirs, target=target, met=met)


def training(torch, kernels, table, program):
    table.add("training on a GPU", "tokens/s", note="not there yet; the peer alone is measured")
    for name, extra in (("eager", []), ("compile", ["--compile", "default"])):
        rows = run_json([sys.executable, "scripts/peers/train_torch.py", "--size", "qwen2.5-0.5b", "--device", "cuda", "--dtype",
                         "bf16", "--loss", "chunked", "--optim", "adamw-fused", "--seq", "2048", *extra],
                        table, f"PyTorch {name} 0.5B", "tokens/s")
        for row in rows:
            table.add(f"PyTorch {name} 0.5B", "tokens/s", peer=row.get("tok_s_best"))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["parity", "inference", "training"])
    parser.add_argument("--glan", default="target/release/glan")
    parser.add_argument("--out")
    args = parser.parse_args()
    table = Table()
    try:
        import torch
        device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
        reason = "PyTorch sees no CUDA device"
    except ImportError as problem:
        torch, device, reason = None, None, str(problem)
    if device is None:
        table.add(args.part, "", note=f"skipped: {reason}")
        sys.exit(1)
    try:
        kernels = Kernels(args.glan, torch) if args.part == "parity" else None
        {"parity": parity, "inference": inference, "training": training}[args.part](torch, kernels, table, args.glan)
    except (RuntimeError, OSError) as problem:
        table.add(args.part, "", note=f"stopped: {problem}")
    say = lambda *command: subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout.strip() if shutil.which(command[0]) else ""
    today = datetime.date.today().isoformat()
    slug = re.sub(r"[^a-z0-9]+", "-", device.lower().removeprefix("nvidia ")).strip("-")
    path = pathlib.Path(args.out or ROOT / "benchmarks/results" / f"{today}-{slug}.json")
    old = json.loads(path.read_text())["rows"] if path.exists() else []
    names = {row["name"] for row in table.rows}
    result = dict(device=device, commit=say("git", "rev-parse", "HEAD"), date=today,
                  driver=say("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
                  versions=dict(torch=torch.__version__, python=sys.version.split()[0], glan=say(args.glan, "--version")),
                  rows=[row for row in old if row["name"] not in names] + table.rows)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{path}: {len(result['rows'])} rows")


main()
