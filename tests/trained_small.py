"""A run's folder as training leaves it, with a small network of random weights."""

import evaluation_small
import numpy as np

from bcss_jax import checkpoint, config, models, optimizer, step
from bcss_jax.labels import SCHEMES
from bcss_jax.model_function import split_model

WINDOW = 32


def write_run(folder, name="unet", seed=0, scheme="tumor_stroma", **arguments):
    """Returns the folder. Layout roi, patches of `WINDOW` pixels at 0.5 um/px, epoch 2 the best at step 7."""
    arguments = arguments or {"width": 4, "depth": 1}
    settings = config.default(name, **arguments)
    settings.update(name=folder.name, labels=scheme)
    settings.data.update(layout="roi", dir="/nowhere", mpp=0.5, patch_size=WINDOW)
    scheme = SCHEMES[scheme]
    model = models.create(**settings.model, num_classes=scheme.num_classes, seed=seed)
    _, params, rest = split_model(model)
    tx = optimizer.adamw(1e-3, 1e-4)
    state = step.TrainState(np.int32(7), params, rest, tx.init(params), optimizer.Plateau(0.5, 2).init())
    about = {"config": settings.to_dict(), "label_scheme": scheme.to_json(), "data": evaluation_small.data(mpp=0.5)}
    about |= {"pretrained": None, "versions": {"jax": "of the training"}}
    progress = {"epoch": 2, "history": [{"epoch": 1}, {"epoch": 2}]}
    checkpoints = checkpoint.Checkpoints(folder / "checkpoints")
    checkpoints.save(state, progress, about, improved_at=2)
    checkpoints.close()
    return folder
