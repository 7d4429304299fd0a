"""Builds what a pretraining computes with from its config: tiles, network, optimizer, schedules and compiled step.

`config` is a ConfigDict with the fields of `bcss_jax.pretraining.config.default`.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from bcss_jax.data.discovery import DataSettings
from bcss_jax.labels import find_scheme
from bcss_jax.models.apply import split_model
from bcss_jax.models.encoders.vision_transformer.presets import preset_of
from bcss_jax.pretraining.distillation.network import PretrainedNetwork
from bcss_jax.pretraining.distillation.optimizer import OptimizerSettings, PretrainingOptimizer
from bcss_jax.pretraining.distillation.schedules import Schedules, make_schedules
from bcss_jax.pretraining.distillation.step import DistillationSettings, make_pretrain_step
from bcss_jax.pretraining.tiles.folder_tiles import folder_tiles
from bcss_jax.pretraining.tiles.labeled_tiles import LabeledTiles, labeled_tiles
from bcss_jax.pretraining.tiles.sample_tiles import SampleTiles
from bcss_jax.pretraining.tiles.slide_search import find_slides
from bcss_jax.pretraining.tiles.slide_tiles import slide_of, slide_tiles
from bcss_jax.pretraining.tiles.tiles import Tiles
from bcss_jax.pretraining.views.make_views import make_views
from bcss_jax.pretraining.views.settings import ViewSettings
from bcss_jax.pretraining.visual_words import CLUSTERS
from bcss_jax.slides.batch.slide_list import Entry


def split_by_commas(text: str) -> list[str]:
    """Returns the parts of a setting that commas separate."""
    return [part.strip() for part in text.split(",") if part.strip()]


def open_tiles(config: Any) -> Tiles:
    """Finds, and as far as they fit the memory reads, the tiles of a pretraining.

    Raises:
      ConfigError: a pattern excludes nothing.
      DataError: there are no tiles, or files cannot be read.
    """
    data = config.data
    memory: dict[str, Any] = dict(memory_share=data.memory_share, processes=jax.process_count())
    if data.layout == "sample":
        return SampleTiles(seed=config.seed)
    if data.layout == "tiles":
        return folder_tiles(_folders(config), data.tile_size, exclude=split_by_commas(data.exclude), **memory)
    slides, notes = _find_slides(config)
    return slide_tiles(
        slides,
        data.tile_size,
        mpp=data.mpp,
        per_slide=data.tiles_per_slide,
        seed=config.seed,
        notes=notes,
        **memory,
    )


def _folders(config: Any) -> list[Path]:
    return [Path(folder).expanduser() for folder in split_by_commas(config.data.dir)]


def _find_slides(config: Any) -> tuple[list[Entry], tuple[str, ...]]:
    slide_list = Path(config.data.list).expanduser() if config.data.list else None
    return find_slides(_folders(config), slide_list, split_by_commas(config.data.exclude))


def first_slide(config: Any, tiles: Tiles) -> Entry | None:
    """Returns the slide that the first tile is of; None if the tiles are not of slides."""
    if config.data.layout != "slides":
        return None
    name = slide_of(tiles.names[0])
    return next((slide for slide in _find_slides(config)[0] if slide.slide.name == name), None)


def open_labeled_tiles(config: Any) -> LabeledTiles | None:
    """Reads the tiles with masks, which only measure; None if there are none. Raises errors as `labeled_tiles`."""
    labeled = config.labeled
    if not labeled.layout or not config.knn_epochs:
        return None
    folder = Path(labeled.dir).expanduser() if labeled.dir else None
    return labeled_tiles(DataSettings(labeled.layout, folder), find_scheme(labeled.scheme))


def create_network(config: Any) -> PretrainedNetwork:
    """Creates the network with new weights.

    Raises:
      ConfigError: there is no such encoder.
    """
    head, patches = config.head, config.objective.patch_weight > 0
    return PretrainedNetwork(
        preset_of(config.encoder).architecture,
        prototypes=head.prototypes,
        head_hidden=head.hidden,
        head_bottleneck=head.bottleneck,
        free_lengths=head.free_lengths,
        mask_token=patches,
        patch_head=patches and head.patch_head,
        clusters=CLUSTERS if config.objective.words_weight else 0,
        drop_path=config.drop_path,
        dtype=jnp.dtype(config.dtype),
        seed=config.seed,
    )


def create_optimizer(config: Any, network: PretrainedNetwork) -> PretrainingOptimizer:
    """Creates the optimizer of the student."""
    settings = config.optimizer
    return PretrainingOptimizer(
        OptimizerSettings(
            clip_norm=settings.clip_norm,
            clip="tensor" if settings.version == 1 else "part",
            layer_decay=settings.layer_decay,
            patch_embedding_scale=settings.patch_embedding_scale,
        ),
        split_model(network)[1],
    )


def create_schedules(config: Any, epoch_steps: int) -> Schedules:
    """Creates the schedules; epochs have `epoch_steps` steps."""
    settings, objective = config.optimizer, config.objective
    by_batch = config.batch_size / 256 if settings.version == 1 else (config.batch_size / 1024) ** 0.5
    return make_schedules(
        epochs=config.epochs,
        epoch_steps=epoch_steps,
        learning_rate=settings.learning_rate * by_batch,
        final_learning_rate=settings.final_learning_rate,
        warmup_epochs=settings.warmup_epochs,
        weight_decay=settings.weight_decay,
        final_weight_decay=settings.final_weight_decay,
        momentum=settings.momentum,
        teacher_temperature=objective.teacher_temperature,
        first_teacher_temperature=objective.first_teacher_temperature,
        teacher_warmup_epochs=objective.teacher_warmup_epochs,
        frozen_last_layer_epochs=settings.frozen_last_layer_epochs,
        version=settings.version,
    )


def view_settings(config: Any) -> ViewSettings:
    """Returns the settings of the views."""
    return ViewSettings(**config.views)


def create_step(
    config: Any, network: PretrainedNetwork, optimizer: PretrainingOptimizer, mesh: jax.sharding.Mesh
) -> Callable:
    """Builds the compiled step; see `make_pretrain_step`."""
    objective = config.objective
    return make_pretrain_step(
        network,
        optimizer,
        mesh,
        DistillationSettings(
            student_temperature=objective.student_temperature,
            center_momentum=objective.center_momentum,
            targets=objective.targets,
            patch_weight=objective.patch_weight,
            spread=objective.spread,
            spread_weight=objective.spread_weight,
            words_weight=objective.words_weight,
        ),
        functools.partial(make_views, settings=view_settings(config)),
        statistics=preset_of(config.encoder).statistics,
        micro_batches=config.micro_batches,
        seed=config.seed,
    )
