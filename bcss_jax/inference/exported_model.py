"""A network in one file that runs without this package: weights and preprocessing included, for CPUs, GPUs and TPUs.

The file is an uncompressed ZIP archive with

model.stablehlo  output of `jax.export.Exported.serialize`: uint8 RGB [N, window, window, 3] -> float32 probabilities
                 [N, window, window, K] of the evaluated classes, for any N
model.json       format, label_scheme, classes (of the last axis), mpp, window, tta, the origin, the SHA-256 of the
                 program and of all that model.json holds besides, and more

It needs JAX only (`pip install jax flatbuffers`):

    import json, zipfile
    import jax
    import numpy as np
    from jax import export

    with zipfile.ZipFile("unet.jaxexport") as file:
        metadata = json.loads(file.read("model.json"))
        model = export.deserialize(bytearray(file.read("model.stablehlo")))
    images = np.zeros((2, metadata["window"], metadata["window"], 3), np.uint8)  # RGB at metadata["mpp"] um per pixel
    probabilities = np.asarray(jax.jit(model.call)(images))  # the last axis: metadata["classes"]

A file of this kind is a program: use it only if you trust its source. JAX promises to read it for six months of its
releases (docs.jax.dev/en/latest/export); keep the checkpoint for longer.
"""

import logging
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export
from jax.sharding import Mesh, PartitionSpec
from jaxlib.mlir.dialects import stablehlo

from bcss_jax.common.digests import sha256_of, sha256_of_json
from bcss_jax.common.files import portable_stem
from bcss_jax.common.json_files import parse_json
from bcss_jax.common.ranges import Range
from bcss_jax.common.regular_file import real_path
from bcss_jax.data.resolution.check import why_impossible
from bcss_jax.errors import ConfigError, DataError, UserError, first_line, printable
from bcss_jax.inference.slide_model import SlideModel
from bcss_jax.labels import LabelScheme, scheme_from_json
from bcss_jax.slides.windows import BLEND, BLENDS, MAX_OVERLAP, OVERLAP

FORMAT = 1  # of model.json; raised when older code could not read what newer code writes
PROGRAM, METADATA = "model.stablehlo", "model.json"
DIGESTS = "sha256"  # field of model.json: name of an entry -> SHA-256; of model.json without this field
MAX_METADATA = 1 << 20  # bytes
MAX_PROGRAM = (1 << 31) - 1  # bytes, the limit of a flatbuffer
MAX_WINDOW = 1 << 14  # pixels
log = logging.getLogger(__name__)


def model_of_artifact(path: Path, mesh: Mesh, tta: bool) -> SlideModel:
    """Returns the model of an exported file; each device of the mesh computes its share of the images.

    Args:
      path: the file.
      mesh: devices to compute on.
      tta: test-time augmentation is requested.

    Raises:
      DataError: the file is not an exported model, is damaged, has another format, contradicts itself, or is not for
        this JAX or these devices.
      ConfigError: test-time augmentation is requested, but the model was exported without it.
    """
    where = printable(path)
    try:
        metadata, content = _read(path)
        scheme = _checked(metadata)
        _check_digests(metadata, content, where)
        program = _program(content, where)
        _check_interface(program, metadata["window"], len(scheme.evaluated))
        platform = _platform(mesh)
        if platform not in program.platforms:
            raise ValueError(f"made for {', '.join(program.platforms)}, the devices here are {platform}")
        split = PartitionSpec("data")
        run = jax.shard_map(program.call, mesh=mesh, in_specs=split, out_specs=split, check_vma=False)
        _parse(run, (mesh.size, metadata["window"], metadata["window"], 3))
    except UserError:  # includes a request to stop
        raise
    except OSError as error:
        raise DataError(f"{where}: cannot be read ({error.strerror or first_line(error)}); check the path") from error
    except (ValueError, zipfile.BadZipFile, EOFError, RuntimeError) as error:
        raise DataError(
            f"{where}: expected a network written by python -m bcss_jax.export, found: {first_line(error)}; export the "
            "checkpoint again"
        ) from error
    if tta and not metadata["tta"]:
        raise ConfigError(
            f"--tta: {where} was exported without it; export the checkpoint again with --tta, or name the run"
        )
    if metadata["tta"] and not tta:
        log.info("%s: exported with --tta: predictions are averaged over flips and turns of every window", where)
    name = portable_stem(Path(path))
    identity = {
        "stablehlo_sha256": sha256_of(content),
        "label_scheme": scheme.identity(),
        "mpp": metadata["mpp"],
    }
    description = {
        "name": name,
        "network": metadata["network"],
        "label_scheme": scheme.to_json(),
        "params_sha256": metadata["params_sha256"],
        "checkpoint": {
            "artefact": str(real_path(path)),
            "exported_from": metadata["name"],
            **metadata["checkpoint"],
        },
        "tta": metadata["tta"],
    }
    return SlideModel(
        name,
        scheme,
        float(metadata["mpp"]),
        metadata["window"],
        identity,
        description,
        (),
        lambda arrays, images: run(images),
        any_window=False,
        overlap=metadata.get("overlap", OVERLAP),
        blend=metadata.get("blend", BLEND),
    )


