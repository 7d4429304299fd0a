"""A run of nnU-Net's method as the evaluation needs it: its folds together, predicting as nnU-Net predicts.

Every image is cropped and normalized by itself, looked at in half-overlapping windows and in four mirrorings, and the
logits of the folds are averaged; the last weights count, as in nnU-Net. What is different for the sake of the table: the
images are those of the other runs, and the prediction is the most likely of the evaluated classes, as theirs is.

The folds of a cross-validation have all been trained on parts of train and val together, so only images that no fold was
trained on are scored. Which ones those are says splits_final.json, which must be the one that the checkpoints were
trained with (`folds.fold_sha256`).

nnU-Net's labels are those of the project's scheme, but for `ignore` (`nnunet.labels`), so its logits are too. Its
background is the class "other" where the scheme has one, and otherwise a logit that no pixel ever had for its truth.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from bcss_jax import config
from bcss_jax.errors import ConfigError, DataError
from bcss_jax.evaluation import nnunet_folds
from bcss_jax.evaluation.nnunet_folds import WHICH, Folds
from bcss_jax.inference.predict import Member, View, log_probabilities_from_logits
from bcss_jax.inference.trained_run import joint_sha256, sanitized_name
from bcss_jax.labels import LabelScheme
from bcss_jax.nnunet import ensemble
from bcss_jax.nnunet.folds import trained_fold_names
from bcss_jax.nnunet.labels import num_outputs, outputs_of_labels
from bcss_jax.nnunet.predict import inference_function, predict_logits
from bcss_jax.nnunet.preprocess import preprocess
from bcss_jax.training import checkpoint, sharding

# As flips and turns: the image, and mirrored in its width, its height and both.
MIRRORINGS = (View(0, False), View(0, True), View(2, True), View(2, False))
# Logit of the background in a black border that was cut off, which is background by nnU-Net's rule; all others are 0.
CERTAIN = 20.0


@dataclasses.dataclass(frozen=True)
class NnunetRun:
    """What `trained_run.TrainedRun` is for other runs, with the same attributes and methods.

    Attributes:
      name: as there.
      run_folder: folder of the run.
      trained: its folds, and what they have in common.
    """

    name: str
    run_folder: Path
    trained: Folds

    @property
    def folds(self) -> tuple[nnunet_folds.Fold, ...]:
        """All that there are."""
        return self.trained.folds

    @property
    def scheme(self) -> LabelScheme:
        """Of the project, whose labels its own are."""
        return self.trained.scheme

    @property
    def metadata(self) -> dict:
        """What the first fold's checkpoint says of itself; the others say the same."""
        return self.folds[0].metadata

    @property
    def config(self) -> dict:
        """All settings of the training."""
        return self.metadata["config"]

    @property
    def sha256(self) -> dict[str, str]:
        """Of the parameters."""
        each = [fold.sha256 for fold in self.folds]
        return {"params": each[0] if len(each) == 1 else joint_sha256(each)}

    @property
    def trained_on(self) -> dict | None:
        """As of other runs; None of checkpoints that are older than this record."""
        return self.metadata.get("data")

    @property
    def batch_size(self) -> int:
        """Images at a time that other runs have if nothing else is said; nnU-Net validates one by one."""
        return config.default("unet").eval_batch_size

    def identity(self) -> dict:
        """As of other runs."""
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
        """As of other runs; `folds` has step and epoch of each, the others what they share."""
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
        """Nothing: its loss and pseudo-Dice of patches are not what the curves of other runs show."""
        return []

    def views(self, height: int, width: int, tta: bool) -> tuple[View, ...]:
        """The mirrorings, whatever is asked for: they belong to the method."""
        del height, width, tta
        return MIRRORINGS

    def seen(self, part: str, keys: Sequence[str], layout: str) -> int:
        """How many images of a part a fold was trained on, by their names."""
        if self.trained.names is None:
            return len(keys) if part != "test" and layout == self.config["data"]["layout"] else 0
        return len(self.trained.names.intersection(keys))

    def check_unseen(self, part: str, keys: Sequence[str], layout: str) -> None:
        """Refuses images that a fold was trained on, and such as the method would have to see in another way.

        Raises:
          ConfigError: they are.
        """
        if layout == "roi":
            raise ConfigError(
                f"{self.run_folder}: nnU-Net's method sees whole regions, the other runs see patches of them, so the same images "
                "cannot be scored; choose data of tiles, or see the run's cross_validation.json"
            )
        seen = self.seen(part, keys, layout)
        if seen:
            raise ConfigError(
                f"{self.run_folder}: {'fold' if len(self.folds) == 1 else 'folds'} "
                f"{', '.join(fold.name for fold in self.folds)} trained on {seen} of the {len(keys)} images of {part}, so "
                "their scores would flatter; choose --split=test, or train with --config.folds=published, which keeps val "
                "apart; the folds' own scores are in the run's cross_validation.json"
            )

    def member(self, mesh: Mesh, tta: bool) -> Member:
        """All folds, on all devices of the mesh.

        Raises:
          DataError: a checkpoint cannot be read, or another one has taken its place.
        """
        del tta
        weights = []
        for fold in self.folds:
            trained = checkpoint.load_trained(fold.folder, mesh, WHICH)
            if trained.step != fold.step:
                raise DataError(
                    f"{fold.folder}: the run has saved another checkpoint in the meantime; run the same command again"
                )
            weights.append((trained.params, trained.model_state))
        run, plan, dataset = inference_function(self.trained.network), self.metadata["plan"], self.metadata["dataset"]
        patch_size = plan["configurations"]["2d"]["patch_size"]

        def logits_of(image):
            found = preprocess(image, None, plan, dataset)
            (y0, y1), (x0, x1) = found.properties["bbox_used_for_cropping"]
            whole = np.zeros((*image.shape[:2], num_outputs(dataset)), np.float32)
            whole[..., 0] = CERTAIN
            whole[y0:y1, x0:x1] = ensemble.mean_of_folds(
                predict_logits(run, each, found.data, patch_size, mesh=mesh) for each in weights
            )
            return whole[..., outputs_of_labels(self.scheme)]

        def predict(images):
            found = {}  # each picture once: those that fill up a batch are copies
            images = list(np.asarray(images))
            for image in images:
                key = image.tobytes()
                found[key] = found[key] if key in found else logits_of(image)
            logits = np.stack([found[image.tobytes()] for image in images])
            return _of_logits(self.scheme, sharding.place_batch({"logits": logits}, mesh)["logits"])

        return predict


_of_logits = functools.partial(jax.jit, static_argnums=0)(log_probabilities_from_logits)


def is_nnunet_run(path: Path) -> bool:
    """Whether a path is the folder of a run of nnU-Net's method."""
    return bool(trained_fold_names(Path(path).expanduser()))


def read_nnunet_run(path: Path, mesh: Mesh) -> NnunetRun:
    """Finds a run's checkpoints and checks them.

    Args:
      path: the folder of a run of configs/nnunet.py.
      mesh: devices to read onto.

    Raises:
      UserError: as `nnunet_folds.read_folds`.
    """
    home = Path(path).expanduser().resolve()
    return NnunetRun(sanitized_name(home.name), home, nnunet_folds.read_folds(home, mesh))
