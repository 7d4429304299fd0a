"""A small slide with its ground truth, drawn as the built-in sample, so that nothing has to be downloaded."""

from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from bcss_jax.common.files import storage_errors, whole_file
from bcss_jax.data import synthetic

COLUMNS = 4
MARGIN = synthetic.SIZE // 2  # pixels of glass around the tissue
GLASS = 243  # gray level, near that of the scanners of the sample
PATIENT = synthetic.TRAIN_PATIENTS  # the first one whose patches are not trained on


def write_sample_slide(folder: Path) -> tuple[Path, Path]:
    """Writes slide.tiff, a mosaic of all patches of one validation patient on glass, and truth.png, its mask of codes.

    Args:
      folder: is made if it is not there.

    Returns:
      The paths of the slide, which states its 0.25 um/px, and of the mask.

    Raises:
      StorageError: they cannot be written.
    """
    rows = -(-len(synthetic.PLANS) // COLUMNS)
    height, width = (count * synthetic.SIZE + 2 * MARGIN for count in (rows, COLUMNS))
    pixels = np.full((height, width, 3), GLASS, np.uint8)
    codes = np.zeros((height, width), np.uint8)
    for number in range(len(synthetic.PLANS)):
        patch = synthetic.draw_patch(PATIENT, number)
        y, x = (MARGIN + index * synthetic.SIZE for index in divmod(number, COLUMNS))
        place = np.s_[y : y + synthetic.SIZE, x : x + synthetic.SIZE]
        pixels[place], codes[place] = patch.image, patch.mask
    slide, truth = folder / "slide.tiff", folder / "truth.png"
    per_centimeter = 1e4 / synthetic.MPP
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(slide) as path:
            tifffile.imwrite(
                path,
                pixels,
                tile=(256, 256),
                photometric="rgb",
                compression="deflate",
                resolution=(per_centimeter, per_centimeter),
                resolutionunit="CENTIMETER",
                metadata=None,
            )
        with whole_file(truth) as path:
            Image.fromarray(codes).save(path, "PNG")
    return slide, truth
