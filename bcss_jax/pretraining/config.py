"""The settings of a pretraining with their defaults, and the check of their values."""

from typing import Any

from ml_collections import ConfigDict

from bcss_jax.common.ranges import COUNT, WINDOW, Range
from bcss_jax.config import DTYPES, check_one_of, check_ranges
from bcss_jax.errors import ConfigError
from bcss_jax.labels import find_scheme
from bcss_jax.models.encoders.vision_transformer.presets import preset_of
from bcss_jax.pretraining.views.settings import STYLES

METHOD = "dino"
LAYOUTS = ("sample", "tiles", "slides")
LABELED_LAYOUTS = ("sample", "kaggle224", "kaggle512", "roi")
RECIPES = ("few", "dinov2")  # after the layout in the argument of the config file
TARGETS = ("centering", "sinkhorn")
SPREADS = ("none", "koleo", "kde")
VERSIONS = (1, 2)

_EPOCHS = Range(0, 10**6, whole=True)
_TEMPERATURE = Range(0, 100, above=True)
_SHARE = Range(0, 1)
RANGES = {
    "seed": Range(0, 2**32 - 1, whole=True),
    "data.tile_size": WINDOW,
    "data.mpp": Range(0, 100, above=True),
    "data.tiles_per_slide": Range(1, 10**7, whole=True),
    "data.memory_share": _SHARE,
    "drop_path": Range(0, 1, below=True),
    "views.global_size": WINDOW,
    "views.local_size": WINDOW,
    "views.local_views": Range(0, 100, whole=True),
    "head.prototypes": Range(2, 10**7, whole=True),
    "head.hidden": Range(1, 10**6, whole=True),
    "head.bottleneck": Range(1, 10**6, whole=True),
    "objective.student_temperature": _TEMPERATURE,
    "objective.teacher_temperature": _TEMPERATURE,
    "objective.first_teacher_temperature": _TEMPERATURE,
    "objective.teacher_warmup_epochs": _EPOCHS,
    "objective.center_momentum": _SHARE,
    "objective.patch_weight": Range(0, 1000),
    "objective.spread_weight": Range(0, 1000),
    "objective.words_weight": Range(0, 1000),
    "optimizer.learning_rate": Range(0, 1e38, above=True),
    "optimizer.final_learning_rate": Range(0, 1e38),
    "optimizer.warmup_epochs": _EPOCHS,
    "optimizer.weight_decay": Range(0, 1000),
    "optimizer.final_weight_decay": Range(0, 1000),
    "optimizer.clip_norm": Range(0, 10**9),
    "optimizer.layer_decay": Range(0, 1, above=True),
    "optimizer.patch_embedding_scale": Range(0, 1000),
    "optimizer.momentum": _SHARE,
    "optimizer.frozen_last_layer_epochs": _EPOCHS,
    "batch_size": COUNT,
    "micro_batches": COUNT,
    "epochs": Range(1, 10**6, whole=True),
    "epoch_steps": Range(0, 10**9, whole=True),
    "knn_epochs": _EPOCHS,
    "max_bad_steps": Range(1, 10**9, whole=True),
    "checkpoint_steps": Range(1, 10**9, whole=True),
    "log_seconds": Range(0, 10**6),
}


