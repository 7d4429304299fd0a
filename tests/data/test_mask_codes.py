"""Pixels of a mask that look the same have the same code, or the mask is refused."""

import numpy as np
import pytest
import tifffile
from helpers.tile_files import image, kaggle512, png, save
from PIL import Image

from bcss_jax.data import image_files
from bcss_jax.data.checks import check_tiles
from bcss_jax.data.discovery import DataSettings, find_tiles
from bcss_jax.errors import DataError

CODES = np.array([[0, 1, 2], [2, 1, 1]], np.uint8)
RED, GREEN, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 0)


def grays(*levels):
    return [(level,) * 3 for level in levels]


def palette(indices, colors):
    indexed = Image.new("P", indices.shape[::-1])
    indexed.putdata(indices.ravel().tolist())
    indexed.putpalette([value for color in colors for value in color])
    return indexed


def read(path, content, codes="bcss22", **options):
    """Writes a mask, then reads it; returns the codes and the warnings."""
    if isinstance(content, Image.Image):
        content.save(path, **options)
    else:
        tifffile.imwrite(path, content, **{"photometric": "minisblack", **options})
    lines = []
    return image_files.read_mask(path, codes, lines.append), lines


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_gray_palette_in_another_order_is_read_by_its_levels(tmp_path, suffix):
    found, lines = read(tmp_path / f"a.{suffix}", palette((CODES + 1) % 3, grays(2, 0, 1)))
    np.testing.assert_array_equal(found, CODES)
    assert len(lines) == 1 and "the shown gray levels are the codes" in lines[0]


def test_a_mask_of_one_code_whose_palette_holds_only_that_code(tmp_path):
    found, _ = read(tmp_path / "a.png", palette(np.zeros_like(CODES), grays(2)))
    assert (found == 2).all()


def test_a_gray_palette_in_order_is_read_without_a_warning(tmp_path):
    for content in (Image.fromarray(CODES), palette(CODES, grays(0, 1, 2)), Image.fromarray(CODES).convert("P")):
        found, lines = read(tmp_path / "a.png", content)
        np.testing.assert_array_equal(found, CODES)
        assert lines == []


@pytest.mark.parametrize(
    "colors", [[BLACK, RED, GREEN], grays(0, 127, 255), grays(60, 90, 255), [BLACK, (128, 0, 0), (0, 128, 0)]]
)
def test_a_palette_that_only_colors_the_codes_is_read_by_its_indices(tmp_path, colors):
    found, lines = read(tmp_path / "a.png", palette(CODES, colors))
    np.testing.assert_array_equal(found, CODES)
    assert len(lines) == 1 and "its indices are the codes" in lines[0]


@pytest.mark.parametrize(
    "colors, found",
    [
        (grays(0, 1, 1), r"color \(1, 1, 1\) for the indices 1, 2"),
        (grays(0, 0, 0), r"color \(0, 0, 0\) for the indices 0, 1, 2"),
        ([BLACK, RED, RED], r"color \(255, 0, 0\) for the indices 1, 2"),
        (grays(0, 2, 255), "gray level 2, which is a code, under the index 1"),
        (grays(255, 127, 0), "gray level 0, which is a code, under the index 2"),
        (grays(90, 60, 255), "gray levels 90, 60, 255 for the indices 0, 1, 2"),
        ([RED, BLACK, GREEN], "gray level 0, which is a code, under the index 1"),
        ([BLACK, (0, 128, 0), (128, 0, 0)], "the color of index 2 under the index 1"),
    ],
)
def test_a_palette_that_can_be_read_in_two_ways_is_refused(tmp_path, colors, found):
    with pytest.raises(DataError, match=f"a.png: expected .*found .*{found}.*; .*save the codes themselves"):
        read(tmp_path / "a.png", palette(CODES, colors))


def test_an_index_without_a_color_is_refused(tmp_path):
    with pytest.raises(DataError, match="found the index 1 in a palette of 1 colors"):
        read(tmp_path / "a.png", Image.fromarray(CODES, "P"))


def test_transparent_codes_are_refused_if_they_occur(tmp_path):
    colors = [BLACK, RED, GREEN, (9, 8, 7)]
    with pytest.raises(DataError, match="an opaque mask, found transparent colors in the palette"):
        read(tmp_path / "a.png", palette(CODES, colors), transparency=0)
    np.testing.assert_array_equal(read(tmp_path / "a.png", palette(CODES, colors), transparency=3)[0], CODES)
    with pytest.raises(DataError, match="an opaque mask, found transparent pixels"):
        read(tmp_path / "a.png", Image.fromarray(CODES), transparency=1)
    np.testing.assert_array_equal(read(tmp_path / "a.png", Image.fromarray(CODES), transparency=9)[0], CODES)


