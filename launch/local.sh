#!/usr/bin/env bash
# Sets up .venv, then runs main.py with the arguments given:
#   bash launch/local.sh                                 # configs/digits_advprop.py
#   bash launch/local.sh --config=configs/effnet_b0_advprop.py:smoke
#   bash launch/local.sh --workdir=somewhere             # below the repository
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/setup.sh requirements.txt
# Large pages for large arrays: on the CPU they save a quarter of a step's time. Other
# systems than glibc's ignore it.
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}
exec .venv/bin/python main.py "$@"
