"""Measures whether memory and time stay the same when slides grow: the same tissue on more and more glass.

    python benchmarks/slide_scale.py --checkpoint=RUN [--sides=10000,50000,200000] [--mm2=2.3] [--folder=FOLDER]
    python benchmarks/slide_scale.py --checkpoint=RUN --dense=200000x6000 [--window=512]

Draws slides with the same area of tissue, as tiled pyramids at 0.25 um per pixel, and segments each one with
`python -m bcss_jax.segment`. The tissue is in squares of half a millimeter, which are scattered over the whole slide
and never touch, so that all slides need the same windows. Memory is the sum over the command's process and its reader
processes, sampled every 0.2 s. A slide of 2048 pixels a side is segmented first and shows what the model itself needs.
Differences are clearest with a small network:

    python -m bcss_jax.main --config=configs/unet.py --config.model.width=4 --config.epochs=1 --workdir=runs/tiny

Memory depends on the width of a slide and not on its height. A strip full of tissue (--dense) therefore shows the most
that a slide of that width can need. It is segmented with probabilities, and more classes need more memory
(--config.labels=five_classes).
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time
import zlib

import numpy as np
import tifffile
from scipy.ndimage import gaussian_filter

ROOT = pathlib.Path(__file__).resolve().parents[1]
MPP, TILE, LEVELS = 0.25, 512, (1, 4, 16, 64)
SQUARE = 4  # tiles along the side of a square of tissue
GLASS, STAINS = (243, 241, 244), ((226, 158, 196), (120, 70, 150))


def textures(count: int = 8) -> list[np.ndarray]:
    """Returns tiles of synthetic tissue, nuclei on stroma: uint8 [TILE, TILE, 3]."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        field = gaussian_filter(rng.normal(size=(TILE, TILE)), 5, mode="wrap")
        nuclei = (field > field.std())[..., None]
        pixels = np.where(nuclei, STAINS[1], STAINS[0]) + rng.normal(0, 8, (TILE, TILE, 1))
        found.append(np.clip(pixels, 0, 255).astype(np.uint8))
    return found


