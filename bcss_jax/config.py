"""The settings of a training run with their defaults, and the check of their values.

A file under `configs/` calls `default()`, changes a few fields, and sets the name of the system. Only the entry points
read a config, a `ConfigDict`; the layers below get plain arguments. docs/configuration.md is generated from the
comments here.
"""

import difflib
from typing import Any

from ml_collections import ConfigDict

from bcss_jax import models
from bcss_jax.common.json_files import as_json, describe_differences
from bcss_jax.common.json_files import differences as json_differences
from bcss_jax.common.ranges import COUNT, WINDOW, Range
from bcss_jax.data.augmentation import settings as augmentation
from bcss_jax.data.discovery import CODES, LAYOUTS, SLIDES, check_mpp_setting
from bcss_jax.errors import ConfigError, printable
from bcss_jax.labels import SCHEMES, LabelScheme, find_scheme, lookup_table, scheme_from_json
from bcss_jax.models.image_normalization import IMAGENET, ImageStatistics

# Settings that change only how fast or how often something is done. A run may resume with other values of these.
RUNTIME_FIELDS = (
    "data.threads", "data.memory_share", "data.dir", "data.list", "data.prepared_dir",
    "checkpoint_steps", "log_seconds", "max_bad_steps", "fold",
)  # fmt: skip

ALL = "all"  # folds
BALANCE = ("none", "classes")
AUGMENT_ON = ("host", "device")
VALIDATION_LOSSES = ("pixels", "batches")
DTYPES = ("float32", "bfloat16", "float16")  # of the computation
RECIPES = ("few", "kaggle_t4", "robust")  # after the layout in the argument of a config file
REPORT = "report"  # likewise: the recipe of the report's own code
REPORT_SYSTEMS = ("unet", "transunet", "dense_unet")

# What the numbers of a config may be. Above these limits memory or time would not suffice, or nothing would be learned.
_COUNTER = Range(0, 10**9, whole=True)
RANGES = {
    "seed": Range(0, 2**32 - 1, whole=True),
    "data.patch_size": WINDOW,
    "data.stride": Range(1, 10**6, whole=True),
    "data.max_bad": Range(0, 1),
    "data.folds": Range(0, 100, whole=True),
    "data.threads": Range(0, 1024, whole=True),
    "data.memory_share": Range(0, 1),
    **{f"augment.{name}": allowed for name, allowed in augmentation.RANGES.items()},
    "loss.smooth": Range(0, 10**6),
    "optimizer.learning_rate": Range(0, 1e38, above=True),  # what float32 holds
    "optimizer.encoder_scale": Range(0, 1000),
    "optimizer.weight_decay": Range(0, 1000),
    "optimizer.momentum": Range(0, 1, below=True),
    "optimizer.clip_norm": Range(0, 10**9),
    "plateau.factor": Range(0, 1, above=True, below=True),
    "plateau.patience": _COUNTER,
    "plateau.min_scale": Range(0, 1),
    "freeze_encoder_epochs": _COUNTER,
    "lora.rank": Range(0, 1 << 16, whole=True),
    "lora.alpha": Range(0, 10**6, above=True),
    "batch_size": COUNT,
    "micro_batches": COUNT,
    "eval_batch_size": COUNT,
    "epochs": Range(1, 10**6, whole=True),
    "early_stopping": _COUNTER,
    "max_bad_steps": Range(1, 10**9, whole=True),
    "checkpoint_steps": Range(1, 10**9, whole=True),
    "log_seconds": Range(0, 10**6),
}


