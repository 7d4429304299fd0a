# The other scripts source this file. It creates .venv with the pinned versions and sets $root and $python.
# PYTHON=python3.12 chooses the interpreter, otherwise the first of $candidates that can be used; EXTRAS=test,cuda chooses optional dependencies.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$root/.venv/bin/python
candidates="python3 python3.13 python3.12 python3.11 python"

# The pinned versions support these versions of Python; newer ones may have no wheels.
usable() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; }

find_python() {
  local candidate
  for candidate in ${PYTHON:-$candidates}; do
    if usable "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  echo "error: needs Python 3.11, 3.12 or 3.13, found ${PYTHON:-none on the PATH}; set PYTHON=/path/to/python3" >&2
  return 2
}

prepare_environment() {
  local extras=train,$1 wanted
  # If there is a working GPU, the CUDA build is installed.
  if nvidia-smi >/dev/null 2>&1; then extras=$extras,cuda; fi
  wanted=$(cat "$root/pyproject.toml" "$root/constraints.txt" <(echo "$extras") | cksum)
  # Without PYTHON, an existing .venv keeps its interpreter.
  if [ -n "${PYTHON:-}" ] && [ "$("$PYTHON" -V 2>&1)" != "$("$python" -V 2>&1)" ] || ! usable "$python"; then
    local base
    base=$(find_python) || return
    "$base" -m venv --clear "$root/.venv" || return
  elif [ "$(cat "$root/.venv/installed" 2>/dev/null)" = "$wanted" ]; then
    return
  fi
  echo "installing into .venv (a few minutes, once)"
  "$python" -m pip install --quiet --disable-pip-version-check -c "$root/constraints.txt" -e "$root[$extras]" || return
  echo "$wanted" >"$root/.venv/installed"
}
