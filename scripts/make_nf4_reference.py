#!/usr/bin/env python3
"""Make kernels/tests/nf4.txt: NF4 of a small matrix, by numpy (and scipy) alone.

    python scripts/make_nf4_reference.py > kernels/tests/nf4.txt

The table is built as in Dettmers et al. 2023 (arXiv 2305.14314, section 3): quantiles of a normal distribution, eight
positive and seven negative ones and zero, scaled to 1. The nearest of the 16 values is found by comparing with all.
"""
from statistics import NormalDist

import numpy as np

ROWS, COLUMNS, BLOCK = 2, 160, 64
OFFSET = 0.9677083  # bitsandbytes' create_normal_map


def table():
    quantile = NormalDist().inv_cdf
    positive = [quantile(p) for p in np.linspace(OFFSET, 0.5, 9)[:-1]]
    negative = [-quantile(p) for p in np.linspace(OFFSET, 0.5, 8)[:-1]]
    values = np.sort(np.array(positive + [0.0] + negative))
    return (values / values.max()).astype(np.float32)


def main():
    codes = table()
    index = np.arange(ROWS * COLUMNS)
    values = (((index * 40503 >> 4) & 0xFFF).astype(np.float32) / 4096 - np.float32(0.5)) * np.float32(0.5) ** (index % 3)
    values = values.astype(np.float32).reshape(ROWS, COLUMNS)
    absmax, packed, unpacked = [], [], []
    for row in values:
        for start in range(0, COLUMNS, BLOCK):
            block = row[start : start + BLOCK]
            most = np.abs(block).max()
            near = np.abs((block / most)[:, None].astype(np.float64) - codes[None].astype(np.float64)).argmin(1)
            absmax.append(most)
            packed += list(near[0::2] * 16 + near[1::2])
            unpacked += list(codes[near] * most)
    for name, numbers in [("table", codes), ("values", values.ravel()), ("absmax", absmax), ("bytes", packed),
                          ("unpacked", unpacked)]:
        print(name, *numbers)


main()
