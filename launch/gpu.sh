#!/usr/bin/env bash
# Sets up .venv with JAX for NVIDIA GPUs, then runs main.py on all GPUs of this machine:
#   bash launch/gpu.sh --config=configs/effnet_b0_advprop.py --workdir=runs/b0
#   bash launch/gpu.sh --help                  # sets up .venv, without a GPU as well
# The arguments go to main.py. As the first one, --dry_run is this script's: it prints
# the commands and runs none (`--dry_run --dry_run` is one for each).
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh

dry_run=''
if [[ ${1:-} == --dry_run ]]; then
  dry_run=true
  shift
fi
[[ ${1:-} != -- ]] || shift
export JAX_PLATFORMS=${JAX_PLATFORMS:-cuda}  # Without a GPU an error, not the CPU.
if [[ -z $dry_run && $JAX_PLATFORMS == cuda && " $* " != *' --help '* ]]; then
  command -v nvidia-smi >/dev/null || fail "no NVIDIA driver here (no command nvidia-smi); \
allowed: a machine with one, or bash launch/local.sh for the CPU"
fi
run source launch/setup.sh requirements.txt launch/cuda.txt
run exec .venv/bin/python main.py "$@"