def default(model: str = "unet", **arguments) -> ConfigDict:
    """Returns the published recipe (batch 128, AdamW 5e-3, 15 epochs, all augmentations), without a data set.

    Args:
      model: name of the network (`bcss_jax.models.MODELS`).
      **arguments: arguments of the network that can be changed on the command line.
    """
    config: Any = ConfigDict()
    statistics = models.image_statistics(model) or IMAGENET
    config.name = ""  # name of the system; the default workdir is runs/<name>
    config.seed = 0  # seed of initialization, order of the examples and augmentation
    _set_data(config)
    config.labels = "tumor_stroma"  # tumor_stroma, tumor_stroma_other, five_classes, tiatoolbox_bcss, or a TOML file
    # name and arguments of the network; the arguments are described at its class in bcss_jax/models
    config.model = ConfigDict({"name": model, **arguments})
    config.pretrained = ""  # weights to start from: a file (.safetensors, .npz, .pth) or the folder of a run
    config.freeze_encoder = False  # do not train the encoder at all
    config.freeze_encoder_epochs = 0  # number of first epochs in which the encoder is not trained
    config.lora = ConfigDict()  # vit, sam: low-rank matrices beside those of the encoder, trained in their place
    config.lora.rank = 0  # of these matrices; 0: there are none
    config.lora.alpha = 16.0  # what they compute is multiplied by alpha / rank
    config.lora.on = "qkv,proj"  # what they are beside: qkv, proj, fc1, fc2 (w12, w3 where the encoder has SwiGLU)
    config.image_mean = statistics.mean  # subtracted from the images; RGB values from 0 to 1
    config.image_std = statistics.std  # the images are divided by it after that
    config.dtype = "float32"  # type of the computation: float32, bfloat16 or float16 (T4, V100); parameters are float32
    config.augment_on = "host"  # where training images are augmented: host (CPU cores) or device
    _set_augmentation(config)
    _set_loss(config)
    _set_optimizer(config)
    config.batch_size = 128  # images in a training batch, over all devices
    config.micro_batches = 1  # number of parts in which the batch is computed; more parts need less memory
    config.sync_batch_norm = True  # BatchNorm's statistics are those of all devices; False: of each device's own images
    config.remat = False  # keep less for the gradient and compute it again: less memory, somewhat more time
    config.eval_batch_size = 128  # images in an evaluation batch, over all devices
    config.validation_loss = "pixels"  # pixels: of all validation pixels together; batches: the mean over batches
    config.epochs = 15  # number of epochs
    config.early_stopping = 8  # training ends after so many epochs without a better validation loss; 0: never
    config.max_bad_steps = 3  # training fails after so many steps with a loss that is not finite
    config.checkpoint_steps = 200  # steps between checkpoints; the end of an epoch always writes one
    config.log_seconds = 60.0  # seconds before the first progress line of an epoch if the output is not a terminal
    return config


def _set_data(config: Any) -> None:
    config.data = ConfigDict()
    config.data.layout = "sample"  # sample, kaggle224, kaggle512, roi, slides
    config.data.dir = ""  # folder of the data set; the sample needs none
    config.data.list = ""  # slides: CSV list of slides and annotations, instead of a folder
    config.data.region = ""  # slides: class of the annotations within which everything is annotated; empty: none
    config.data.prepared_dir = "~/.cache/bcss_jax"  # folder for prepared TFRecords
    config.data.split = "published"  # published, or institute: hold out OL, LL, E2, EW, GM, S3
    config.data.folds = 0  # cross-validation: number of folds by patient, in place of train and val; 0: none
    config.data.fold = "all"  # fold to hold out, from 0; all: train all folds, one after the other
    config.data.balance = "none"  # none, or classes: draw images of rare classes more often
    config.data.mpp = 0.25  # um per pixel of the images; of the patches that are cut from slides
    config.data.patch_size = 224  # roi, slides: side of the patches in pixels
    config.data.stride = 224  # roi, slides: distance between patches in pixels
    config.data.allow_missing = False  # skip images without mask (and masks without image) instead of failing
    config.data.max_bad = 0.0  # share of unreadable files that is skipped instead of failing
    config.data.threads = 0  # threads for decoding and augmentation; 0: one per core
    config.data.memory_share = 0.25  # hold training tiles decoded if they take at most this share of the free memory


