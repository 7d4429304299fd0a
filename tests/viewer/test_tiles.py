"""Tiles of labels and slides, compared with simple NumPy versions."""

import gzip
import io
import json
import zlib

import numpy as np
import pytest
import tifffile
from helpers.viewer_small import TILE, Pool, blobs, means, pyramid, summary, tissue, write_labels
from PIL import Image

from bcss_jax.errors import DataError
from bcss_jax.slides.grid import Grid, grid_of
from bcss_jax.slides.slide_summary import read_summary
from bcss_jax.viewer import slide_tiles
from bcss_jax.viewer.deep_zoom import DeepZoom
from bcss_jax.viewer.label_file import LabelFile
from bcss_jax.viewer.label_tiles import MARGIN, LabelTiles
from bcss_jax.viewer.slide_tiles import SlideTiles


def image(content, mode):
    return np.asarray(Image.open(io.BytesIO(content)).convert(mode))


def assembled(geometry, level, tile_of):
    """Returns all tiles of a level, put together."""
    width, height = geometry.size(level)
    rows, row = [], 0
    while tile := geometry.tile(level, 0, row):
        columns, column = [], 0
        while tile := geometry.tile(level, column, row):
            columns.append(tile_of(tile))
            assert columns[-1].shape[:2] == (tile.height, tile.width)
            column += 1
        rows.append(np.concatenate(columns, axis=1))
        row += 1
    whole = np.concatenate(rows)
    assert whole.shape[:2] == (height, width)
    return whole


def inner(tiles, tile):
    return tiles.labels(tile)[MARGIN:-MARGIN, MARGIN:-MARGIN]


def opened(path, labels, width, height, mpp=0.25):
    rows, columns = labels.shape
    grid = Grid(columns, rows, mpp, (width / columns, height / rows))
    write_labels(path, pyramid(labels))
    return LabelTiles(LabelFile(path, grid), width, height, grid)


def test_levels_of_a_deep_zoom_image():
    image = DeepZoom(1000, 513)
    assert image.max_level == 10 and image.size(10) == (1000, 513) and image.size(9) == (500, 257)
    assert image.size(8) == (250, 129) and image.size(0) == (1, 1)
    last = image.tile(10, 3, 2)
    assert (last.x, last.y, last.width, last.height, last.step) == (768, 512, 232, 1, 1)
    assert image.tile(9, 1, 1).height == 1 and image.tile(9, 1, 1).step == 2
    for wrong in [(11, 0, 0), (-1, 0, 0), (10, 4, 0), (10, 0, 3), (10, -1, 0), (8, 1, 0), (10**9, 0, 0)]:
        assert image.tile(*wrong) is None
    assert DeepZoom(1, 1).max_level == 0 and DeepZoom(257, 1).max_level == 9 and DeepZoom(256, 1).max_level == 8


