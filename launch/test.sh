#!/usr/bin/env bash
# Checks format, style and types, and runs the tests; the first time it installs what is needed into .venv.
# Arguments go to pytest: `-m slow` runs the long tests, which are left out otherwise.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare_environment "${EXTRAS:-test}"

cd "$root"
"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m pyright --pythonpath "$python"
exec "$python" -m pytest -n "${TEST_PROCESSES:-2}" --dist=worksteal "$@"
