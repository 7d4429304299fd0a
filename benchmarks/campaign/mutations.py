"""Damages the bytes of every kind of file that a user gives: read or refused in one line, never a crash or a hang.

A change that leaves a file readable cannot be told from another file, so only the way in which reading ends is judged.
The project's own files, which carry digests, are damaged in `own_files.py` and `checkpoints.py`.
"""

import functools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import inputs
import isolated
import jax
import numpy as np
import safetensors.numpy
import tifffile
from inputs import Inputs
from PIL import Image
from trials import Outcome

from bcss_jax.data.image_files import read_image, read_mask
from bcss_jax.errors import DataError
from bcss_jax.inference.exported_model import model_of_artifact
from bcss_jax.labels import find_scheme
from bcss_jax.models.weights.files import read_weights
from bcss_jax.nnunet.plan_file import read_plan
from bcss_jax.slides.annotations.geojson import read_regions
from bcss_jax.slides.batch.slide_list import read_list
from bcss_jax.slides.reading.backend import TileError
from bcss_jax.slides.reading.mask_file import open_mask
from bcss_jax.slides.reading.open_slide import open_slide
from bcss_jax.training.sharding import make_mesh

AT_ONCE = 50  # files that one process reads


def outcomes(source: Inputs, rounds: int, seed: int, keep: Path, only: str) -> Iterator[Outcome]:
    """Mutates each kind of file `rounds` times."""
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder:
        for number, (name, read) in enumerate(files(source, Path(folder)).items()):
            if only not in name:
                continue
            sound = (Path(folder) / name).read_bytes()
            rng = np.random.default_rng((seed, number))
            for first in range(0, rounds, AT_ONCE):
                yield from _batch(
                    Path(folder), name, sound, read, rng, range(first, min(first + AT_ONCE, rounds)), keep
                )


def _batch(folder: Path, name: str, sound: bytes, read, rng, numbers: range, keep: Path) -> Iterator[Outcome]:
    paths, kinds = [], []
    for number in numbers:
        content, kind = mutated(sound, rng)
        path = folder / f"{number}" / name
        path.parent.mkdir()
        path.write_bytes(content)
        paths.append(path)
        kinds.append(kind)
    ended = isolated.call_all([functools.partial(_nothing, read, path) for path in paths])
    for number, path, kind, returned in zip(numbers, paths, kinds, ended, strict=True):
        fault = isolated.fault_of(returned)
        if fault:
            shutil.copytree(path.parent, keep / f"mutation_{name}_{number}", dirs_exist_ok=True)
        shutil.rmtree(path.parent)
        faults = (fault,) if fault else ()
        yield Outcome(
            f"mutations of {name}", f"{number}: {kind}", returned.code, returned.line[:200], returned.seconds, faults
        )


def _nothing(read: Callable[[Path], object], path: Path) -> None:
    """Reads a file for the way in which that ends; pixels that cannot be decoded are refused, too."""
    try:
        read(path)
    except TileError as error:
        raise DataError(str(error)) from error


