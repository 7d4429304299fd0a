"""Vision transformers that are used as they are: published ones, those pretrained here, and those of trained runs."""

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from safetensors import safe_open
from typing_extensions import TypedDict

from bcss_jax.common.json_files import parse_json
from bcss_jax.data.resolution.check import check_mpp
from bcss_jax.errors import ConfigError, DataError, first_line, printable
from bcss_jax.inference.trained_run import read_trained_run
from bcss_jax.models.apply import normalize, split_model
from bcss_jax.models.encoders.vision_transformer.architecture import Architecture
from bcss_jax.models.encoders.vision_transformer.fitting import architecture_of, check_fit
from bcss_jax.models.encoders.vision_transformer.network import Features, VisionTransformer
from bcss_jax.models.encoders.vision_transformer.positions import Resizing
from bcss_jax.models.encoders.vision_transformer.presets import PRESETS, preset_of
from bcss_jax.models.image_normalization import ImageStatistics
from bcss_jax.models.weights.files import read_weights
from bcss_jax.models.weights.pretrained import load_torch_state
from bcss_jax.models.weights.vision_transformer_names import canonical
from bcss_jax.training import checkpoint, sharding

OWN = "bcss_jax"  # key of the description in the metadata of a file that `bcss_jax.pretrain` wrote
_DAMAGED = "its description of the encoder is damaged"
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class FrozenEncoder:
    """A vision transformer with its weights on all devices of a mesh.

    Attributes:
      name: of the published form, of the file, or of the run.
      architecture: its form.
      mpp: um per pixel of the images that it was trained with; None if it is unknown.
      feature: what describes a tile, one of `FEATURES`, as published.
      license: of the weights; None if it is unknown.
      identity: JSON, everything that determines the features.
      arrays: the weights.
      apply: (arrays, uint8 images [N, H, W, 3]) -> `Features`, float32; traceable. H and W are multiples of the patch.
      describe: (arrays, such images, one of `FEATURES`) -> that feature of each image, float32 (N, D); traceable.
    """

    name: str
    architecture: Architecture
    mpp: float | None
    feature: str
    license: str | None
    identity: dict
    arrays: Any
    apply: Callable[[Any, jax.Array], Features]
    describe: Callable[[Any, jax.Array, str], jax.Array]


def _mean(network: VisionTransformer, images: jax.Array) -> jax.Array:
    return network(images).patches.astype(jnp.float32).mean((1, 2))


def _class_and_mean(network: VisionTransformer, images: jax.Array) -> jax.Array:
    features = jax.tree.map(lambda x: x.astype(jnp.float32), network(images))
    return jnp.concatenate([features.cls, features.patches.mean((1, 2))], axis=-1)


# What describes a tile: the class token, the mean over its patches, or both, one after the other.
FEATURES: dict[str, Callable[[VisionTransformer, jax.Array], jax.Array]] = {
    "class": VisionTransformer.class_features,
    "mean": _mean,
    "class+mean": _class_and_mean,
}


def feature_width(encoder: FrozenEncoder, feature: str) -> int:
    """Returns the number of values of a feature."""
    return encoder.architecture.width * len(feature.split("+"))


def encoder_of_file(path: Path, name: str | None, mesh: Mesh) -> FrozenEncoder:
    """Returns the encoder in a file of weights.

    Args:
      path: the file, see `weights.files.read_weights`.
      name: one of `presets.PRESETS`; None for files that describe themselves, as those of `bcss_jax.pretrain` do.
      mesh: devices to place the weights on.

    Raises:
      DataError: the file cannot be read, or holds another encoder; the message says which one it fits.
      ConfigError: there is no encoder of this name, or the file needs one, or describes itself.
    """
    path, where = Path(path).expanduser(), printable(path)
    preset = None if name is None else preset_of(name)
    file, described = read_weights(path), _description(path)
    if described is not None and preset is not None:
        raise ConfigError(f"{where}: describes its encoder itself; leave --encoder={name} out")
    try:
        arrays, not_needed = canonical(file.arrays)
        if described is not None:
            architecture, statistics, mpp = _architecture(described), _statistics(described), described["mpp"]
            name, license, feature = described["encoder"], None, "class"
        elif preset is not None and name is not None:
            architecture, statistics, mpp, license = preset.architecture, preset.statistics, preset.mpp, preset.license
            architecture, feature = _with_table_of(arrays, architecture), preset.feature
        else:
            fits = [each for each in PRESETS if _fits(arrays, PRESETS[each].architecture)]
            known = f"it fits {' or '.join(fits)}" if fits else "it fits none of those that are known here"
            raise ConfigError(f"{where}: which encoder is this? Name it with --encoder=NAME; {known}")
        if arrays.pop("mask_token", None) is not None:
            not_needed.append("mask_token")
        check_fit(arrays, architecture)
        network = VisionTransformer(architecture, rngs=nnx.Rngs(0))
        load_torch_state(network, arrays)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    log.info("%s: %s; %d tensors loaded%s", where, name, len(arrays), _left_out(not_needed))
    if license is not None:
        log.info("%s: the license of these weights: %s", name, license)
    identity = {"weights_sha256": file.sha256, "architecture": _json(architecture), **dataclasses.asdict(statistics)}
    _, *arrays = split_model(network)
    placed = sharding.place_replicated(tuple(arrays), mesh)
    return _frozen(network, placed, statistics, name=name, mpp=mpp, feature=feature, license=license, identity=identity)


