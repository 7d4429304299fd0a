"""A run of nnU-Net's method as the evaluation needs it: its folds together, predicting as nnU-Net predicts.

Every image is cropped and normalised by itself, looked at in half-overlapping windows and in four mirrorings, and the
logits of the folds are averaged; the last weights count, as in nnU-Net. What is different for the sake of the table: the
images are those of the other runs, and the prediction is the most likely of the evaluated classes, as theirs is.

The folds of a cross-validation have all been trained on parts of train and val together, so only images that no fold was
trained on are scored. Which ones those are says splits_final.json, which must be the one that the checkpoints were
trained with (`folds.sha256`).

nnU-Net's labels are those of the project's scheme, but for `ignore` (`nnunet.labels`), so its logits are too. Its
background is the class "other" where the scheme has one, and otherwise a logit that no pixel ever had for its truth.
"""

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bcss_jax import checkpoint, config, sharding
from bcss_jax.errors import ConfigError, DataError, UserError, first_line
from bcss_jax.evaluation.predict import Member, View, of_logits
from bcss_jax.evaluation.trained_run import folder_name, joint_sha256
from bcss_jax.labels import SCHEMES, LabelScheme
from bcss_jax.nnunet import cases, ensemble, folds, labels, plan_file
from bcss_jax.nnunet.config import ALL, validate
from bcss_jax.nnunet.predict import predict_logits, run_of
from bcss_jax.nnunet.preprocess import preprocess
from bcss_jax.summary import params_sha256
from bcss_jax.tiles import printable

WHICH = "latest"
# As flips and turns: the image, and mirrored in its width, its height and both.
MIRRORINGS = (View(0, False), View(0, True), View(2, True), View(2, False))
# Logit of the background in a black border that was cut off, which is background by nnU-Net's rule; all others are 0.
CERTAIN = 20.0


@dataclasses.dataclass(frozen=True)
class Fold:
    """One of its networks; the arrays stay on the disk.

    Attributes:
      name: "0" to "4", or "all".
      folder: of its checkpoints.
      step: of the last one.
      about: what that says of itself.
      sha256: of its parameters.
    """

    name: str
    folder: Path
    step: int
    about: dict
    sha256: str


@dataclasses.dataclass(frozen=True)
class NnunetRun:
    """What `trained_run.TrainedRun` is for other runs, with the same attributes and methods.

    Attributes:
      name: as there.
      home: the folder of the run.
      folds: all that there are.
      scheme: of the project, whose labels its own are.
      network: with shapes in place of weights; that of all folds.
      trained_names: of the images that a fold was trained on; None: of all training and validation images.
    """

    name: str
    home: Path
    folds: tuple[Fold, ...]
    scheme: LabelScheme
    network: nnx.Module
    trained_names: frozenset[str] | None

    @property
    def about(self) -> dict:
        """What the first fold's checkpoint says of itself; the others say the same."""
        return self.folds[0].about

    @property
    def config(self) -> dict:
        """All settings of the training."""
        return self.about["config"]

    @property
    def sha256(self) -> dict[str, str]:
        """Of the parameters."""
        each = [fold.sha256 for fold in self.folds]
        return {"params": each[0] if len(each) == 1 else joint_sha256(each)}

    @property
    def trained_on(self) -> dict | None:
        """As of other runs; None of checkpoints that are older than this record."""
        return self.about.get("data")

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
            "plan": self.about["plan"],
            "labels": self.scheme.name,
        }

    def position(self) -> dict:
        """As of other runs; `folds` has step and epoch of each, the others what they share."""
        each = {}
        for fold in self.folds:
            each[fold.name] = {
                "step": fold.step,
                "epoch": checkpoint.read_record(fold.folder, fold.step).get("epoch"),
            }
        alike = {key: {fold[key] for fold in each.values()} for key in ("step", "epoch")}
        shared = {key: values.pop() if len(values) == 1 else None for key, values in alike.items()}
        return {"folder": str(self.home), "which": WHICH, **shared, "folds": each}

    def history(self) -> list[dict]:
        """Nothing: its loss and pseudo-Dice of patches are not what the curves of other runs show."""
        return []

    def views(self, height: int, width: int, tta: bool) -> tuple[View, ...]:
        """The mirrorings, whatever is asked for: they belong to the method."""
        del height, width, tta
        return MIRRORINGS

    def seen(self, part: str, keys: Sequence[str], layout: str) -> int:
        """How many images of a part a fold was trained on, by their names."""
        if self.trained_names is None:
            return len(keys) if part != "test" and layout == self.config["data"]["layout"] else 0
        return len(self.trained_names.intersection(keys))

    def check_unseen(self, part: str, keys: Sequence[str], layout: str) -> None:
        """Refuses images that a fold was trained on, and such as the method would have to see in another way.

        Raises:
          ConfigError: they are.
        """
        if layout == "roi":
            raise ConfigError(
                f"{self.home}: nnU-Net's method sees whole regions, the other runs see patches of them, so the same images "
                "cannot be scored; choose data of tiles, or see the run's cross_validation.json"
            )
        seen = self.seen(part, keys, layout)
        if seen:
            raise ConfigError(
                f"{self.home}: {'fold' if len(self.folds) == 1 else 'folds'} "
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
                    f"{fold.folder}: the run has saved another checkpoint meanwhile; run the same command again"
                )
            weights.append((trained.params, trained.rest))
        run, plan, dataset = run_of(self.network), self.about["plan"], self.about["dataset"]
        patch_size = plan["configurations"]["2d"]["patch_size"]

        def logits_of(image):
            found = preprocess(image, None, plan, dataset)
            (y0, y1), (x0, x1) = found.properties["bbox_used_for_cropping"]
            whole = np.zeros((*image.shape[:2], self.scheme.num_classes), np.float32)
            whole[..., 0] = CERTAIN
            whole[y0:y1, x0:x1] = ensemble.mean_of_folds(
                predict_logits(run, each, found.data, patch_size, mesh=mesh) for each in weights
            )
            return whole

        def predict(images):
            found = {}  # each picture once: those that fill up a batch are copies
            images = list(np.asarray(images))
            for image in images:
                key = image.tobytes()
                found[key] = found[key] if key in found else logits_of(image)
            logits = np.stack([found[image.tobytes()] for image in images])
            return _of_logits(self.scheme, sharding.place_batch({"logits": logits}, mesh)["logits"])

        return predict


