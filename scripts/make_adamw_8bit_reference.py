#!/usr/bin/env python3
"""Make kernels/tests/adamw_8bit.txt: five AdamW steps with 8-bit moments, by numpy alone.

    python scripts/make_adamw_8bit_reference.py > kernels/tests/adamw_8bit.txt

An independent computation of Dettmers et al. 2021 (arXiv 2110.02861) as bitsandbytes has it: the dynamic map of
`create_dynamic_map`, blocks of 256 values, moments rounded after every step. Nearest codes are found by comparing with
all 256 values.
"""
import numpy as np

LEN, BLOCK, STEPS = 600, 256, 5
LR, BETA1, BETA2, EPS, DECAY = 1e-2, 0.9, 0.99, 1e-8, 0.1


def dynamic_map(signed):
    data = [0.0, 1.0]
    for i in range(7):
        items = 2**i if signed else 2 ** (i + 1)
        edges = np.linspace(0.1, 1, items + 1)
        means = 10.0 ** (i - 6) * (edges[:-1] + edges[1:]) / 2
        data += list(means) + (list(-means) if signed else [])
    assert len(data) == 256
    return np.sort(np.array(data)).astype(np.float32)


def quantize(values, table):
    codes, scales = np.zeros(len(values), np.int64), []
    for start in range(0, len(values), BLOCK):
        block = values[start : start + BLOCK]
        scale = np.float32(np.abs(block).max())
        scales.append(scale)
        near = np.abs((block / scale if scale > 0 else block)[:, None].astype(np.float64) - table[None].astype(np.float64))
        codes[start : start + BLOCK] = near.argmin(1)
    return codes, np.array(scales, np.float32)


def dequantize(codes, scales, table):
    return table[codes] * np.repeat(scales, BLOCK)[: len(codes)]


def gradient(step):
    index = np.arange(LEN)
    share = lambda x: ((x * 40503 >> 4) & 0xFFF).astype(np.float32) / np.float32(4096)
    base = (share(index) - np.float32(0.5)) * np.float32(0.5) ** (index % 4).astype(np.float32)
    return (base * (1 + 2 * (share(index * 31 + step * 977) - np.float32(0.5)))).astype(np.float32)


def main():
    signed, unsigned = dynamic_map(True), dynamic_map(False)
    p = np.zeros(LEN, np.float32)
    (m, ms), (v, vs) = quantize(p, signed), quantize(p, unsigned)
    for t in range(1, STEPS + 1):
        g = gradient(t)
        m32 = np.float32(BETA1) * dequantize(m, ms, signed) + np.float32(1 - BETA1) * g
        v32 = np.float32(BETA2) * dequantize(v, vs, unsigned) + np.float32(1 - BETA2) * g * g
        update = (m32 / (1 - BETA1**t)) / (np.sqrt(v32 / (1 - BETA2**t)) + EPS)
        p = (p * (1 - LR * DECAY) - LR * update).astype(np.float32)
        (m, ms), (v, vs) = quantize(m32, signed), quantize(v32, unsigned)
    for name, row in [("parameters", p), ("first", m), ("first_absmax", ms), ("second", v), ("second_absmax", vs)]:
        print(name, *row)


main()
