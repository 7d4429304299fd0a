#!/usr/bin/env bash
# Runs the tests; the first time it installs what is needed into .venv. Arguments go to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare_environment "${EXTRAS:-test}"

cd "$root"
"$python" -m ruff check .
exec "$python" -m pytest -n "${TEST_PROCESSES:-2}" --dist=worksteal "$@"
