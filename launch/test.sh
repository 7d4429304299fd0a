#!/usr/bin/env bash
# Checks format, style and types, and runs the tests. The first run installs the dependencies into .venv.
# Arguments are passed to pytest; `-m slow` runs the long tests, which do not run by default.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare_environment "${EXTRAS:-test}"

cd "$root"
"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m pyright --pythonpath "$python"
exec "$python" -m pytest -n "${TEST_PROCESSES:-2}" --dist=worksteal "$@"