def _read(path: Path) -> tuple[dict, bytes]:
    """Returns the content of model.json and the bytes of the program.

    Checks sizes first: a damaged file may state any.
    """
    if not zipfile.is_zipfile(path):
        raise ValueError("a file that is not a ZIP archive, or is incomplete")
    with zipfile.ZipFile(path) as file:
        entries = {entry.filename: entry for entry in file.infolist()}
        if sorted(entry.filename for entry in file.infolist()) != [METADATA, PROGRAM]:
            raise ValueError(f"an archive of {', '.join(map(ascii, sorted(entries)))[:200]}")
        for name, most in ((METADATA, MAX_METADATA), (PROGRAM, MAX_PROGRAM)):
            entry = entries[name]
            if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
                raise ValueError(f"{name} is compressed")
            if entry.file_size > min(most, Path(path).stat().st_size):
                raise ValueError(f"{name} claims {entry.file_size} bytes")
        try:
            metadata = parse_json(file.read(METADATA))
        except ValueError as error:
            raise ValueError(f"{METADATA} is not JSON as it was written: {first_line(error)}") from error
        return metadata, file.read(PROGRAM)


def _check_digests(metadata: dict, content: bytes, where: str) -> None:
    """Raises ValueError if the SHA-256 of the program or of the description differs. Logs if there are none."""
    others = {name: value for name, value in metadata.items() if name != DIGESTS}
    if DIGESTS not in metadata:
        log.warning("%s: exported by an earlier version, without digests: it is used, but not verified", where)
    elif metadata[DIGESTS] != {PROGRAM: sha256_of(content), METADATA: sha256_of_json(others)}:
        raise ValueError("another content than was written (SHA-256)")


