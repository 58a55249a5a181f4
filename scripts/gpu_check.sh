#!/usr/bin/env bash
# On a machine with an NVIDIA GPU, Python and PyTorch, but no Rust: kernels against PyTorch, generation and training beside it.
#
#   scripts/gpu_check.sh parity|inference|training [--glan PROGRAM] [--out FILE]
#
# PROGRAM was built with the feature `cuda` (target/release/glan by default); kernels are taken out of it. Prints a table and adds its
# rows to benchmarks/results/DATE-DEVICE.json. What is missing is a row that says so.
set -euo pipefail
cd "$(dirname "$0")/.."
# PyTorch's wheels bring cuBLASLt, which the program opens by name.
libraries=$(python3 -c 'import pathlib, site, sysconfig
folders = {sysconfig.get_paths()["purelib"], *site.getsitepackages()}
print(":".join(str(path) for folder in folders for path in pathlib.Path(folder).glob("nvidia/*/lib")))' || true)
export LD_LIBRARY_PATH="${libraries}${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
exec python3 scripts/gpu_check.py "$@"