def _set_augmentation(config: Any) -> None:
    """Sets the fields of `data.augmentation.settings.Augmentation`."""
    config.augment = ConfigDict()  # probability and strength of each change of the training images
    config.augment.rotate90 = 1.0  # probability of a rotation by 0, 90, 180 or 270 degrees
    config.augment.horizontal_flip = 0.5  # probability of exchanging left and right
    config.augment.vertical_flip = 0.5  # probability of exchanging top and bottom
    config.augment.rotate = 0.25  # probability of a rotation by any angle
    config.augment.rotate_degrees = 45.0  # largest angle of that rotation
    config.augment.elastic = 0.25  # probability of an elastic deformation
    config.augment.elastic_pixels = 2.0  # standard deviation of the displacement in pixels
    config.augment.elastic_smoothness = 8.0  # standard deviation of the Gaussian that smooths it, in pixels
    config.augment.color_jitter = 0.5  # probability of changes of color
    config.augment.brightness = 0.2  # largest change of brightness
    config.augment.contrast = 0.2  # largest change of contrast
    config.augment.saturation = 0.2  # largest change of saturation
    config.augment.hue = 0.05  # largest change of hue
    config.augment.jitter_normalized = False  # change colors after the normalization, as the report's own code does
    config.augment.blur = 0.1  # probability of a Gaussian blur
    config.augment.blur_sigma = 1.5  # largest standard deviation of the blur in pixels
    config.augment.stain = 0.0  # probability of other strengths of hematoxylin and eosin; `,robust` sets 0.8
    config.augment.stain_strength = 0.3  # largest change of a stain's strength


def _set_loss(config: Any) -> None:
    config.loss = ConfigDict()
    config.loss.dice_batch = True  # compute Dice over the batch; False: per image
    config.loss.smooth = 1e-5  # added to numerator and denominator of Dice
    config.loss.suppress_ignored_logit = False  # leave the ignored class out of the softmax
    config.deep_supervision = False  # loss at every resolution with nnU-Net's weights; only nnunet and nnunet_resenc


def _set_optimizer(config: Any) -> None:
    config.optimizer = ConfigDict()
    config.optimizer.name = "adamw"  # adamw, sgd
    config.optimizer.learning_rate = 5e-3  # learning rate at the start
    config.optimizer.encoder_scale = 1.0  # factor on the learning rate of the encoder, for pretrained encoders
    config.optimizer.weight_decay = 1e-4  # weight decay
    config.optimizer.momentum = 0.99  # sgd: Nesterov momentum
    config.optimizer.clip_norm = 0.0  # largest norm of all gradients together; 0: no clipping
    config.schedule = "plateau"  # of the learning rate: plateau, or poly: (1 - epoch / epochs)^0.9
    config.plateau = ConfigDict()  # reduces the learning rate when the validation loss stalls
    config.plateau.factor = 0.1  # factor on the learning rate
    config.plateau.patience = 3  # epochs without improvement that are tolerated, as in PyTorch
    config.plateau.min_scale = 1e-4  # lower limit of the learning rate, as a share of the first


def apply_data_preset(
    config: Any, system: str, argument: str, *, few_rate: float | None = None, t4_parts: int = 1, others: str = ""
) -> str:
    """Sets name and layout from the text after the colon of `--config=configs/unet.py:kaggle224,few`.

    The built-in sample, and any layout with `,few` (a few hundred tiles), get settings for short runs: batch 8, a
    learning rate that is multiplied by 0.3 when the validation loss has stalled for two epochs, and no early stopping.
    With `few`, images are flipped and rotated by quarter turns, nothing else. With `,kaggle_t4`, the computation is in
    float16, and a batch is computed in as many parts as fit the memory of two T4s. With `,robust`, the strength of the
    stains is changed too, for slides of other laboratories.

    Args:
      config: changed in place.
      system: name of the system.
      argument: a layout, optionally followed by `,few`, `,kaggle_t4` and `,robust`.
      few_rate: learning rate with `few`; None: the same as without.
      t4_parts: micro-batches with `kaggle_t4`, where the batch is that of the published recipe.
      others: for the message, recipes that the config file itself knows, such as "',prompts' (what they are)".

    Returns:
      The layout.

    Raises:
      ConfigError: the text after a comma is neither, or is there twice.
    """
    layout, *recipes = argument.split(",")
    if REPORT in recipes and system not in REPORT_SYSTEMS:
        raise ConfigError(
            f"{argument}: the report's own code has no {system}; ',{REPORT}' is for "
            f"{', '.join(f'configs/{name}.py' for name in REPORT_SYSTEMS)}"
        )
    if sorted(set(recipes) & set(RECIPES)) != sorted(recipes):
        raise ConfigError(
            f"{argument}: expected ',few' (recipe for few tiles), ',kaggle_t4' (float16, for two T4s)"
            f"{others and ', '}{others} or ',robust' (changes of stain) after the layout, found ',{','.join(recipes)}'"
        )
    few = "few" in recipes
    short_run = layout == "sample" or few
    config.data.layout = layout
    is_plain_sample = layout == "sample" and "kaggle_t4" not in recipes
    config.name = system if is_plain_sample else "_".join([system, layout, *recipes])
    if short_run:
        config.batch_size = 8
        config.eval_batch_size = 8 if layout == "sample" else 10
        # Few steps an epoch: the validation loss is noisy until the rate falls.
        config.plateau.factor, config.plateau.patience = 0.3, 1
        config.early_stopping = 0
    if few:
        config.optimizer.learning_rate = few_rate or config.optimizer.learning_rate
        for change in ("rotate", "elastic", "color_jitter", "blur"):
            config.augment[change] = 0.0
    if "robust" in recipes:
        config.augment.stain = 0.8
    if "kaggle_t4" in recipes:
        config.dtype = "float16"
        config.micro_batches = 1 if short_run else t4_parts
    return layout