@pytest.mark.parametrize("scale", [1, 256, 257])
def test_palettes_of_tiffs_by_the_same_rule(tmp_path, scale):
    colors = np.zeros((3, 256), np.uint16)
    colors[:, :3] = np.array([2, 0, 1]) * scale
    options = {"photometric": "palette", "colormap": colors}
    np.testing.assert_array_equal(read(tmp_path / "a.tif", (CODES + 1) % 3, **options)[0], CODES)
    colors[:, 2] = 2 * scale
    with pytest.raises(DataError, match="codes that look different"):
        read(tmp_path / "a.tif", (CODES + 1) % 3, **options)


def test_inverted_gray_is_read_as_it_is_shown(tmp_path):
    for compression in (None, "deflate"):
        options = {"photometric": "miniswhite", "compression": compression}
        found, lines = read(tmp_path / "a.tif", 255 - CODES, **options)
        np.testing.assert_array_equal(found, CODES)
        assert "stored inverted" in lines[0]
        with pytest.raises(DataError, match="inverted gray .MinIsWhite. that stores 0, 1, 2 and shows 255, 254, 253"):
            read(tmp_path / "a.tif", CODES, **options)
    np.testing.assert_array_equal(read(tmp_path / "a.tif", CODES > 0, photometric="miniswhite")[0], CODES == 0)


def test_samples_of_few_bits_are_codes_unless_their_levels_are_codes_too(tmp_path):
    found, lines = read(tmp_path / "a.png", Image.fromarray(CODES > 0))
    np.testing.assert_array_equal(found, CODES > 0)
    assert len(lines) == 1 and "what is shown white is code 1" in lines[0]
    (tmp_path / "a.png").write_bytes(png(4, 1, 4, 0, b"\0\x01\x23"))
    assert image_files.read_mask(tmp_path / "a.png", "bcss22").tolist() == [[0, 1, 2, 3]]
    (tmp_path / "a.png").write_bytes(png(4, 1, 4, 0, b"\0\x01\x10"))
    with pytest.raises(DataError, match="4 bits .0, 1. that are shown as 0, 17, codes too"):
        image_files.read_mask(tmp_path / "a.png", "bcss22")
    assert image_files.read_mask(tmp_path / "a.png", "kaggle3").tolist() == [[0, 1, 1, 0]]


def test_negative_codes_are_refused(tmp_path):
    with pytest.raises(DataError, match="-1: 1, 0: 3, 1: 2"):
        read(tmp_path / "a.tif", CODES.astype(np.int8) - 1)


def test_a_color_stands_for_one_code_in_all_masks_of_a_data_set(tmp_path):
    root = kaggle512(tmp_path)
    codes = np.repeat(CODES, 8, 0)[:, [0, 1, 2] * 5 + [0]]
    masks = sorted((root / "train_mask_512").iterdir())
    for path in masks:
        palette(codes, [BLACK, RED, GREEN]).save(path)
    tiles = find_tiles(DataSettings("kaggle512", root))
    _, report = check_tiles(tiles)
    assert len(report.warnings) == len(masks) == 4
    palette(np.array([0, 2, 1], np.uint8)[codes], [BLACK, GREEN, RED]).save(masks[1])  # looks the same, sorted
    with pytest.raises(DataError, match="a color that stands for the same code in all masks, found .* for code"):
        check_tiles(tiles)


@pytest.mark.parametrize(
    "content, expected",
    [
        (Image.fromarray(CODES * 100), CODES > 0),
        (palette(CODES, grays(255, 0, 128)), CODES != 1),
        (palette(CODES, [BLACK, RED, RED]), CODES > 0),
        (Image.fromarray(CODES > 1), CODES > 1),
    ],
)
def test_tissue_is_what_is_not_black(tmp_path, content, expected):
    content.save(tmp_path / "a.png")
    np.testing.assert_array_equal(image_files.read_tissue_mask(tmp_path / "a.png", lambda line: None), expected)


def test_tissue_masks_with_two_readings_are_refused(tmp_path):
    palette(CODES, [RED, BLACK, GREEN]).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="found black under the index 1 of a palette"):
        image_files.read_tissue_mask(tmp_path / "a.png")
    save(tmp_path / "a.png", image())
    with pytest.raises(DataError, match="one channel of codes, found the color mode RGB"):
        image_files.read_tissue_mask(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", np.where(CODES, 0, 255).astype(np.uint8), photometric="miniswhite")
    np.testing.assert_array_equal(image_files.read_tissue_mask(tmp_path / "a.tif"), CODES > 0)
