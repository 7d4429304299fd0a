"""A network as one file that runs without this package: weights and preprocessing inside, for CPUs, GPUs and TPUs.

The file is a ZIP archive, not compressed, with

model.stablehlo  what `jax.export.Exported.serialize` gives: uint8 RGB [N, window, window, 3] -> float32 probabilities
                 [N, window, window, K] of the evaluated classes, for any N
model.json       format, label_scheme, classes (of the last axis), mpp, window, tta, where it comes from, and more

jax alone runs it (`pip install jax flatbuffers`):

    import json, zipfile
    import jax
    import numpy as np
    from jax import export

    with zipfile.ZipFile("unet.jaxexport") as file:
        about = json.loads(file.read("model.json"))
        model = export.deserialize(bytearray(file.read("model.stablehlo")))
    images = np.zeros((2, about["window"], about["window"], 3), np.uint8)  # RGB at about["mpp"] um per pixel
    probabilities = np.asarray(jax.jit(model.call)(images))  # the last axis: about["classes"]

A file of this kind is a program: take it only from those whom you trust. JAX promises to read it for six months of its
own releases (docs.jax.dev/en/latest/export); a checkpoint is what to keep.
"""

import contextlib
import hashlib
import io
import json
import logging
import math
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.sharding import Mesh, PartitionSpec

from bcss_jax.errors import ConfigError, DataError, UserError, first_line
from bcss_jax.labels import LabelScheme, scheme_from_json
from bcss_jax.slides.slide_list import folder_name
from bcss_jax.slides.slide_model import SlideModel
from bcss_jax.summary import versions
from bcss_jax.tiles import printable

FORMAT = 1  # of model.json; raised when older code could not use what newer code writes
PROGRAM, ABOUT = "model.stablehlo", "model.json"
PLATFORMS = ("cpu", "cuda", "tpu")
MAX_ABOUT = 1 << 20  # bytes
MAX_PROGRAM = (1 << 31) - 1  # bytes, what a flatbuffer can hold
MAX_WINDOW = 1 << 14  # pixels
USE = (
    "Research use only: not for diagnosis, nor for any decision about a patient. The licences of the data and of "
    "pretrained weights that the network was trained with hold for its weights."
)
log = logging.getLogger(__name__)


def exported(model: SlideModel) -> export.Exported:
    """The network as a program of its own.

    The layers choose forms for the CPU (`models.layers.Conv`) that differ in their gradients alone, so that one program
    is right on every platform.

    Args:
      model: a network with its weights.

    Returns:
      uint8 [N, window, window, 3] -> float32 [N, window, window, K].
    """
    arrays = jax.tree.map(np.asarray, model.arrays)

    def probabilities(images):
        # Without the barrier XLA computes with the weights while it compiles, which takes longer and rounds otherwise.
        return model.probabilities(jax.lax.optimization_barrier(arrays), images)

    shape = (*export.symbolic_shape("N"), model.window, model.window, 3)
    with _no_paths_of_this_machine():
        return export.export(jax.jit(probabilities), platforms=PLATFORMS)(jax.ShapeDtypeStruct(shape, jnp.uint8))


def artefact_of(model: SlideModel) -> bytes:
    """The content of the file: the same bytes for the same model.

    Args:
      model: of a checkpoint.

    Raises:
      ConfigError: the network is larger than such a file may be.
    """
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(model.arrays))
    if size > MAX_PROGRAM - (1 << 26):
        raise ConfigError(f"{model.name}: weights of {size / 1e9:.1f} GB, an exported program holds at most 2 GB")
    about = {
        "format": FORMAT,
        "name": model.name,
        "network": model.about["network"],
        "label_scheme": model.scheme.to_json(),
        "classes": list(model.scheme.evaluated_names),
        "mpp": model.mpp,
        "window": model.window,
        "image_shape": _image_shape(model.window),
        "image_dtype": "uint8",
        "tta": model.about["tta"],
        "platforms": PLATFORMS,
        "params_sha256": model.about["params_sha256"],
        "checkpoint": {name: model.about["checkpoint"][name] for name in ("which", "step", "epoch")},
        "versions": versions(),
        "use": USE,
    }
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as file:
        for name, entry in ((ABOUT, json.dumps(about, indent=1).encode()), (PROGRAM, exported(model).serialize())):
            file.writestr(zipfile.ZipInfo(name), entry)  # without a date
    return content.getvalue()