def is_report(argument: str) -> bool:
    """Returns whether the text after the colon of `--config=configs/unet.py:kaggle224,report` asks for that recipe."""
    return REPORT in argument.split(",")[1:]


def report_recipe(system: str, argument: str, **arguments) -> ConfigDict:
    """Returns the recipe of the report's own code, which differs from the report's text.

    docs/reproducing_the_report.md says where each setting is from, and what of that code is not reproduced.

    Args:
      system: one of `REPORT_SYSTEMS`.
      argument: text after the colon.
      **arguments: arguments of the network `report_<system>`.

    Raises:
      ConfigError: the layout is not that of the report's tiles, or another recipe is given too.
    """
    if argument != f"kaggle224,{REPORT}":
        raise ConfigError(
            f"{argument}: expected kaggle224,{REPORT}: the recipe is of the tiles of 224 pixels, and goes with no "
            "other; change single settings on the command line, as --config.dtype=float32"
        )
    config: Any = default(f"report_{system}", **arguments)
    config.data.layout = "kaggle224"
    config.name = f"{system}_kaggle224_{REPORT}"
    config.labels = "tumor_stroma_other"
    config.dtype = "float16"
    config.augment.update(rotate90=0.5, rotate=0.0, color_jitter=0.1, hue=0.1, jitter_normalized=True)
    config.augment.update(blur=0.1, blur_sigma=1.4)
    # Albumentations' alpha 1: smoothed noise, which moves pixels by hundredths of one.
    elastic = augmentation.Augmentation(elastic=0.5, elastic_pixels=1.0, elastic_smoothness=50.0)
    config.augment.update(elastic=0.5, elastic_smoothness=50.0, elastic_pixels=1 / elastic.displacement_factor())
    config.loss.smooth = 1e-6
    config.optimizer.weight_decay = 1e-5
    config.optimizer.clip_norm = 1.0
    config.plateau.factor, config.plateau.min_scale = 0.85, 0.0
    config.validation_loss = "batches"
    config.early_stopping = 0
    return config


def train_as_nnunet(config: Any) -> None:
    """Sets nnU-Net's deep supervision, optimizer and schedule: SGD with Nesterov momentum, (1 - epoch / epochs)^0.9."""
    config.deep_supervision = True
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 1e-2
    config.optimizer.weight_decay = 3e-5
    config.optimizer.momentum = 0.99
    config.optimizer.clip_norm = 12.0
    config.schedule = "poly"
    config.early_stopping = 0


def set_image_statistics(config: Any) -> None:
    """Sets mean and deviation of the images to those of the encoder, if the config leaves them to it.

    Raises:
      ConfigError: there is no such encoder.
    """
    if not config.image_mean and not config.image_std:
        statistics = _statistics_of_network(config) or IMAGENET
        config.image_mean, config.image_std = statistics.mean, statistics.std


