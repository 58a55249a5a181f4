#!/usr/bin/env python3
"""list_cuda.py FILE: which machine code and PTX a program or a fat binary holds, by architecture.

Reads the containers that nvcc writes (`--fatbin`): a header (magic, version, header size, payload size), then entries (kind 1 PTX,
2 machine code; header size, payload size, architecture). Exits 1 when an architecture of WANTED is missing in one of them.
"""
import collections, struct, sys

WANTED = ["sm_80", "sm_89", "sm_90", "sm_120", "compute_80 (PTX)"]
MAGIC = struct.pack("<IHH", 0xBA55ED50, 1, 16)


def containers(data):
    at = data.find(MAGIC)
    while at >= 0:
        (size,) = struct.unpack_from("<Q", data, at + 8)
        if size > len(data) - at - 16:
            break
        yield at + 16, at + 16 + size
        at = data.find(MAGIC, at + 16 + size)


def entries(data, at, end):
    while at < end:
        kind, _, header, size = struct.unpack_from("<HHIQ", data, at)
        (arch,) = struct.unpack_from("<I", data, at + 28)
        yield (f"compute_{arch} (PTX)" if kind == 1 else f"sm_{arch}"), size
        at += header + size


def main():
    data = open(sys.argv[1], "rb").read()
    bytes_of, count, complete = collections.Counter(), 0, True
    for start, end in containers(data):
        count += 1
        held = collections.Counter()
        for name, size in entries(data, start, end):
            held[name] += size
        bytes_of.update(held)
        complete &= all(name in held for name in WANTED)
    print(f"{sys.argv[1]}: {count} modules")
    for name in sorted(bytes_of, key=lambda it: (it not in WANTED, WANTED.index(it) if it in WANTED else it)):
        print(f"  {name:<18} {bytes_of[name]:>9} bytes")
    if not count or not complete:
        print(f"  missing in some module: one of {', '.join(WANTED)}" if count else "  no CUDA kernels")
        sys.exit(1)


if __name__ == "__main__":
    main()