def _checked(metadata: Any) -> LabelScheme:
    """Returns the label scheme of model.json.

    Raises ValueError unless its fields are as `bcss_jax.export` writes them.
    """
    found = metadata.get("format") if isinstance(metadata, dict) else None
    if found != FORMAT or isinstance(found, bool):
        remedy = ", which a newer bcss_jax reads" if isinstance(found, int) and found > FORMAT else ""
        raise ValueError(f"format {ascii(found)[:80]} of {METADATA}{remedy}; this program reads {FORMAT}")
    scheme = scheme_from_json(metadata.get("label_scheme", {}))
    checkpoint = metadata.get("checkpoint")
    parts = checkpoint if isinstance(checkpoint, dict) else {}
    right = {
        "name": _is_text(metadata.get("name")),
        "network": _is_text(metadata.get("network")),
        "classes": metadata.get("classes") == list(scheme.evaluated_names),
        "mpp": why_impossible(metadata.get("mpp")) is None,
        "window": type(metadata.get("window")) is int and 0 < metadata["window"] <= MAX_WINDOW,
        # Files of before imported models lack the next two.
        "overlap": metadata.get("overlap", OVERLAP) in Range(0, MAX_OVERLAP),
        "blend": metadata.get("blend", BLEND) in BLENDS,
        "tta": type(metadata.get("tta")) is bool,
        "params_sha256": _is_text(metadata.get("params_sha256"))
        and re.fullmatch("[0-9a-f]{64}", metadata["params_sha256"]),
        "checkpoint": set(parts) == {"which", "step", "epoch"}
        and parts["which"] in ("best", "latest")
        and type(parts["step"]) is int
        and type(parts["epoch"]) in (int, type(None)),
    }
    wrong = [name for name, fits in right.items() if not fits]
    if wrong:
        raise ValueError(f"{wrong[0]} in {METADATA} is {ascii(metadata.get(wrong[0]))[:80]}")
    return scheme


def _program(content: bytes, where: str) -> export.Exported:
    try:
        program = export.deserialize(bytearray(content))
    except UserError:
        raise
    except Exception as error:  # flatbuffers and JAX raise many kinds of errors for damaged files
        raise ValueError(f"a {PROGRAM} that cannot be read ({type(error).__name__}: {first_line(error)})") from error
    made_by = re.search(rb"StableHLO_v(\d+)\.(\d+)", program.mlir_module_serialized[:64])
    known = stablehlo.get_current_version()
    newer = made_by and [int(number) for number in made_by.groups()] > [int(part) for part in known.split(".")[:2]]
    if newer or program.calling_convention_version > export.maximum_supported_calling_convention_version:
        raise DataError(f"{where}: written by a newer JAX than the installed {jax.__version__}; update JAX")
    return program


def _parse(run: Callable[[jax.Array], jax.Array], shape: tuple[int, ...]) -> None:
    """Raises ValueError unless the program can be parsed, which `deserialize` does not do until the program is used."""
    try:
        jax.jit(run).lower(jax.ShapeDtypeStruct(shape, jnp.uint8))
    except UserError:
        raise
    except Exception as error:  # MLIR and JAX raise many kinds of errors
        raise ValueError(f"a {PROGRAM} that cannot be read ({first_line(error)})") from error


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable() and len(value) <= 200


def _check_interface(program: export.Exported, window: int, classes: int) -> None:
    """Raises ValueError unless the inputs and outputs of the program are those that model.json states."""
    batch_sizes = [str(aval.shape[0]) for aval in (*program.in_avals, *program.out_avals) if aval.shape]
    found = [(aval.dtype.name, *aval.shape[1:]) for aval in (*program.in_avals, *program.out_avals)]
    expected = [("uint8", *image_shape(window)[1:]), ("float32", window, window, classes)]
    if len(program.in_avals) != 1 or found != expected or len(set(batch_sizes)) != 1 or batch_sizes[0].isdecimal():
        raise ValueError(
            f"a program of {', '.join(map(str, program.in_avals))} -> {', '.join(map(str, program.out_avals))}, "
            f"{METADATA} says uint8[N,{window},{window},3] -> float32[N,{window},{window},{classes}]"
        )
    if program.nr_devices != 1 or program.ordered_effects or program.unordered_effects:
        raise ValueError("a program that does more than compute")


def image_shape(window: int) -> list[int | None]:
    """Returns the shape of the images that a program takes; None stands for any number of images."""
    return [None, window, window, 3]


def _platform(mesh: Mesh) -> str:
    """Returns the platform as jax.export names it: JAX's devices of the platform gpu are either cuda or rocm."""
    device = mesh.devices.flat[0]
    if device.platform != "gpu":
        return device.platform
    return "rocm" if "rocm" in device.client.platform_version.lower() else "cuda"