def validate(config: Any, scheme: LabelScheme | None = None) -> None:
    """Checks names, ranges and combinations.

    Args:
      config: all settings.
      scheme: the label scheme of the run; None: the one that `config.labels` names.

    Raises:
      ConfigError: one line with the field, what it is and what it may be.
    """
    check_one_of(config, "data.layout", LAYOUTS)
    check_one_of(config, "data.split", ("published", "institute"))
    check_masks(config, scheme or find_scheme(config.labels))
    if "augment_on" in config:  # runs of before the setting lack it
        check_one_of(config, "augment_on", AUGMENT_ON)
    if "validation_loss" in config:
        check_one_of(config, "validation_loss", VALIDATION_LOSSES)
    check_one_of(config, "optimizer.name", ("adamw", "sgd"))
    check_one_of(config, "schedule", ("plateau", "poly"))
    validate_network(config)
    if "lora" in config and config.lora.rank and "lora_rank" not in config.model:
        raise ConfigError(
            f"config.lora.rank={config.lora.rank}: {config.model.name} has no adapters; start from "
            "--config=configs/vit.py or configs/sam.py, or leave it at 0"
        )
    check_data_folder(config, "configs/unet.py")
    check_folds(config)
    if "balance" in config.data:  # runs of before the setting lack it
        check_one_of(config, "data.balance", BALANCE)


def validate_network(config: Any) -> None:
    """Checks the settings that a network needs to predict; an imported one has no others. Raises as `validate`."""
    check_one_of(config, "dtype", DTYPES)
    check_ranges(config, RANGES)
    for field, low in (("image_mean", 0), ("image_std", 1e-6)):
        values = _get(config, field)
        if len(values) != 3 or not all(value in Range(low, 1) for value in values):
            raise ConfigError(
                f"config.{field}={values}: must be three numbers from {low:g} to 1, for red, green and blue"
            )
    check_image_statistics(config)


def unknown_field(config: ConfigDict, field: str) -> str:
    """Returns a message about a setting that does not exist, with the nearest names. `field` is without `config.`."""
    near = difflib.get_close_matches(field, field_names(config), n=3, cutoff=0.4)
    hint = f"; did you mean {' or '.join('config.' + n for n in near)}?" if near else ""
    return f"config.{field}: there is no such setting{hint}"


