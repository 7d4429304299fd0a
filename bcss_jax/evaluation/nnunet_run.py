"""A run of nnU-Net's method for the evaluation. All its folds predict together, as in nnU-Net.

Each image is cropped and normalized separately and predicted in half-overlapping windows and four mirrorings. The
logits of the folds are averaged. As in nnU-Net, the latest weights are used. Two things differ, so that the scores can
stand in one table with those of other runs: the images are the same, and the prediction is the most likely evaluated
class.

The folds of a cross-validation are trained on subsets of train and val together, so only images that no fold was
trained on are scored. splits_final.json says which images these are. It must be the file that the checkpoints were
trained with (`folds.fold_sha256`).

nnU-Net's labels are those of the project's label scheme, except for `ignore` (`nnunet.labels`), and so are its logits.
Its background is the class "other" if the scheme has one. Otherwise no pixel has background as its ground truth.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from bcss_jax import config
from bcss_jax.common.regular_file import real_path
from bcss_jax.errors import ConfigError, DataError
from bcss_jax.evaluation import nnunet_folds
from bcss_jax.evaluation.nnunet_folds import WHICH, TrainedFolds
from bcss_jax.inference.predict import Member, View, log_probabilities_from_logits
from bcss_jax.inference.trained_run import joint_sha256, sanitized_name
from bcss_jax.labels import LabelScheme
from bcss_jax.nnunet import ensemble
from bcss_jax.nnunet.folds import trained_fold_names
from bcss_jax.nnunet.labels import num_outputs, outputs_of_labels
from bcss_jax.nnunet.predict import inference_function, predict_logits
from bcss_jax.nnunet.preprocess import preprocess
from bcss_jax.training import checkpoint, sharding
from bcss_jax.training.summary import params_sha256

# The unchanged image, and the image mirrored in width, height and both, as flips and turns.
MIRRORINGS = (View(0, False), View(0, True), View(2, True), View(2, False))
# nnU-Net crops black borders and calls them background. There, the logit of background has this value, and all others
# are 0.
BORDER_LOGIT = 20.0


@dataclasses.dataclass(frozen=True)
class NnunetRun:
    """A run of nnU-Net's method, with the attributes and methods of `trained_run.TrainedRun`.

    Attributes:
      name: as in `TrainedRun`.
      run_folder: folder of the run.
      trained: the folds and what they have in common.
    """

    name: str
    run_folder: Path
    trained: TrainedFolds

    @property
    def folds(self) -> tuple[nnunet_folds.TrainedFold, ...]:
        """All trained folds."""
        return self.trained.folds

    @property
    def scheme(self) -> LabelScheme:
        """The project's label scheme with the labels of the run."""
        return self.trained.scheme

    @property
    def metadata(self) -> dict:
        """Metadata of the first fold's checkpoint. The other folds have the same."""
        return self.folds[0].metadata

    @property
    def config(self) -> dict:
        """The training configuration."""
        return self.metadata["config"]

    @property
    def sha256(self) -> dict[str, str]:
        """Hash of the parameters of all folds."""
        hashes = [fold.sha256 for fold in self.folds]
        return {"params": hashes[0] if len(hashes) == 1 else joint_sha256(hashes)}

    @property
    def trained_on(self) -> dict | None:
        """Description of the training data. None for old checkpoints, which do not store it."""
        return self.metadata.get("data")

    @property
    def batch_size(self) -> int:
        """The default batch size of other runs. nnU-Net itself validates images one by one."""
        return int(config.default("unet").eval_batch_size)  # pyright: ignore[reportArgumentType]

    def identity(self) -> dict:
        """Returns everything that decides the predictions, as JSON."""
        settings = {name: self.config[name] for name in ("model", "dtype")}
        members = {fold.name: fold.sha256 for fold in self.folds}
        return {
            "method": "nnunet",
            "folds": members,
            **settings,
            "plan": self.metadata["plan"],
            "labels": self.scheme.name if self.scheme.is_shipped else self.scheme.identity(),
        }

    def describe_checkpoint(self) -> dict:
        """Returns folder, steps and epochs of the checkpoints, as JSON.

        `step` and `epoch` are those that all folds have in common, else None. `folds` has the values of each fold.
        """
        each = {}
        for fold in self.folds:
            each[fold.name] = {
                "step": fold.step,
                "epoch": checkpoint.read_record(fold.folder, fold.step).get("epoch"),
            }
        alike = {key: {fold[key] for fold in each.values()} for key in ("step", "epoch")}
        shared = {key: values.pop() if len(values) == 1 else None for key, values in alike.items()}
        return {"folder": str(self.run_folder), "which": WHICH, **shared, "folds": each}

    def history(self) -> list[dict]:
        """Returns no rows: its loss and pseudo-Dice of patches cannot be compared with the curves of other runs."""
        return []

    def views(self, height: int, width: int, tta: bool) -> tuple[View, ...]:
        """Returns the mirrorings of the method, with or without `tta`."""
        del height, width, tta
        return MIRRORINGS

    def count_seen(self, split: str, keys: Sequence[str], layout: str) -> int:
        """Returns the number of images of a split that a fold was trained on.

        Args:
          split: name of the split.
          keys: names of its images.
          layout: layout of its data set.
        """
        if self.trained.trained_names is None:
            return len(keys) if split != "test" and layout == self.config["data"]["layout"] else 0
        return len(self.trained.trained_names.intersection(keys))

    def check_unseen(self, split: str, keys: Sequence[str], layout: str) -> None:
        """Checks that the run may be scored on a split.

        Args:
          split: name of the split.
          keys: names of its images.
          layout: layout of its data set.

        Raises:
          ConfigError: A fold was trained on some of the images, or the method would not predict the same images.
        """
        if layout == "roi":
            raise ConfigError(
                f"{self.run_folder}: nnU-Net's method predicts whole regions, while other runs predict patches, so "
                "they cannot be scored on the same images; choose a data set of tiles, or see the run's "
                "cross_validation.json"
            )
        seen = self.count_seen(split, keys, layout)
        if seen:
            raise ConfigError(
                f"{self.run_folder}: {'fold' if len(self.folds) == 1 else 'folds'} "
                f"{', '.join(fold.name for fold in self.folds)} trained on {seen} of the {len(keys)} images of "
                f"{split}, so the scores would be too optimistic; choose --split=test, or train with "
                "--config.folds=published, which does not train on val; scores of each fold are in the run's "
                "cross_validation.json"
            )

    def member(self, mesh: Mesh, tta: bool) -> Member:
        """Loads all folds onto all devices of the mesh and returns their joint prediction function.

        Raises:
          DataError: A checkpoint cannot be read, or the run has replaced it.
        """
        del tta
        weights = []
        for fold in self.folds:
            trained = checkpoint.load_trained(fold.folder, mesh, WHICH, step=fold.step)
            if params_sha256(trained.params) != fold.sha256:
                raise DataError(
                    f"{fold.folder / str(fold.step)}: the checkpoint was replaced in the meantime; run the command "
                    "again"
                )
            weights.append((trained.params, trained.model_state))
        run, plan, dataset = inference_function(self.trained.network), self.metadata["plan"], self.metadata["dataset"]
        patch_size = plan["configurations"]["2d"]["patch_size"]

        def predict_image(image):
            found = preprocess(image, None, plan, dataset)
            (y0, y1), (x0, x1) = found.properties["bbox_used_for_cropping"]
            whole = np.zeros((*image.shape[:2], num_outputs(dataset)), np.float32)
            whole[..., 0] = BORDER_LOGIT
            whole[y0:y1, x0:x1] = ensemble.mean_of_folds(
                predict_logits(run, each, found.data, patch_size, mesh=mesh) for each in weights
            )
            return whole[..., outputs_of_labels(self.scheme)]

        def predict(images):
            found = {}  # by content: images that fill up a batch are copies and predicted once
            images = list(np.asarray(images))
            for image in images:
                key = image.tobytes()
                found[key] = found[key] if key in found else predict_image(image)
            logits = np.stack([found[image.tobytes()] for image in images])
            return _of_logits(self.scheme, sharding.place_batch({"logits": logits}, mesh)["logits"])

        return predict


_of_logits = functools.partial(jax.jit, static_argnums=0)(log_probabilities_from_logits)


def is_nnunet_run(path: Path) -> bool:
    """Returns whether a path is the folder of a run of nnU-Net's method."""
    return bool(trained_fold_names(Path(path).expanduser()))


def read_nnunet_run(path: Path, mesh: Mesh) -> NnunetRun:
    """Finds and checks the checkpoints of a run.

    Args:
      path: folder of a run of configs/nnunet.py.
      mesh: devices to read onto.

    Raises:
      UserError: A checkpoint or file of the run cannot be used, as in `nnunet_folds.read_folds`.
    """
    run_folder = real_path(Path(path).expanduser())
    return NnunetRun(sanitized_name(run_folder.name), run_folder, nnunet_folds.read_folds(run_folder, mesh))
