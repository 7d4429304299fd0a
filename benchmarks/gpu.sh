#!/bin/sh
# Measures everything that needs a GPU; see benchmarks/gpu/__main__.py. PYTHON names the interpreter.
cd "$(dirname "$0")/.." || exit 2
exec "${PYTHON:-python3}" -m benchmarks.gpu "$@"