def field_names(config: ConfigDict, prefix: str = "") -> list[str]:
    """Returns the dotted names of all settings."""
    names = []
    for key, value in config.items():
        names += field_names(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else [prefix + key]
    return names


def differences(old: dict, new: dict) -> list[str]:
    """Returns lines `config.field: old -> new` for every setting that changes the result of a run.

    `RUNTIME_FIELDS` do not change it. A setting that `old` lacks, because the setting is newer than that run, counts as
    having its default. Label schemes are compared by their content, `label_scheme`, and not by the path in `labels`.
    """
    old, new, defaults = (as_json(each, str) for each in (old, new, default().to_dict()))
    name = new.get("model", {}).get("name")  # nnU-Net's method has no such setting
    if name in models.MODELS:
        defaults["model"] = as_json(models.default_arguments(name), str)
    lines = _label_differences(old, new)
    old, new = ({key: values[key] for key in values.keys() - {"labels", "label_scheme"}} for values in (old, new))
    del defaults["labels"]
    found = json_differences(old, new, defaults=defaults, missing="(none)")
    changed = {f"config.{field}": values for field, values in found.items() if field not in RUNTIME_FIELDS}
    return lines + [describe_differences({field: values}) for field, values in changed.items()]


def _label_differences(old: dict, new: dict) -> list[str]:
    """Returns the line on the label schemes of two runs, if they differ."""
    names = [values.get("labels", default().labels) for values in (old, new)]
    schemes = []
    for name, values in zip(names, (old, new), strict=True):
        try:
            schemes.append(scheme_from_json(values["label_scheme"]) if "label_scheme" in values else SCHEMES.get(name))
        except ValueError:
            schemes.append(None)
    a, b = schemes
    if a == b and (a is not None or names[0] == names[1]):
        return []
    if a is None or b is None or names[0] != names[1]:
        return [f"config.labels: {names[0]} -> {names[1]}"]
    old_values, new_values = a.to_json(), b.to_json()
    fields = [field for field in old_values | new_values if old_values.get(field) != new_values.get(field)]
    return [f"config.labels: {names[0]} has changed ({', '.join(fields)}) since the run was started"]


def _get(config: Any, field: str) -> Any:
    for part in field.split("."):
        config = config[part]
    return config


def _statistics_of_network(config: Any) -> ImageStatistics | None:
    arguments = dict(config.model)
    return models.image_statistics(arguments.pop("name", ""), **arguments)


def check_image_statistics(config: Any) -> None:
    """Raises ConfigError if the network needs other statistics of the images than those of the config."""
    statistics = _statistics_of_network(config)
    given = (tuple(config.image_mean), tuple(config.image_std))
    if statistics is not None and given != (statistics.mean, statistics.std):
        raise ConfigError(
            f"config.image_mean={given[0]}, config.image_std={given[1]}: {config.model.name} was trained with others; "
            f"start from --config=configs/{config.model.name}.py, or set config.image_mean={statistics.mean} and "
            f"config.image_std={statistics.std}"
        )


def check_masks(config: Any, scheme: LabelScheme) -> None:
    """Raises ConfigError unless the masks of the layout can express the label scheme."""
    try:
        lookup_table(scheme, CODES[config.data.layout])
    except ValueError as error:
        raise ConfigError(
            f"config.labels={printable(config.labels)} with config.data.layout={config.data.layout}: {error}"
        ) from error


def check_data_folder(config: Any, file: str) -> None:
    """Raises ConfigError if a needed data folder is missing, one is given for the sample, or the um per pixel is wrong.

    `file` is a config file to name in the message.
    """
    check_mpp_setting(config.data.mpp, config.data.layout)
    slide_list, region = (config.data.get(name, "") for name in ("list", "region"))  # older runs lack them
    for name, value in (("list", slide_list), ("region", region)):
        if value and config.data.layout != SLIDES:
            raise ConfigError(
                f"config.data.{name}={printable(value)}: is for slides with annotations, as in --config={file}:slides"
            )
    if config.data.layout == SLIDES:
        if config.data.split != "published":
            raise ConfigError(
                f"config.data.split={config.data.split}: slides are split by patient, or by the column split of "
                "--config.data.list; leave it out"
            )
        if bool(config.data.dir) == bool(slide_list):
            found = "both" if slide_list else "neither"
            raise ConfigError(
                f"config.data.layout={SLIDES}: expected --config.data.dir=FOLDER (slides beside their annotations) or "
                f"--config.data.list=FILE.csv, found {found}"
            )
        return
    if config.data.layout == "sample" and (config.data.dir or config.data.split != "published"):
        given = "dir" if config.data.dir else "split"
        raise ConfigError(
            f"config.data.{given}={config.data[given]}: the built-in sample has none; for your own data set name its "
            f"layout, as in --config={file}:kaggle224"
        )
    if config.data.layout != "sample" and not config.data.dir:
        raise ConfigError(
            f"config.data.layout={config.data.layout} needs the folder of the data set: add --config.data.dir=FOLDER "
            "(BCSS: kaggle.com/datasets/whats2000/breast-cancer-semantic-segmentation-bcss; "
            f"to try the built-in sample: --config={file})"
        )


def check_folds(config: Any) -> None:
    """Raises ConfigError unless the fold to hold out is one of the folds. Runs of before the settings lack them."""
    folds, fold = config.data.get("folds", 0), str(config.data.get("fold", ALL))
    if folds == 1:
        raise ConfigError("config.data.folds=1: must be 0 (no cross-validation), or 2 or more")
    if fold != ALL and not (fold.isdecimal() and int(fold) < max(folds, 1)):
        allowed = f"{ALL}, or a fold from 0 to {folds - 1}" if folds else f"{ALL} unless --config.data.folds is given"
        raise ConfigError(f"config.data.fold={printable(fold)[:40]}: must be {allowed}")
    if fold != ALL and not folds:
        raise ConfigError(f"config.data.fold={fold}: needs the number of folds; add --config.data.folds=5")


def check_one_of(config: Any, field: str, values: tuple[str, ...]) -> None:
    """Raises ConfigError, with the nearest value, unless the field has one of the values."""
    value = _get(config, field)
    if value not in values:
        near = difflib.get_close_matches(str(value), values, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"config.{field}={value}: must be one of {', '.join(values)}{hint}")


def check_ranges(config: Any, ranges: dict[str, Range]) -> None:
    """Raises ConfigError unless the fields are in their ranges; fields that an older run lacks are not checked."""
    for field, allowed in ranges.items():
        try:
            value = _get(config, field)
        except (AttributeError, KeyError):
            continue
        if value not in allowed:
            shown = value if len(str(value)) <= 40 else f"{str(value)[:40]}.."
            raise ConfigError(f"config.{field}={shown}: must be {allowed}")
