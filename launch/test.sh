#!/usr/bin/env bash
# Lint, types and tests: what .ci/run, the GitHub workflow and the pre-push hook all run.
#   bash launch/test.sh [pytest arguments]               # e.g. -k attacks, or -m large -n 0
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/setup.sh requirements.txt requirements-test.txt
# As modules: unlike the commands in .venv/bin they survive a moved checkout.
.venv/bin/python -m ruff check .
.venv/bin/python -m ruff format --check .
.venv/bin/python -m mypy
# Two tests at a time (pytest-xdist): each compiles most of its time, on one core. `-n 0`
# runs them in this process, one by one: for the large ones, and for a debugger.
exec .venv/bin/python -m pytest --numprocesses=2 --dist=worksteal "$@"
