#!/usr/bin/env bash
# Sets up .venv, then runs main.py with the arguments given:
#   bash launch/local.sh                                 # configs/digits_advprop.py
#   bash launch/local.sh --config=configs/effnet_b0_advprop.py:smoke
#   bash launch/local.sh --workdir=somewhere             # below the repository
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/setup.sh requirements.txt
exec .venv/bin/python main.py "$@"
