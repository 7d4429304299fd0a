"""A color stands for one code in all masks of the slides of a command."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from bcss_jax.data.mask_codes import ContradictoryColorsError
from bcss_jax.slides.batch.mask_colors import check_mask_colors
from bcss_jax.slides.batch.slide_list import Entry

CODES = np.array([[0, 1, 2], [2, 1, 1]], np.uint8)
WHITE, RED, GREEN, BLUE = (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255)


def write(path, colors, codes=CODES):
    """Writes a mask whose code i has the i-th color, as PNG or as TIFF in tiles."""
    if path.suffix == ".tif":
        table = np.zeros((3, 256), np.uint16)
        table[:, : len(colors)] = np.array(colors).T * 257
        tifffile.imwrite(path, np.kron(codes, np.ones((16, 16), np.uint8)), photometric="palette", colormap=table,
                         tile=(16, 16), metadata=None)  # fmt: skip
    else:
        indexed = Image.fromarray(codes, "P")
        indexed.putpalette(np.array(colors, np.uint8).ravel().tolist())
        indexed.save(path)
    return path


def truths(*paths):
    return [Entry(Path("a.svs"), truth=str(path)) for path in paths]


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_masks_of_ground_truth_that_contradict_one_another_are_refused(tmp_path, suffix):
    one = write(tmp_path / f"1{suffix}", [BLUE, RED, GREEN])
    same = write(tmp_path / f"2{suffix}", [BLUE, RED, GREEN])
    check_mask_colors(truths(one, same), "bcss22")
    other = write(tmp_path / "3.png", [BLUE, GREEN, RED], np.array([0, 2, 1], np.uint8)[CODES])  # looks the same
    with pytest.raises(
        ContradictoryColorsError, match="the same code in all masks, found .* for code 1, which is code 2"
    ):
        check_mask_colors(truths(one, same, other), "bcss22")
    check_mask_colors(truths(other), "bcss22")


def test_masks_of_tissue_that_contradict_one_another_are_refused(tmp_path):
    one = Entry(Path("a.svs"), tissue=str(write(tmp_path / "1.png", [WHITE, RED], (CODES > 0).astype(np.uint8))))
    other = Entry(Path("b.svs"), tissue=str(write(tmp_path / "2.png", [RED, WHITE], (CODES > 0).astype(np.uint8))))
    gray = Entry(Path("b.svs"), tissue=str(write(tmp_path / "3.png", [(0, 0, 0), WHITE], (CODES > 0).astype(np.uint8))))
    check_mask_colors([one, one], "bcss22")
    for contradicting in (other, gray):
        with pytest.raises(ContradictoryColorsError, match="for code"):
            check_mask_colors([one, contradicting], "bcss22")


def test_masks_that_cannot_be_used_are_left_to_their_slide(tmp_path):
    (tmp_path / "text.png").write_text("text")
    twice = write(tmp_path / "twice.png", [BLUE, RED, RED])
    paths = (tmp_path / "none.png", tmp_path / "text.png", twice, write(tmp_path / "1.png", [BLUE, RED, GREEN]))
    check_mask_colors(truths(*paths), "bcss22")
    regions = Entry(Path("a.svs"), tissue=str(tmp_path / "a.geojson"))
    check_mask_colors([regions, Entry(Path("b.svs"))], "bcss22")