def encoder_of_run(path: Path, which: str, mesh: Mesh) -> FrozenEncoder:
    """Returns the encoder of a trained run of the network `vit`.

    Args:
      path: folder of the run, or of its checkpoints.
      which: "best" or "latest".
      mesh: devices to place the weights on.

    Raises:
      DataError: the checkpoint cannot be read.
      ConfigError: the run's network has no vision transformer as its encoder.
    """
    run = read_trained_run(path, mesh, which)
    model = checkpoint.network_of(checkpoint.load_trained(run.folder, mesh, which, step=run.step))
    network = getattr(model, "encoder", None)
    if not isinstance(network, VisionTransformer):
        raise ConfigError(
            f"{printable(path)}: expected a run whose network is vit, found {run.config['model']['name']}; name a run "
            "of configs/vit.py, or a file with --weights"
        )
    statistics = ImageStatistics(tuple(run.config["image_mean"]), tuple(run.config["image_std"]))
    license = (run.metadata.get("pretrained") or {}).get("license")
    params, model_state = run.weights(mesh)
    return _frozen(
        network,
        (params.get("encoder", {}), model_state.get("encoder", {})),
        statistics,
        name=run.name,
        mpp=float(run.config["data"]["mpp"]),
        feature="class",
        license=license,
        identity={**run.identity(), "step": run.step},
    )


def _frozen(network: VisionTransformer, arrays: Any, statistics: ImageStatistics, **fields) -> FrozenEncoder:
    """Returns the encoder with these parameters and other state; of the network only the structure is used."""
    graphdef, *variables = nnx.split(network, nnx.Param, ...)
    structure = jax.eval_shape(lambda: variables)

    def filled(arrays) -> Any:
        own = jax.tree.map(lambda x: x, structure)
        for state, values in zip(own, arrays, strict=True):
            nnx.replace_by_pure_dict(state, values)
        return nnx.merge(graphdef, *own)

    def apply(arrays, images):
        return jax.tree.map(lambda x: x.astype(jnp.float32), filled(arrays)(normalize(images, statistics)))

    def describe(arrays, images, feature):
        return FEATURES[feature](filled(arrays), normalize(images, statistics)).astype(jnp.float32)

    return FrozenEncoder(architecture=network.architecture, arrays=arrays, apply=apply, describe=describe, **fields)


class _Description(TypedDict):
    """What is read of the metadata of a file of `bcss_jax.pretrain`."""

    encoder: str
    architecture: dict
    image_mean: list[float]
    image_std: list[float]
    mpp: float | None


def _description(path: Path) -> _Description | None:
    """Returns how a file describes its encoder; None if it does not."""
    if path.suffix.lower() != ".safetensors":
        return None
    with safe_open(path, framework="numpy") as file:
        text = (file.metadata() or {}).get(OWN)
    if text is None:
        return None
    try:
        found = parse_json(text, kind=_Description)
        if found["mpp"] is not None:
            check_mpp(found["mpp"], "mpp", error_type=DataError)
        return found
    except (ValueError, DataError) as error:
        raise DataError(f"{printable(path)}: {_DAMAGED} ({first_line(error)}); write it again") from error


def _architecture(described: _Description) -> Architecture:
    try:
        fields: dict[str, Any] = dict(described["architecture"])
        fields["resizing"] = Resizing(fields["resizing"])
        architecture = Architecture(**fields)
        architecture.check()
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{_DAMAGED} ({first_line(error)}); write it again") from error
    return architecture


def _statistics(described: _Description) -> ImageStatistics:
    mean, std = tuple(described["image_mean"]), tuple(described["image_std"])
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise DataError(f"{_DAMAGED} (image_mean {mean}, image_std {std}); write it again")
    return ImageStatistics(mean, std)


def _with_table_of(arrays, architecture: Architecture) -> Architecture:
    """Returns the architecture with the size of the file's table of positions, which is resized to the tiles anyway."""
    found = architecture_of(arrays, architecture)
    if architecture.table is None or found.table is None or found.table == architecture.table:
        return architecture
    log.info("its table of positions is %dx%d instead of the published size", found.table, found.table)
    return dataclasses.replace(architecture, table=found.table)


def _fits(arrays, architecture: Architecture) -> bool:
    return architecture_of(arrays, architecture) == architecture


def _json(architecture: Architecture) -> dict:
    return json.loads(json.dumps(dataclasses.asdict(architecture), default=lambda each: each.value))


def _left_out(names: list[str]) -> str:
    return f", left out: {', '.join(names[:10])}" + (", ..." if len(names) > 10 else "") if names else ""
