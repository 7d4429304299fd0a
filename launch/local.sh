#!/usr/bin/env bash
# Trains on this machine. The first run installs the dependencies into .venv.
#
#   bash launch/local.sh                                               the U-Net on the built-in sample
#   bash launch/local.sh --config=configs/unet.py:kaggle224 --config.data.dir=FOLDER        on BCSS
#
# All arguments are passed to `python -m bcss_jax.main`.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
candidates="python3.13 python3.12 $candidates" # they bring a newer jax, which is faster on CPUs
prepare_environment "${EXTRAS:-test}"

config=--config=$root/configs/unet.py
for argument in "$@"; do
  case $argument in --config=* | --help*) config= ;; esac
done
# XLA allocates its buffers with malloc at each step. Huge pages make this faster on CPUs (sample run on two cores: 10.4
# instead of 8.5 images/s with jax 0.10, 12.5 instead of 10.4 with jax 0.12). The variable works with glibc only and must be
# set before the process starts.
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}
exec "$python" -m bcss_jax.main ${config:+"$config"} "$@"
