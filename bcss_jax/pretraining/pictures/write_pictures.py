"""Writes the pictures of a pretrained encoder into a folder."""

from pathlib import Path

import numpy as np

from bcss_jax.common.figures import write
from bcss_jax.models.encoders.vision_transformer.network import VisionTransformer
from bcss_jax.models.image_normalization import ImageStatistics
from bcss_jax.pretraining.pictures.attention import attention_maps
from bcss_jax.pretraining.pictures.components import tile_components
from bcss_jax.pretraining.pictures.slide_components import slide_components
from bcss_jax.pretraining.pictures.tile_encoder import TileEncoder
from bcss_jax.pretraining.tiles.tiles import Tiles
from bcss_jax.slides.batch.slide_list import Entry

WITH_ATTENTION, WITH_COMPONENTS = 4, 16  # tiles
ATTENTION, COMPONENTS, SLIDE = "attention.png", "components.png", "slide_components.png"


def write_pictures(
    folder: Path,
    encoder: VisionTransformer,
    statistics: ImageStatistics,
    tiles: Tiles,
    *,
    name: str,
    seed: int = 0,
    slide: Entry | None = None,
    mpp: float | None = None,
) -> list[Path]:
    """Writes attention.png and components.png of some tiles, and slide_components.png of a slide.

    Args:
      folder: exists; files in it are replaced.
      encoder: the network; is set to evaluation mode.
      statistics: that its images are normalized with.
      tiles: some of them are drawn.
      name: of the encoder, for the titles.
      seed: of the drawing.
      slide: a slide that the encoder has seen, or another one; None: no picture of a slide.
      mpp: um per pixel of the tiles; needed with a slide.

    Returns:
      The paths of the files.

    Raises:
      DataError: the slide cannot be read or has no tissue.
      StorageError: a file cannot be written.
    """
    of_tiles = TileEncoder(encoder, statistics)
    drawn = np.sort(np.random.default_rng(seed).permutation(len(tiles))[:WITH_COMPONENTS])
    images, names = tiles.read(drawn), [str(tiles.names[i]) for i in drawn]
    some = slice(None, None, max(1, len(drawn) // WITH_ATTENTION))
    of_some = images[some][:WITH_ATTENTION], names[some][:WITH_ATTENTION]
    figures = {
        ATTENTION: attention_maps(of_tiles, *of_some, f"{name}: attention of the last block"),
        COMPONENTS: tile_components(of_tiles, images, names, f"{name}: components of the features of patches"),
    }
    if slide is not None:
        assert mpp is not None, "with a slide"
        figures[SLIDE] = slide_components(slide, of_tiles, mpp)[1]
    for file, figure in figures.items():
        write(figure, folder / file)
    return [folder / file for file in figures]