_of_logits = functools.partial(jax.jit, static_argnums=0)(of_logits)


def is_one(path: Path) -> bool:
    """Whether a path is the folder of a run of nnU-Net's method."""
    return any(Path(path).expanduser().glob("fold_*/checkpoints"))


def read(path: Path, mesh: Mesh) -> NnunetRun:
    """Finds the folds' last checkpoints and checks them.

    Args:
      path: the folder of a run of configs/nnunet.py.
      mesh: devices to read onto.

    Raises:
      DataError: a checkpoint is damaged, of another format, or contradicts itself or the others; splits_final.json is
        not theirs.
      ConfigError: its labels are those of none of the project's schemes, or it changes its labels afterwards.
    """
    home = Path(path).expanduser().resolve()
    names = sorted(folder.parent.name.removeprefix("fold_") for folder in home.glob("fold_*/checkpoints"))
    found = {name: checkpoint.load_trained(home / f"fold_{name}" / "checkpoints", mesh, WHICH)
             for name in [name for name in names if name != ALL] or names}  # fmt: skip
    schemes, networks = [], []
    for trained in found.values():
        where = trained.folder / str(trained.step)
        try:
            schemes.append(_scheme(home, trained.about))
            networks.append(checkpoint.network_of(trained))
            plan, dataset = trained.about["plan"], trained.about["dataset"]
            plan_file.check(plan, dataset)
            preprocess(np.ones((2, 2, 3), np.uint8), None, plan, dataset)  # all that it needs is in the plan
            [int(side) for side in plan["configurations"]["2d"]["patch_size"]]
            data = trained.about.get("data")
            if data is not None and not {"layout", "split", "tiles", "content_sha256"} <= data.keys():
                raise KeyError("data")
            json.dumps(trained.about, allow_nan=False)  # it is written down again
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"{where}: {first_line(error)}; the checkpoint was changed or is not of this program"
            ) from error
    abouts = [trained.about for trained in found.values()]
    for name in ("plan", "dataset", "label_scheme"):
        if any(about[name] != abouts[0][name] for about in abouts):
            raise DataError(f"{home}: expected folds of one {name}, found several; keep folds that belong together")
    _refuse_postprocessing(home)
    return NnunetRun(
        folder_name(home.name),
        home,
        tuple(Fold(name, each.folder, each.step, each.about, params_sha256(each.params))
              for name, each in found.items()),
        schemes[0],
        networks[0],
        _trained_names(home, {name: trained.about for name, trained in found.items()}),
    )  # fmt: skip


def _scheme(home, about):
    """The project's scheme that its labels are those of."""
    settings = ConfigDict(about["config"])
    if settings.data.layout == cases.RAW:
        raise ConfigError(
            f"{printable(home)}: trained on a raw data folder of nnU-Net, whose labels are those of none of the schemes "
            f"{', '.join(SCHEMES)}; its folds are scored in the run's cross_validation.json"
        )
    try:
        validate(settings)
    except UserError as error:
        raise ValueError(first_line(error)) from error
    scheme = SCHEMES[settings.labels]
    dataset = labels.dataset_of(scheme, about["dataset"]["numTraining"])
    expected = json.loads(json.dumps([dataset, cases.scheme_of(dataset).to_json()]))
    if [about["dataset"], about["label_scheme"]] != expected:
        raise ValueError(f"its config says labels={scheme.name}, its data set or label scheme says something else")
    return scheme


def _refuse_postprocessing(home):
    file = home / "postprocessing.json"
    if not file.exists():
        return
    try:
        steps = json.loads(file.read_text(encoding="utf-8"))["keep_largest"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{printable(file)}: expected JSON, found: {first_line(error)}; decide anew") from error
    if steps:
        raise ConfigError(
            f"{printable(file)}: the run changes its labels afterwards (largest components only); the evaluation scores "
            "probabilities, so move that file away to score them without, or see the run's test folder"
        )


def _trained_names(home, abouts):
    """Names of what the folds were trained on, None for everything."""
    if ALL in abouts:
        return None
    try:
        fingerprint, splits = (
            json.loads((home / name).read_text(encoding="utf-8"))
            for name in ("dataset_fingerprint.json", "splits_final.json")
        )
        seen = set()
        for name, about in abouts.items():
            split = splits[int(name)]
            if folds.sha256(fingerprint, split, about["plan"]) != about["data_sha256"]:
                raise ValueError(f"fold {name} was trained with another split, plan or data set")
            seen.update(split["train"])
        return frozenset(seen)
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise DataError(
            f"{printable(home / 'splits_final.json')}: expected the split that the folds were trained with, and the data "
            f"set's fingerprint beside it, found: {first_line(error)}; put the run's files back"
        ) from error
