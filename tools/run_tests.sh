#!/usr/bin/env bash
# Installs like quickstart.sh, then checks style and runs the tests. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/install.sh
"$VENV/bin/ruff" check .
"$VENV/bin/ruff" format --check .
# One thread a worker: two workers then use two cores without fighting.
export OMP_NUM_THREADS=1
"$VENV/bin/python" -m pytest -q -n "$(nproc)" "$@"