def mutated(content: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    """Returns damaged bytes, and what was done."""
    changed, size = bytearray(content), len(content)
    place = int(rng.integers(size)) if rng.random() < 0.5 else int(rng.integers(min(size, 400)))  # headers are short
    kind = str(rng.choice(["bit", "byte", "extreme", "zeros", "cut", "insert", "repeat", "digit", "noise"]))
    if kind == "bit":
        changed[place] ^= 1 << int(rng.integers(8))
    elif kind == "byte":
        changed[place] = int(rng.integers(256))
    elif kind == "extreme":
        value = bytes.fromhex(str(rng.choice(["ffffffff", "00000000", "ffffff7f", "00000080", "7fffffff", "80000000"])))
        changed[place : place + 4] = value
    elif kind == "zeros":
        changed[place : place + 64] = bytes(len(changed[place : place + 64]))
    elif kind == "cut":
        del changed[place:]
    elif kind == "insert":
        changed[place:place] = rng.bytes(int(rng.integers(1, 40)))
    elif kind == "repeat":
        changed[place:place] = changed[max(0, place - 100) : place]
    elif kind == "digit":
        digits = [i for i, byte in enumerate(changed) if byte in b"0123456789"] or [place]
        changed[digits[int(rng.integers(len(digits)))]] = int(rng.choice(list(b"0123456789-.e")))
    else:
        noise = rng.bytes(int(rng.integers(1, 200)))
        changed[place : place + len(noise)] = noise
    return bytes(changed), f"{kind} at {place}"


def files(source: Inputs, folder: Path) -> dict[str, Callable[[Path], object]]:
    """Writes a sound file of each kind; returns the function that reads it, by the file's name."""
    pixels, codes = inputs.tissue(96, 80)
    big = inputs.tissue(*inputs.SLIDE)[0]
    Image.fromarray(pixels).save(folder / "tile.png")
    Image.fromarray(pixels).save(folder / "tile.jpg", quality=95)
    tifffile.imwrite(folder / "tile.tif", pixels, photometric="rgb", compression="lzw", metadata=None)
    Image.fromarray(codes).save(folder / "mask.png")
    palette = Image.fromarray(codes, "P")
    palette.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0])
    palette.save(folder / "palette.png")
    tifffile.imwrite(folder / "mask.tif", codes, tile=(16, 16), compression="deflate", metadata=None)
    inputs.slide(folder / "deflate.tif")
    inputs.slide(folder / "jpeg.tif", compression="jpeg")
    text = "Aperio Image Library v10\r\n320x256|AppMag = 40|MPP = 0.25"
    inputs.slide(folder / "aperio.svs", compression="jpeg", description=text)
    physical = {"axes": "YXS", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25}
    tifffile.imwrite(folder / "slide.ome.tif", big, photometric="rgb", tile=(64, 64), metadata=physical)
    Image.fromarray(big).save(folder / "slide.png")
    inputs.regions(folder / "tissue.geojson")
    inputs.slide_list(folder / "list.csv", {"slide": "a.tif", "mpp": 0.25}, {"slide": "b.tif", "mpp": 0.5})
    (folder / "labels.toml").write_bytes((inputs.ROOT / "docs/examples/my_labels.toml").read_bytes())
    arrays = {"kernel": np.ones((3, 3, 3, 4), np.float32), "bias": np.zeros(4, np.float32)}
    np.savez_compressed(folder / "weights.npz", **arrays)
    safetensors.numpy.save_file(arrays, folder / "weights.safetensors")
    shutil.copy(source.folder / "plans.json", folder)
    shutil.copy(source.folder / "model.bcss", folder)
    image, slide = read_image, _whole_slide
    return {
        "tile.png": image, "tile.jpg": image, "tile.tif": image, "mask.png": _mask, "palette.png": _mask,
        "mask.tif": _mask_rows, "deflate.tif": slide, "jpeg.tif": slide, "aperio.svs": slide, "slide.ome.tif": slide,
        "slide.png": slide, "tissue.geojson": read_regions, "list.csv": read_list,
        "labels.toml": lambda path: find_scheme(str(path)), "weights.npz": read_weights,
        "weights.safetensors": read_weights, "plans.json": read_plan,
        "model.bcss": _exported,
    }  # fmt: skip


def _mask(path: Path) -> object:
    return read_mask(path, "kaggle3")


def _mask_rows(path: Path) -> None:
    with open_mask(path, "kaggle3") as mask:
        mask.rows(0, mask.shape[0])


def _exported(path: Path) -> None:
    model_of_artifact(path, make_mesh(jax.local_devices()), False)


def _whole_slide(path: Path) -> None:
    slide = open_slide(path)
    level = slide.levels[0]
    slide.read(0, 0, 0, min(level.width, 512), min(level.height, 512))
    slide.close()
