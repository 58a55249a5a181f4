#!/usr/bin/env bash
# Compiles every kernel of kernels/cuda to PTX and to machine code for sm_80 and sm_90, and prints what each takes: registers and bytes spilled
# of a thread. `kernels/cuda_resources.txt` keeps the output; scripts/check.sh compares.
set -euo pipefail
cd "$(dirname "$0")/../kernels"
nvcc=${NVCC:-nvcc}
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT

echo "# scripts/cuda_report.sh, $("$nvcc" --version | sed -n 's/.*release [^,]*, //p'): registers of a thread, bytes spilled, by architecture"
for source in cuda/*.cu; do
    "$nvcc" -ptx -arch=compute_80 -std=c++17 -O3 -o "$folder/ptx" "$source"
    for architecture in 80 90; do
        "$nvcc" -cubin -gencode=arch=compute_$architecture,code=sm_$architecture -std=c++17 -O3 -Xptxas -v \
            -o "$folder/cubin" "$source" 2>&1 |
            awk -v architecture=$architecture '
                /Compiling entry function/ { split($0, part, "\047"); name = part[2] }
                /spill stores/ { spilled = $5 + $9 }
                /Used .* registers/ { for (i = 1; i < NF; i++) if ($i == "Used") print name, "sm_" architecture, $(i + 1), spilled }
            ' >> "$folder/table"
    done
done
sort "$folder/table" | awk '{ printf "%-32s %-6s %3d registers %4d bytes spilled\n", $1, $2, $3, $4 }'
