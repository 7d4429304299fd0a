"""What a trained model is worth: scores of a set of images, with intervals, and tables of several models.

`surface_distance`, `calibration` and `bootstrap` compute; `scores` puts everything together as JSON; `per_image`,
`tables` and `gallery` write files. `trained_run` reads a checkpoint, `nnunet_run` the folds of nnU-Net's method, `predict`
and `run` put them to work, `subject` goes from there to the files, and `results_folder` keeps what is finished. `python -m bcss_jax.evaluate` is the command.
"""