def default() -> ConfigDict:
    """Returns DINO's settings for a ViT-S/16 with views of pathology, without data."""
    config: Any = ConfigDict()
    config.method = METHOD  # what distinguishes these settings from those of a segmentation
    config.name = METHOD  # the default workdir is runs/<name>
    config.seed = 0  # seed of initialization, order of the tiles, views and masks

    config.data = ConfigDict()
    config.data.layout = "sample"  # sample, tiles (any images), slides
    config.data.dir = ""  # folder of the images or slides, or several with commas between; the sample needs none
    config.data.list = ""  # slides: CSV list of slides, instead of a folder
    config.data.exclude = ""  # parts of paths that must not be seen, with commas between, such as TCGA-A2-A0D2
    config.data.tile_size = 256  # side of the tiles in pixels; larger images are cut, smaller ones left out
    config.data.mpp = 0.5  # slides: um per pixel of the tiles
    config.data.tiles_per_slide = 1000  # slides: number of tiles that are drawn from the tissue of each
    config.data.memory_share = 0.25  # hold tiles in memory if they take at most this share of what is free

    config.labeled = ConfigDict()  # tiles with masks, which only measure: a k-NN score is in the history
    config.labeled.layout = ""  # kaggle224, kaggle512, roi; empty: none. The sample has its own
    config.labeled.dir = ""  # folder of that data set
    config.labeled.scheme = "tumor_stroma"  # label scheme

    config.encoder = "vit_small16"  # form of the encoder, bcss_jax/models/encoders/vision_transformer/presets.py
    config.pretrained = ""  # file of weights of the encoder to start from; empty: random weights
    config.whiten_patches = False  # random weights: start with a patch embedding that whitens patches of the tiles
    config.local_attention = False  # random weights: start with attention to like and near patches
    config.drop_path = 0.1  # probability with which the student's last block is dropped; it grows from 0 in the first

    config.views = ConfigDict()
    config.views.style = "pathology"  # how views are changed: pathology, dino, dinov2
    config.views.global_size = 224  # side of the two large views in pixels
    config.views.local_size = 96  # side of the small views in pixels
    config.views.local_views = 8  # number of small views
    config.views.resize = True  # views show parts of many sizes, resized; False: parts of their own size

    config.head = ConfigDict()
    config.head.prototypes = 65536  # number of scores that student and teacher are compared by
    config.head.hidden = 2048  # features of the head's hidden layers
    config.head.bottleneck = 256  # features of a prototype
    config.head.free_lengths = False  # train the lengths of the prototypes; False is DINO's norm_last_layer
    config.head.patch_head = False  # have a head of its own for masked patches

    config.objective = ConfigDict()
    config.objective.student_temperature = 0.1  # of the student's scores
    config.objective.teacher_temperature = 0.07  # of the teacher's scores after its warm-up
    config.objective.first_teacher_temperature = 0.04  # of the teacher's scores at the start
    config.objective.teacher_warmup_epochs = 30  # epochs in which the teacher's temperature changes
    config.objective.targets = "centering"  # what keeps targets from collapsing: centering, sinkhorn
    config.objective.center_momentum = 0.9  # share of the old center in the new one
    config.objective.patch_weight = 0.0  # weight of the loss of masked patches (iBOT); 0: nothing is masked
    config.objective.spread = "none"  # what spreads the features of a batch: none, koleo, kde
    config.objective.spread_weight = 0.1  # weight of that
    config.objective.words_weight = 0.0  # weight of the loss of visual words, which patches predict; 0: none

    config.optimizer = ConfigDict()
    # 1: DINO; 2: DINOv2 (rate by the root of the batch, clipping by part, temperature by step)
    config.optimizer.version = 1
    config.optimizer.learning_rate = 5e-4  # largest rate with a batch of 256 (version 1) or 1024 (version 2)
    config.optimizer.final_learning_rate = 1e-6  # what the rate falls to
    config.optimizer.warmup_epochs = 10  # epochs in which the rate grows from 0
    config.optimizer.weight_decay = 0.04  # weight decay at the start
    config.optimizer.final_weight_decay = 0.4  # weight decay at the end
    config.optimizer.clip_norm = 3.0  # largest norm of the gradients; 0: no clipping
    config.optimizer.layer_decay = 1.0  # factor on the rate from each block to the one before it
    config.optimizer.patch_embedding_scale = 1.0  # further factor on the rate of the patch embedding
    config.optimizer.momentum = 0.996  # share of the old teacher in the new one at the start; it rises to 1
    config.optimizer.frozen_last_layer_epochs = 1  # first epochs in which the last layer of the head does not change

    config.dtype = "float32"  # type of the computation: float32, bfloat16 or float16 (T4, V100); parameters are float32
    config.batch_size = 256  # tiles in a batch, over all devices
    config.micro_batches = 1  # number of parts in which the batch is computed; more parts need less memory
    config.epochs = 100  # number of epochs
    config.epoch_steps = 0  # steps of an epoch, which schedules count in; 0: as many as the tiles make batches
    config.knn_epochs = 10  # epochs between k-NN scores of labeled tiles; 0: none
    config.max_bad_steps = 3  # training fails after so many steps with a loss that is not finite
    config.checkpoint_steps = 200  # steps between checkpoints; the end of an epoch always writes one
    config.log_seconds = 60.0  # seconds before the first progress line of an epoch if the output is not a terminal
    return config


