"""Evaluates trained models: scores of a set of images, with intervals, and tables of several models.

In the order of the work: `nnunet_run` and `nnunet_folds` read the folds of nnU-Net's method (`inference.trained_run`
reads other checkpoints), `accumulate` runs a model over a split, `image_counts` counts pixels on the devices, `scores`
computes all scores, `per_image_csv` holds those of each image, `target` evaluates one model from start to finish, and
`results_folder` keeps the results. `statistics` holds the measures, `reporting` what people read. The command is
`python -m bcss_jax.evaluate`.
"""