def test_labels_on_the_slides_own_grid_are_the_levels_of_the_file(tmp_path):
    labels = blobs(517, 803)
    tiles, levels = opened(tmp_path / "labels.ome.tif", labels, 803, 517), pyramid(labels)
    geometry = tiles.geometry
    assert (geometry.width, geometry.height, geometry.max_level) == (803, 517, 10) and len(levels) == 5
    for level in range(geometry.max_level + 1):
        whole = assembled(geometry, level, lambda tile: inner(tiles, tile))
        reduced = geometry.max_level - level
        if reduced < len(levels):
            truth = levels[reduced]
        else:  # smaller than the smallest level of the file: labels at the centers of the pixels
            skip = 1 << (reduced - len(levels) + 1)
            rows, columns = (np.arange(size) * skip + skip // 2 for size in whole.shape)
            last = np.subtract(levels[-1].shape, 1)
            truth = levels[-1][np.ix_(np.minimum(rows, last[0]), np.minimum(columns, last[1]))]
        np.testing.assert_array_equal(whole, truth)


@pytest.mark.parametrize("mpp", [(0.499, 0.499), (0.125, 0.125), (0.25, 0.252), (0.9, 0.9)])
def test_labels_of_another_resolution_lie_where_the_tissue_is(tmp_path, mpp):
    width, height = 400, 301
    grid = grid_of(width, height, mpp, 0.25)
    labels = blobs(grid.height, grid.width, cell=40)
    tiles, levels = opened(tmp_path / "labels.ome.tif", labels, width, height), pyramid(labels)
    geometry = tiles.geometry
    finer = geometry.width // width
    assert (geometry.width, geometry.height) == (width * finer, height * finer)
    assert finer == {0.499: 2, 0.125: 1, 0.25: 1, 0.9: 4}[mpp[0]]
    for level in range(geometry.max_level - 4, geometry.max_level + 1):
        step = 2 ** (geometry.max_level - level) / finer  # level-0 pixels
        reduced = max(k for k in range(len(levels)) if k == 0 or 2**k <= 1.1 * step / max(grid.scale))
        whole = assembled(geometry, level, lambda tile: inner(tiles, tile))
        # In integers: the center of pixel n is (2 n + 1) / 2.
        power, size = 2 ** (geometry.max_level - level), levels[reduced].shape
        y, x = (
            (2 * np.arange(count) + 1) * power * of_grid // (finer * of_slide * 2 ** (reduced + 1))
            for count, of_grid, of_slide in zip(whole.shape, labels.shape, (height, width), strict=True)
        )  # more than half of the last pixel may lie outside
        truth = levels[reduced][np.ix_(np.minimum(y, size[0] - 1), np.minimum(x, size[1] - 1))]
        np.testing.assert_array_equal(whole, truth)


def test_tiles_include_a_margin_of_neighboring_labels(tmp_path):
    labels = blobs(300, 420)
    tiles = opened(tmp_path / "labels.ome.tif", labels, 420, 300)
    padded = np.pad(labels, MARGIN)
    for column, row in ((0, 0), (1, 0), (0, 1), (1, 1)):
        tile = tiles.geometry.tile(9, column, row)
        truth = padded[tile.y : tile.y + tile.height + 2 * MARGIN, tile.x : tile.x + tile.width + 2 * MARGIN]
        np.testing.assert_array_equal(tiles.labels(tile), truth)
        assert gzip.decompress(tiles.gzipped(tile)) == truth.tobytes()
        assert tiles.gzipped(tile) is tiles.gzipped(tile)


def test_tiles_that_the_file_leaves_out_are_damage_and_not_background(tmp_path):
    labels = np.zeros((256, 320), np.uint8)
    labels[70:90, 200:250] = 2
    path = tmp_path / "labels.ome.tif"

    def sparse():
        for row in range(4):
            for column in range(5):
                part = labels[row * TILE : row * TILE + TILE, column * TILE : column * TILE + TILE]
                stream = zlib.compress(part.tobytes()) if part.any() else b""
                yield stream, len(stream)

    with tifffile.TiffWriter(path) as file:
        file.write(sparse(), shape=labels.shape, dtype=np.uint8, tile=(TILE, TILE), compression="zlib")
    with tifffile.TiffFile(path) as file:
        assert 0 in file.pages[0].databytecounts
    tiles = LabelTiles(LabelFile(path, Grid(320, 256, 0.25, (1, 1))), 320, 256, Grid(320, 256, 0.25, (1, 1)))
    with pytest.raises(DataError, match="found: a tile is missing; segment the slide again"):
        assembled(tiles.geometry, 9, lambda tile: inner(tiles, tile))


def test_a_file_that_does_not_hold_labels_is_refused_in_one_line(tmp_path):
    path, labels = tmp_path / "labels.ome.tif", blobs(200, 300)
    grid = Grid(300, 200, 0.25, (1, 1))

    def refused(text, of=grid):
        with pytest.raises(DataError, match=text) as caught:
            LabelFile(path, of)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)

    refused("no such file")
    path.write_bytes(b"")
    refused("segment the slide again")
    write_labels(path, pyramid(labels))
    refused("200", Grid(200, 300, 0.25, (1, 1)))
    content = path.read_bytes()
    for length in (4, 40, len(content) // 2):
        path.write_bytes(content[:length])
        try:
            file = LabelFile(path, grid)
        except DataError as error:
            assert "\n" not in str(error)
        else:  # the table is at the beginning of the file, tiles are missing
            with pytest.raises(DataError, match="ends early"):
                file.sample(np.arange(300) + 0.5, np.arange(200) + 0.5, 1)
    tifffile.imwrite(path, labels)
    refused("not tiled with one channel")
    tifffile.imwrite(path, np.zeros((200, 300, 3), np.uint8), tile=(TILE, TILE), photometric="rgb")
    refused("not tiled with one channel")
    tifffile.imwrite(path, labels.astype(np.uint16), tile=(TILE, TILE))
    refused("not tiled with one channel")
    write_labels(path, [labels, labels[:150, :200]])
    refused("divided by a power of two")


def test_a_label_file_without_small_levels_is_refused(tmp_path):
    path, grid = tmp_path / "labels.ome.tif", Grid(9000, 16, 0.25, (1, 1))
    write_labels(path, [np.zeros((16, 9000), np.uint8)])
    with pytest.raises(DataError, match="no level smaller than 9000 x 16"):
        LabelFile(path, grid)


def test_a_damaged_tile_does_not_affect_other_tiles(tmp_path):
    path, labels = tmp_path / "labels.ome.tif", blobs(200, 300)
    write_labels(path, [labels])
    with tifffile.TiffFile(path) as file:
        offset = file.pages[0].dataoffsets[0]
    content = bytearray(path.read_bytes())
    content[offset : offset + 20] = b"\xff" * 20
    path.write_bytes(content)
    file = LabelFile(path, Grid(300, 200, 0.25, (1, 1)))
    points = np.arange(TILE) + 0.5
    with pytest.raises(DataError, match="labels.ome.tif"):
        file.sample(points, points, 1)
    np.testing.assert_array_equal(file.sample(points + TILE, points, 1), labels[:TILE, TILE : 2 * TILE])


def test_tiles_of_the_slide(tmp_path):
    pixels = tissue(301, 530)
    path = tmp_path / "slide.png"
    Image.fromarray(pixels).save(path)
    (tmp_path / "summary.json").write_text(json.dumps(summary(path, 530, 301, (301, 530))))
    tiles = SlideTiles(path, read_summary(tmp_path / "summary.json"), Pool)
    assert tiles.geometry == DeepZoom(530, 301)
    for level in range(tiles.geometry.max_level + 1):
        truth = means(pixels, 1 << (tiles.geometry.max_level - level))

        def of_truth(tile, truth=truth):
            part = truth[tile.y : tile.y + tile.height, tile.x : tile.x + tile.width]
            return image(slide_tiles.jpeg(part, None), "RGB")

        whole = assembled(tiles.geometry, level, lambda tile: image(tiles.jpeg(tile), "RGB"))
        np.testing.assert_array_equal(whole, assembled(tiles.geometry, level, of_truth))
    assert np.abs(whole.astype(int) - pixels).mean() < 8
    tile = tiles.geometry.tile(9, 0, 0)
    assert tiles.jpeg(tile) is tiles.jpeg(tile)


def test_unreadable_places_are_hatched():
    pixels, where = np.full((64, 64, 3), 200, np.uint8), np.zeros((64, 64), bool)
    where[:, 32:] = True
    shown = image(slide_tiles.jpeg(pixels, where), "RGB")
    assert shown[:, :28].std() < 2 and shown[:, 36:].std() > 15


def test_a_different_slide_of_the_same_name_is_refused(tmp_path):
    path = tmp_path / "slide.png"
    Image.fromarray(tissue(30, 40)).save(path)
    (tmp_path / "summary.json").write_text(json.dumps(summary(path, 80, 60, (60, 80))))
    pools = []

    def open_pool(*arguments):
        pools.append(Pool(*arguments))
        return pools[-1]

    with pytest.raises(DataError, match="expected the slide that was segmented, 80 x 60 pixels, found 40 x 30"):
        SlideTiles(path, read_summary(tmp_path / "summary.json"), open_pool)
    assert pools[0].closed
