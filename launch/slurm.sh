#!/usr/bin/env bash
# Trains on several hosts under SLURM, with one process per host that uses all of its GPUs.
#
#   sbatch --nodes=4 launch/slurm.sh --config=configs/unet.py:kaggle224 --config.data.dir=/data/BCSS
#
# Data and work folder must be on a file system that all hosts share. First run `bash launch/local.sh --help` once on the
# same file system, so that .venv exists. Shortly before the time limit the job saves a checkpoint, exits with 75 and is
# queued again; it then resumes from the checkpoint.
#SBATCH --job-name=bcss_jax
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=08:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

# SLURM runs a copy of this script; the repository is the directory in which sbatch was called.
root=${SLURM_SUBMIT_DIR:?run this with sbatch from the repository}

status=0
# jax.distributed reads the hosts, the coordinator and the index of this process from SLURM's environment.
# All processes stop together and exit with 75; --wait ends processes whose peers are gone.
srun --kill-on-bad-exit=0 --wait=300 "$root/.venv/bin/python" -m bcss_jax.main --distributed "$@" || status=$?
if [ "$status" -eq 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
