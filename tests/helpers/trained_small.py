"""Writes run folders like those of training, with a small network and random weights."""

import numpy as np

from bcss_jax import config, models
from bcss_jax.labels import SCHEMES
from bcss_jax.models.apply import split_model
from bcss_jax.training import checkpoint, optimizer, step
from helpers import evaluation_small

WINDOW = 32


def save_checkpoint(checkpoints, params, model_state, metadata, *, step_number=7, progress=None):
    """Saves a checkpoint as training does.

    Args:
      checkpoints: folder of the checkpoints.
      params: parameters, as `split_model` returns them.
      model_state: other state, as `split_model` returns it.
      metadata: metadata as training writes it. "versions" is added here.
      step_number: training step of the checkpoint.
      progress: progress of the run. The default is epoch 2 of 2. The epoch of the progress is the best epoch.
    """
    tx = optimizer.adamw(1e-3, 1e-4)
    plateau = optimizer.Plateau(0.5, 2).init()
    state = step.TrainState(np.int32(step_number), params, model_state, tx.init(params), plateau)
    progress = progress or {"epoch": 2, "history": [{"epoch": 1}, {"epoch": 2}]}
    opened = checkpoint.Checkpoints(checkpoints)
    opened.save(state, progress, {**metadata, "versions": {"jax": "of the training"}}, improved_at=progress["epoch"])
    opened.close()


def write_run(folder, name="unet", seed=0, scheme="tumor_stroma", change=None, **arguments):
    """Writes a run and returns its folder. `change` changes its parameters in place.

    The run has the layout roi, patches of `WINDOW` pixels at 0.5 um/px, and its best epoch 2 at step 7.
    """
    arguments = arguments or {"width": 4, "depth": 1}
    settings = config.default(name, **arguments)
    settings.update(name=folder.name, labels=scheme)
    settings.data.update(layout="roi", dir="/nowhere", mpp=0.5, patch_size=WINDOW)
    scheme = SCHEMES[scheme]
    model = models.create(**settings.model, num_classes=scheme.num_classes, seed=seed)
    _, params, model_state = split_model(model)
    if change:
        change(params)
    metadata = {"config": settings.to_dict(), "label_scheme": scheme.to_json(), "data": evaluation_small.data(mpp=0.5)}
    save_checkpoint(folder / "checkpoints", params, model_state, metadata | {"pretrained": None})
    return folder
