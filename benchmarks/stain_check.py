"""Measures the warning of other stains on H&E, and on DAB that is drawn into H&E by Beer and Lambert's law.

    python benchmarks/stain_check.py --data=../shared/data

Each line: how many images, the largest and smallest share of brown tissue, and how many would be warned of.
"""

import argparse
from pathlib import Path

import numpy as np
import openslide
from PIL import Image
from scipy import ndimage

from bcss_jax.data.inspection.stain import SEPARATION
from bcss_jax.slides.tissue.stain_check import brown_share, out_of_domain

HEMATOXYLIN, DAB = (np.array(v) / np.linalg.norm(v) for v in ((0.65, 0.70, 0.29), (0.27, 0.57, 0.78)))  # Ruifrok's
FOLDERS = ("edge_tiles/*", "bcss_kaggle224/*[!k]/*.png", "more/*/images/*", "unlabelled/*/*.jpg")
SLIDES = ("CMU-1-Small-Region.svs", "TCGA-A2-A0D2_pyramid.tif")
COARSER = 8  # thumbnails have fewer pixels than tiles


def with_dab(tile: np.ndarray, share: float, density: float, seed: int = 0) -> np.ndarray:
    """Returns a tile with its hematoxylin, without its eosin, and with DAB in patches.

    Args:
      tile: uint8 [H, W, 3], H&E.
      share: of the tile that has DAB.
      density: optical density of the DAB (length of its vector).
      seed: of the patches.
    """
    optical = -np.log10((tile.astype(np.float64) + 1) / 256)
    hematoxylin = np.maximum(optical @ SEPARATION, 0)[..., 0]
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).random(hematoxylin.shape), 10)
    patches = ndimage.gaussian_filter((noise > np.quantile(noise, 1 - share)).astype(float), 2)
    drawn = 0.05 + hematoxylin[..., None] * HEMATOXYLIN + density * patches[..., None] * DAB
    return np.clip(256 * 10**-drawn - 1, 0, 255).astype(np.uint8)


def coarser(image: np.ndarray, factor: int = COARSER) -> np.ndarray:
    """Returns an image with fewer pixels, as a thumbnail has."""
    size = (max(1, image.shape[1] // factor), max(1, image.shape[0] // factor))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))


def _on_white(path):
    image = Image.open(path).convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return np.asarray(Image.alpha_composite(white, image).convert("RGB"))


def _line(name, images):
    shares = [brown_share(image) for image in images]
    warned = sum("brown" in (out_of_domain(image) or "") for image in images)
    print(f"{name:42s} {len(images):4d} {max(shares):.4f} {min(shares):.4f} {warned:4d}")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of edge_tiles, slides and others")
    data = parser.parse_args().data
    for pattern in FOLDERS:
        images = [_on_white(path) for path in sorted(data.glob(pattern)) if path.suffix in (".png", ".jpg")]
        _line(f"{pattern}, full size", images)
        _line(f"{pattern}, coarser", [coarser(image) for image in images])
    for name in SLIDES:
        slide = openslide.OpenSlide(data / "slides" / name)
        _line(name, [np.asarray(slide.get_thumbnail((side, side)).convert("RGB")) for side in (200, 400, 800)])
    tiles = [_on_white(path) for path in sorted(data.glob("bcss_kaggle224/train/*.png"))[:20]]
    for share in (0.05, 0.1, 0.25, 0.5):
        for density in (0.2, 0.4, 0.8, 1.5):
            drawn = [with_dab(tile, share, density, seed) for seed, tile in enumerate(tiles)]
            _line(f"DAB of density {density:g} on {100 * share:g} %", [coarser(image) for image in drawn])


if __name__ == "__main__":
    main()
