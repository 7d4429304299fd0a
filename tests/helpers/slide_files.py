"""Writes small slides for tests, intact and damaged."""

import numpy as np
import tifffile

from bcss_jax.slides.grid import grid_of


def picture(width, height, seed=0):
    """Returns colored patches of different sizes on a gradient, which reveal every shift and every missing area."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((height, width, 3))
    for side in (8, 61):
        cells = rng.integers(0, 100, (height // side + 1, width // side + 1, 3))
        pixels += np.kron(cells, np.ones((side, side, 1)))[:height, :width]
    pixels += np.linspace(0, 55, width)[None, :, None]
    return pixels.astype(np.uint8)


def tiled(path, pixels, *, levels=1, mpp=0.25, tile=64, compression="deflate", **options):
    """Writes a tiled TIFF with a pyramid; the lower levels are plain subsamples."""
    density = None if mpp is None else 10_000 / mpp
    with tifffile.TiffWriter(path) as tiff:
        for level in range(levels):
            tiff.write(
                np.ascontiguousarray(pixels[:: 2**level, :: 2**level]),
                tile=(tile, tile),
                photometric="rgb" if pixels.ndim == 3 else "minisblack",
                compression=compression,
                resolution=None if density is None else (density / 2**level, density / 2**level),
                resolutionunit=None if density is None else "CENTIMETER",
                subfiletype=1 if level else 0,
                metadata=None,
                **options,
            )
    return path


def svs(path, pixels, *, mpp="0.25", tile=64, compression="jpeg", **options):
    """Writes a file that OpenSlide reads as an Aperio scan; `mpp` is the text in its description."""
    height, width = pixels.shape[:2]
    description = f"Aperio Image Library v10.0.51\r\n{width}x{height}|AppMag = 40"
    description += "" if mpp is None else f"|MPP = {mpp}"
    tifffile.imwrite(
        path,
        pixels,
        tile=(tile, tile),
        photometric="rgb",
        compression=compression,
        description=description,
        metadata=None,
        **options,
    )
    return path


def spoil(path, tiles, page=0):
    """Overwrites the bytes of some tiles."""
    with tifffile.TiffFile(path) as tiff:
        offsets, counts = tiff.pages[page].dataoffsets, tiff.pages[page].databytecounts
    with open(path, "r+b") as file:
        for tile in tiles:
            file.seek(offsets[tile])
            file.write(b"\x5a" * counts[tile])
    return path


def overwrite(path, page=0, **tags):
    """Changes values of TIFF tags in place."""
    with tifffile.TiffFile(path, mode="r+") as tiff:
        for name, value in tags.items():
            tiff.pages[page].tags[name].overwrite(value)
    return path


def own_grid(slide, mpp=0.25, model_mpp=0.25):
    """Returns the grid of a slide (or of a pool's `info`) with square pixels."""
    level = slide.levels[0]
    return grid_of(level.width, level.height, (mpp, mpp), model_mpp)


def whole(slide, level=0):
    """Returns all pixels of a level."""
    return slide.read(level, 0, 0, *slide.levels[level][:2])


def difference(a, b):
    """Returns the absolute differences of pixels as integers."""
    return np.abs(a.astype(int) - b)