def tissue_tiles(side: int, mm2: float, every: int = 1) -> np.ndarray:
    """Returns which tiles of level 0 of a square slide are tissue, bool [tiles, tiles].

    Squares of tissue are placed at every `every`-th position along both axes.
    """
    tiles = -(-side // TILE)
    squares = -(-tiles // SQUARE)
    wanted = round(mm2 / (SQUARE * TILE * MPP / 1000) ** 2)
    places = [
        row * squares + column
        for row in range(0, tiles // SQUARE, every)
        for column in range(0, tiles // SQUARE, every)
    ]
    if wanted > len(places):
        raise SystemExit(f"error: {mm2:g} mm2 of tissue do not fit on a slide of {side} pixels")
    mask = np.zeros((squares, squares), bool)
    mask.flat[np.random.default_rng(1).permutation(places)[:wanted]] = True
    return np.kron(mask, np.ones((SQUARE, SQUARE), bool))[:tiles, :tiles]


def write_slide(path: pathlib.Path, width: int, height: int, mask: np.ndarray) -> None:
    """Writes a pyramid of deflated tiles with tissue in the level-0 tiles of the mask; few tiles are in memory."""
    drawn = [zlib.compress(texture.tobytes(), 1) for texture in textures()]
    glass = zlib.compress(np.full((TILE, TILE, 3), GLASS, np.uint8).tobytes(), 1)
    mean = np.mean([texture.mean(axis=(0, 1)) for texture in textures()], axis=0).astype(np.uint8)

    def tiles(level):
        for row in range(-(-height // (level * TILE))):
            for column in range(-(-width // (level * TILE))):
                if level == 1:
                    yield drawn[(7 * row + column) % len(drawn)] if mask[row, column] else glass
                    continue
                here = mask[row * level : (row + 1) * level, column * level : (column + 1) * level]
                if not here.any():
                    yield glass
                    continue
                picture = np.kron(here, np.ones((TILE // level, TILE // level), bool))
                pixels = np.full((TILE, TILE, 3), GLASS, np.uint8)
                pixels[: picture.shape[0], : picture.shape[1]][picture] = mean
                yield zlib.compress(pixels.tobytes(), 1)

    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for level in LEVELS:
            density = 1e4 / (MPP * level)
            file.write(
                tiles(level),
                shape=(-(-height // level), -(-width // level), 3),
                dtype=np.uint8,
                tile=(TILE, TILE),
                photometric="rgb",
                compression="adobe_deflate",
                resolution=(density, density),
                resolutionunit="CENTIMETER",
                subfiletype=int(level > 1),
                metadata=None,
            )


def resident(process: int) -> int:
    """Returns the bytes that a process and its children hold in memory."""
    total, waiting = 0, [process]
    while waiting:
        number = waiting.pop()
        try:
            status = pathlib.Path(f"/proc/{number}/status").read_text()
            total += int(status.partition("VmRSS:")[2].split()[0]) * 1024
            for task in pathlib.Path(f"/proc/{number}/task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
        except (OSError, IndexError):
            continue  # the process has ended
    return total


def segment(command: list[str], slide: pathlib.Path, output: pathlib.Path) -> tuple[dict, float, int]:
    """Runs the command on a slide; returns its summary, seconds and peak memory in bytes."""
    command = [*command, f"--slide={slide}"]
    start, peak = time.perf_counter(), 0
    with subprocess.Popen([*command, f"--output={output}", "--overwrite"], cwd=ROOT, stdout=subprocess.PIPE) as process:
        while process.poll() is None:
            peak = max(peak, resident(process.pid))
            time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"error: the command ended with {process.returncode}")
    return json.loads((output / slide.stem / "summary.json").read_text()), time.perf_counter() - start, peak


def main() -> None:
    """Draws and segments the slides, and prints time and memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, type=lambda path: str(pathlib.Path(path).resolve()))
    parser.add_argument("--sides", default="10000,50000,200000")
    parser.add_argument("--mm2", type=float, default=2.3)
    parser.add_argument("--dense", help="WIDTHxHEIGHT: segment a slide full of tissue instead of the others")
    parser.add_argument("--window", type=int, help="passed to the command")
    parser.add_argument("--folder", type=pathlib.Path, help="folder for slides and results; a temporary one by default")
    args = parser.parse_args()
    command = [sys.executable, "-m", "bcss_jax.segment", f"--checkpoint={args.checkpoint}"]
    command += [f"--window={args.window}"] if args.window else []
    command += ["--probabilities"] if args.dense else []
    if args.dense:
        sizes = [tuple(map(int, args.dense.split("x")))]
        masks = [np.ones((-(-sizes[0][1] // TILE), -(-sizes[0][0] // TILE)), bool)]
    else:
        sides = list(map(int, args.sides.split(",")))
        sizes, masks = [(side, side) for side in sides], [tissue_tiles(side, args.mm2, every=2) for side in sides]
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.folder or pathlib.Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        write_slide(folder / "model.tif", SQUARE * TILE, SQUARE * TILE, np.ones((SQUARE, SQUARE), bool))
        _, _, alone = segment(command, folder / "model.tif", folder / "out")
        print(f"the model on a slide of {SQUARE * TILE} pixels: {alone / 2**20:.0f} MiB", flush=True)
        for (width, height), mask in zip(sizes, masks, strict=True):
            slide = folder / f"{width}x{height}.tif"
            write_slide(slide, width, height, mask)
            summary, seconds, peak = segment(command, slide, folder / "out")
            area, parts = summary["tissue_area_mm2"], summary["seconds"]
            print(
                f"{width} x {height}, {slide.stat().st_size / 2**20:.0f} MiB file: {area:.2f} mm2 in "
                f"{summary['windows']['computed']} windows, {seconds:.1f} s, {parts['total'] / area:.2f} s/mm2 "
                f"(computing {parts['computing'] / area:.2f}), peak {peak / 2**20:.0f} MiB, "
                f"{(peak - alone) / 2**20:.0f} over the model's own; "
                + ", ".join(f"{name} {value:.1f}" for name, value in parts.items()),
                flush=True,
            )


if __name__ == "__main__":
    main()
