#!/usr/bin/env bash
# Trains on this machine; the first time it installs what is needed into .venv.
#
#   bash launch/local.sh                                               the U-Net on the built-in sample
#   bash launch/local.sh --config=configs/unet.py:kaggle224 --config.data.dir=FOLDER        on BCSS
#
# All arguments go to `python -m bcss_jax.main`.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare_environment "${EXTRAS:-test}"

config=--config=$root/configs/unet.py
for argument in "$@"; do
  case $argument in --config=* | --help*) config= ;; esac
done
exec "$python" -m bcss_jax.main ${config:+"$config"} "$@"
