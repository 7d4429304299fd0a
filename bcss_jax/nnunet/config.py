"""The settings of nnU-Net's method with their defaults, and the check of their values.

Patch size, batch size, network and normalization are not settings: the plan decides them. `plan` takes a file of a
plan, which may be edited.
"""

from typing import Any

from ml_collections import ConfigDict

from bcss_jax.common.ranges import Range
from bcss_jax.config import DTYPES, check_data_folder, check_masks, check_one_of, check_ranges
from bcss_jax.config import RANGES as TRAINING_RANGES
from bcss_jax.data.discovery import SLIDES
from bcss_jax.data.sampling.folds import NUM_FOLDS
from bcss_jax.errors import ConfigError
from bcss_jax.labels import LabelScheme, find_scheme
from bcss_jax.nnunet.cases import LAYOUTS, RAW
from bcss_jax.nnunet.folds import ALL, read_splits
from bcss_jax.nnunet.plan import PRESETS

RANGES = TRAINING_RANGES | {name: Range(1, 10**6, whole=True) for name in ("iterations", "val_iterations")}
FOLDS = ("patient", "case", "published")
EACH = "each"


def default() -> ConfigDict:
    """Returns the settings of nnU-Net's own training, 1000 epochs for each of five folds, without a data set."""
    config = ConfigDict()
    config.method = "nnunet"  # without this field, training follows the project's own recipe
    config.name = "nnunet"  # runs/<name> is the default workdir
    config.seed = 0  # initialization, patches, augmentation

    config.data = ConfigDict()
    config.data.layout = "sample"  # sample, kaggle224, kaggle512, roi (whole regions), nnunet (a raw data folder)
    config.data.dir = ""  # folder of the data set; the sample needs none
    config.data.prepared_dir = "~/.cache/bcss_jax"  # folder for fingerprints and preprocessed cases
    config.data.split = "published"  # published, or institute: hold out OL, LL, E2, EW, GM, S3
    config.data.mpp = 0.25  # um per pixel of the images
    config.data.allow_missing = False  # skip images without mask (and masks without image) instead of failing
    config.data.max_bad = 0.0  # share of unreadable files that is skipped instead of failing

    config.labels = "tumor_stroma"  # name of a shipped scheme, or a TOML file; not for layout nnunet
    config.plan = ""  # file of a plan; empty: make a plan for the data set
    config.preset = "nnUNetPlans"  # nnUNetPlans, ResEnc, ResEncM, ResEncL, ResEncXL
    config.rule_before_2_3_1 = False  # shrink patches as nnU-Net did before 2.3.1, to 512x512 at most

    config.folds = "patient"  # patient: five, by patient; case: nnU-Net's own, leaks; published: train/val; or a file
    config.fold = "each"  # each: one after another; 0 to 4: that one; all: train on all cases
    config.epochs = 1000
    config.iterations = 250  # training batches per epoch
    config.val_iterations = 50  # validation batches per epoch
    config.dtype = "float32"  # of the computation: float32, bfloat16 or float16 (T4, V100); parameters are float32
    config.micro_batches = 1  # number of parts a batch is computed in; more parts need less memory
    config.remat = False  # keep less for the gradient and compute it again: less memory, somewhat more time
    config.postprocessing = False  # decide by the folds whether to keep only largest components; not useful for tissue

    config.max_bad_steps = 3  # iterations with a non-finite loss after which training ends
    config.checkpoint_steps = 1000  # iterations between checkpoints; there is always one at an epoch's end
    config.log_seconds = 60.0  # seconds before the first progress line of an epoch if the output is not a terminal
    return config


def validate(config: Any, scheme: LabelScheme | None = None) -> None:
    """Checks names and ranges.

    Args:
      config: a ConfigDict, all settings.
      scheme: the label scheme of the run; None: the one that `config.labels` names.

    Raises:
      ConfigError: one line with the field, what it is and what it may be.
    """
    data = config.data
    refuse_slides(data.layout)
    check_one_of(config, "data.layout", LAYOUTS)
    check_one_of(config, "data.split", ("published", "institute"))
    scheme = scheme or find_scheme(config.labels)
    if config.data.layout != RAW:
        check_masks(config, scheme)
    check_one_of(config, "preset", tuple(PRESETS))
    check_one_of(config, "dtype", DTYPES)
    if not is_file_of_folds(config.folds):
        check_one_of(config, "folds", FOLDS)
    check_one_of(config, "fold", (EACH, ALL, *_numbered(config)))
    check_ranges(config, RANGES)
    if data.layout == RAW and config.folds == "published":
        raise ConfigError(
            "config.folds=published: a raw data folder of nnU-Net has no validation split; use patient, case, or a "
            "file of folds"
        )
    if data.layout == RAW and (data.split != "published" or data.max_bad):
        unused = "split" if data.split != "published" else "max_bad"
        raise ConfigError(
            f"config.data.{unused}={data[unused]}: has no effect on a raw data folder of nnU-Net; leave it out"
        )
    if config.plan and config.rule_before_2_3_1:
        raise ConfigError(
            "config.rule_before_2_3_1 is for planning, and config.plan gives a plan; leave one of them out"
        )
    check_data_folder(config, "configs/nnunet.py")


def refuse_slides(layout: str) -> None:
    """Raises ConfigError for the layout of annotated slides, which the method does not read."""
    if layout == SLIDES:
        raise ConfigError(
            f"config.data.layout={SLIDES}: the method of nnU-Net reads whole images, no slides; train its network on "
            f"patches of them with --config=configs/nnunet_plain.py:{SLIDES} or configs/nnunet_resenc.py:{SLIDES}, or "
            f"choose one of {', '.join(LAYOUTS)}"
        )


def fold_names(config: Any) -> list[str]:
    """Returns the folds to train: numbers as text, or "all"."""
    return _numbered(config) if config.fold == EACH else [config.fold]


def is_file_of_folds(folds: str) -> bool:
    """Returns whether `config.folds` names a file, such as nnU-Net's splits_final.json."""
    return folds.lower().endswith(".json") or "/" in folds


def _numbered(config):
    if is_file_of_folds(config.folds):
        number = len(read_splits(config.folds))
    else:
        number = 1 if config.folds == "published" else NUM_FOLDS
    return [str(each) for each in range(number)]
