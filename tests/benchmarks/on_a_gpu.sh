#!/usr/bin/env bash
# All that this project wants measured on a GPU, in under eight minutes once the environment is there:
#
#   python3 -m venv .venv && .venv/bin/pip install --constraint constraints.txt --editable .
#   bash tests/benchmarks/on_a_gpu.sh [FOLDER]     # where the results are written; default: runs/on-a-gpu
#
# Where torch is installed already and nothing can be downloaded: bring wheels of the other packages of pyproject.toml, and set
# PYTHON to that Python. Only files of this repository are needed.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python} out=${1:-runs/on-a-gpu}
mkdir -p "$out"

nvidia-smi | tee "$out/nvidia-smi.txt"
timeout 60 "$python" -m launcher plan convnext_tiny_in1k --calibrate | tee "$out/calibrate.txt" || true
timeout 80 "$python" -m tests.benchmarks.gpu_memory | tee "$out/gpu_memory.txt" || true
timeout 40 "$python" -m tests.benchmarks.average_of_weights | tee "$out/average_of_weights.txt" || true
timeout 290 "$python" -m tests.benchmarks.gpu_step --minutes 4.5 --json "$out/gpu_step.json" | tee "$out/gpu_step.txt"
