#!/usr/bin/env bash
# Segments a list of slides under SLURM as a job array: each task segments its share of the list on one GPU.
#
#   sbatch --array=0-7 launch/slurm_slides.sh --checkpoint=runs/unet --slides=list.csv --output=out
#
# The array starts at 0. Slides, checkpoint and output must be on a file system that all hosts share. Run
# `bash launch/local.sh --help` once on that file system first, which makes .venv. Shortly before the time limit a task
# stops, exits with 75 and is queued again; it then resumes within the slide. A task exits with 6 if some of its slides
# failed (out/summary.csv lists the reasons). The same sbatch command retries them and computes no slide twice. This holds
# with --overwrite too: slides that a task had overwritten before it was stopped are not computed again.
# Tested with stand-ins for srun and scontrol, not run on a cluster.
#SBATCH --job-name=bcss_slides
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

# SLURM runs a copy of this script; the repository is where sbatch was called.
root=${SLURM_SUBMIT_DIR:?run this with sbatch from the repository}
shard=${SLURM_ARRAY_TASK_ID:?run this as an array: sbatch --array=0-7 launch/slurm_slides.sh ...}/$SLURM_ARRAY_TASK_COUNT

status=0
# Since SLURM 22.05 srun needs the number of cores.
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" "$root/.venv/bin/python" -m bcss_jax.segment "$@" --shard="$shard" || status=$?
if [ "$status" -eq 75 ]; then
  scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
fi
exit "$status"
