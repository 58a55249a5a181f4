#!/usr/bin/env bash
# The CUDA 13.0 compiler, for a machine without GPU, driver or CUDA: `eval "$(scripts/cuda_env.sh)"`, then
# `cargo build --release --features cuda`.
#
# Brings NVIDIA's wheels (102 MB, pinned) from the Python package index into build/cuda, which git ignores, and prints what to set.
# Nothing else is needed to build: the program opens driver and cuBLASLt when it runs. Later calls find everything there.
# `--stand-in` prints settings with which `cargo check --features cuda` works without the compiler (kernels stay empty).
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)

if [ "${1:-}" = --stand-in ]; then
    echo "export NVCC=$root/scripts/nvcc_stand_in.sh"
    exit
fi

folder=$root/build/cuda
home=$folder/nvidia/cu13
if [ ! -x "$home/bin/nvcc" ]; then
    # All by name: the compiler's own wheel would bring newer headers, which it then refuses. 13.0 suits drivers from 580 on.
    python3 -m pip install --quiet --no-compile --disable-pip-version-check --root-user-action=ignore --target "$folder" \
        "cuda-toolkit[nvcc,crt,nvvm,cudart,cccl]==13.0.2" >&2
    ln -sfn lib "$home/lib64"
fi
"$home/bin/nvcc" --version | tail -2 | head -1 >&2
echo "export CUDA_HOME=$home"
echo "export PATH=$home/bin:\$PATH"