def recipe(argument: str) -> ConfigDict:
    """Returns the settings for the text after the colon of `--config=configs/dino.py:tiles,few`.

    The sample and `,few`, for some thousand tiles, have a ViT-Ti/16 (the sample) or a ViT-S/16, small views, 4,096
    prototypes and epochs of 50 steps. `,dinov2` adds what DINOv2 has: masked patches, Sinkhorn's targets, and a loss
    that spreads features.

    Raises:
      ConfigError: the layout or the recipe does not exist.
    """
    layout, *recipes = argument.split(",")
    if layout not in LAYOUTS or sorted(set(recipes) & set(RECIPES)) != sorted(recipes):
        raise ConfigError(
            f"{argument}: expected one of {', '.join(LAYOUTS)}, and after it ',few' (some thousand tiles) or "
            "',dinov2', or both"
        )
    config: Any = default()
    config.data.layout = layout
    config.name = "_".join([METHOD, *([] if layout == "sample" else [layout]), *recipes])
    if layout == "sample" or "few" in recipes:
        # Few steps: random weights learn to see more than color late.
        config.whiten_patches = config.local_attention = True
        config.objective.words_weight = 1.0
        config.drop_path = 0.0
        config.views.update(global_size=128, local_size=64, local_views=2, resize=False)
        config.head.prototypes = 4096
        config.batch_size = 32
        config.epochs, config.epoch_steps = 16, 50
        config.optimizer.update(warmup_epochs=1, learning_rate=8e-3, momentum=0.99)  # few steps: a higher rate
        config.objective.teacher_warmup_epochs = 6
        config.knn_epochs = 5
    if layout == "sample":
        config.encoder = "vit_tiny16"
        config.labeled.layout = "sample"
    if "dinov2" in recipes:
        config.head.update(free_lengths=True, patch_head=True)
        config.objective.update(targets="sinkhorn", patch_weight=1.0, spread="kde", spread_weight=0.05)
        config.optimizer.update(
            version=2, learning_rate=4e-3, momentum=0.992, layer_decay=0.9, patch_embedding_scale=0.2
        )
        config.drop_path = 0.3
    return config


def validate(config: Any) -> None:
    """Checks names, ranges and combinations.

    Raises:
      ConfigError: one line with the field, what it is and what it may be.
    """
    check_one_of(config, "data.layout", LAYOUTS)
    check_one_of(config, "views.style", tuple(STYLES))
    check_one_of(config, "objective.targets", TARGETS)
    check_one_of(config, "objective.spread", SPREADS)
    check_one_of(config, "dtype", DTYPES)
    check_ranges(config, RANGES)
    if config.optimizer.version not in VERSIONS:
        raise ConfigError(f"config.optimizer.version={config.optimizer.version}: must be 1 (DINO) or 2 (DINOv2)")
    patch = preset_of(config.encoder).architecture.patch
    for name in ("global_size", "local_size"):
        side = config.views[name]
        if side % patch and (name == "global_size" or config.views.local_views):
            near = max(round(side / patch), 1) * patch
            raise ConfigError(
                f"config.views.{name}={side}: must be a multiple of the patch of {config.encoder}, {patch} pixels; try "
                f"{near}"
            )
    _check_data(config)
    if config.objective.spread != "none" and config.batch_size < 2:
        raise ConfigError("config.batch_size=1: config.objective.spread compares the tiles of a batch; use at least 2")


def _check_data(config: Any) -> None:
    data, labeled = config.data, config.labeled
    if data.layout == "sample":
        given = next((name for name in ("dir", "list", "exclude") if data[name]), None)
        if given:
            raise ConfigError(
                f"config.data.{given}={data[given]}: the sample is drawn and reads no files; choose a layout, as in "
                "--config=configs/dino.py:tiles"
            )
    elif data.list and data.layout != "slides":
        raise ConfigError(f"config.data.list={data.list}: is for slides; name the folders of the images in data.dir")
    elif bool(data.dir) == bool(data.list):
        either = " or --config.data.list=FILE" if data.layout == "slides" else ""
        found = "both" if data.dir else "none"
        raise ConfigError(
            f"config.data.dir: expected --config.data.dir=FOLDER{either} for the layout {data.layout}, found {found}"
        )
    if labeled.layout:
        check_one_of(config, "labeled.layout", LABELED_LAYOUTS)
    if bool(labeled.dir) != (labeled.layout in LABELED_LAYOUTS[1:]):
        raise ConfigError(
            f"config.labeled.dir={labeled.dir!r}, config.labeled.layout={labeled.layout!r}: tiles with masks need "
            "both, the layout sample no folder; leave both out for no k-NN score"
        )
    find_scheme(labeled.scheme)