def model_of_artefact(path: Path, mesh: Mesh, tta: bool) -> SlideModel:
    """The model of an exported file; each device of the mesh computes its share of the images.

    Args:
      path: the file.
      mesh: devices to compute on.
      tta: the mean over flips and quarter turns is asked for.

    Raises:
      DataError: it is none, damaged, of another format, contradicts itself, or is not for this jax or these devices.
      ConfigError: it was exported without the mean over flips and turns that is asked for.
    """
    where = printable(path)
    try:
        about, content = _read(path)
        scheme = _checked(about)
        program = export.deserialize(bytearray(content))
        _check_interface(program, about["window"], len(scheme.evaluated))
        platform = _platform(mesh)
        if platform not in program.platforms:
            raise ValueError(f"made for {', '.join(program.platforms)}, the devices here are {platform}")
        split = PartitionSpec("data")
        run = jax.shard_map(program.call, mesh=mesh, in_specs=split, out_specs=split, check_vma=False)
        # Only now is the program itself looked at.
        jax.jit(run).lower(jax.ShapeDtypeStruct((mesh.size, *_image_shape(about["window"])[1:]), jnp.uint8))
    except UserError:  # among them a request to stop
        raise
    except OSError as error:
        raise DataError(f"{where}: cannot be read ({error.strerror or first_line(error)}); check the path") from error
    except Exception as error:  # zipfile, flatbuffers and MLIR raise many kinds for what is damaged
        raise DataError(
            f"{where}: expected a network written by python -m bcss_jax.export, found: {first_line(error)}; export the "
            "checkpoint again"
        ) from error
    if tta and not about["tta"]:
        raise ConfigError(
            f"--tta: {where} was exported without it; export the checkpoint again with --tta, or name the run itself"
        )
    if about["tta"] and not tta:
        log.info("%s: exported with --tta, so the mean over flips and turns of every window", where)
    name = folder_name(Path(path))
    identity = {
        "stablehlo_sha256": hashlib.sha256(content).hexdigest(),
        "label_scheme": about["label_scheme"],
        "mpp": about["mpp"],
    }
    described = {
        "name": name,
        "network": about["network"],
        "label_scheme": scheme.to_json(),
        "params_sha256": about["params_sha256"],
        "checkpoint": {"artefact": str(Path(path).resolve()), "exported_from": about["name"], **about["checkpoint"]},
        "tta": about["tta"],
    }
    return SlideModel(
        name,
        scheme,
        float(about["mpp"]),
        about["window"],
        identity,
        described,
        (),
        lambda arrays, images: run(images),
        any_window=False,
    )


