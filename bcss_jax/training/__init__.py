"""Training: the step, the loop, checkpoints and the folder of a run. Importing the package imports nothing else."""