def _read(path: Path) -> tuple[dict, bytes]:
    """Content of model.json and bytes of the program. Sizes are looked at first: a damaged file may claim any."""
    if not zipfile.is_zipfile(path):
        raise ValueError("no ZIP archive, or a part of one")
    with zipfile.ZipFile(path) as file:
        entries = {entry.filename: entry for entry in file.infolist()}
        if sorted(entry.filename for entry in file.infolist()) != [ABOUT, PROGRAM]:
            raise ValueError(f"an archive of {', '.join(map(ascii, sorted(entries)))[:200]}")
        for name, most in ((ABOUT, MAX_ABOUT), (PROGRAM, MAX_PROGRAM)):
            entry = entries[name]
            if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
                raise ValueError(f"{name} is compressed")
            if entry.file_size > min(most, Path(path).stat().st_size):
                raise ValueError(f"{name} claims {entry.file_size} bytes")
        try:
            about = json.loads(file.read(ABOUT), parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{ABOUT} is no JSON ({first_line(error)})") from error
        return about, file.read(PROGRAM)


def _refuse_constant(name: str):
    raise ValueError(f"{name} is no number")


def _checked(about: Any) -> LabelScheme:
    """The label scheme of model.json. Raises ValueError unless all that is used of it is as `artefact_of` writes it."""
    found = about.get("format") if isinstance(about, dict) else None
    if found != FORMAT or isinstance(found, bool):
        remedy = ", which a newer bcss_jax reads" if isinstance(found, int) and found > FORMAT else ""
        raise ValueError(f"format {ascii(found)[:80]} of {ABOUT}{remedy}; this program reads {FORMAT}")
    scheme = scheme_from_json(about.get("label_scheme"))
    checkpoint = about.get("checkpoint")
    parts = checkpoint if isinstance(checkpoint, dict) else {}
    right = {
        "name": _is_text(about.get("name")),
        "network": _is_text(about.get("network")),
        "classes": about.get("classes") == list(scheme.evaluated_names),
        "mpp": type(about.get("mpp")) in (int, float) and math.isfinite(about["mpp"]) and 0 < about["mpp"] < 1000,
        "window": type(about.get("window")) is int and 0 < about["window"] <= MAX_WINDOW,
        "tta": type(about.get("tta")) is bool,
        "params_sha256": _is_text(about.get("params_sha256")) and re.fullmatch("[0-9a-f]{64}", about["params_sha256"]),
        "checkpoint": set(parts) == {"which", "step", "epoch"}
        and parts["which"] in ("best", "latest")
        and type(parts["step"]) is int
        and type(parts["epoch"]) in (int, type(None)),
    }
    wrong = [name for name, fits in right.items() if not fits]
    if wrong:
        raise ValueError(f"{wrong[0]} in {ABOUT} is {ascii(about.get(wrong[0]))[:80]}")
    return scheme


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable() and len(value) <= 200


def _check_interface(program: export.Exported, window: int, classes: int) -> None:
    """Raises ValueError unless the program takes and gives what model.json says."""
    of_symbols = [str(aval.shape[0]) for aval in (*program.in_avals, *program.out_avals) if aval.shape]
    found = [(aval.dtype.name, *aval.shape[1:]) for aval in (*program.in_avals, *program.out_avals)]
    expected = [("uint8", *_image_shape(window)[1:]), ("float32", window, window, classes)]
    if len(program.in_avals) != 1 or found != expected or len(set(of_symbols)) != 1 or of_symbols[0].isdecimal():
        raise ValueError(f"a program of {', '.join(map(str, program.in_avals))} -> {', '.join(map(str, program.out_avals))}"
                         f", {ABOUT} says uint8[N,{window},{window},3] -> float32[N,{window},{window},{classes}]")  # fmt: skip
    if program.nr_devices != 1 or program.ordered_effects or program.unordered_effects:
        raise ValueError("a program that does more than compute")


def _image_shape(window: int) -> list[int | None]:
    return [None, window, window, 3]


def _platform(mesh: Mesh) -> str:
    """As jax.export calls it: what JAX's devices call gpu may be of two makers."""
    device = mesh.devices.flat[0]
    if device.platform != "gpu":
        return device.platform
    return "rocm" if "rocm" in device.client.platform_version.lower() else "cuda"


@contextlib.contextmanager
def _no_paths_of_this_machine() -> Iterator[None]:
    """Programs name the lines of source that they were made of: within, neither folders nor the lines that called them."""
    changed = {
        "jax_hlo_source_file_canonicalization_regex": r"^.*[/\\]",
        "jax_include_full_tracebacks_in_locations": False,
    }
    before = {name: getattr(jax.config, name) for name in changed}
    try:
        for name, value in changed.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
