"""Damaged and unusual slides give pixels or one DataError in a bounded time (rows B35 to B42 of the contract)."""

import errno
import os
import shutil
import time

import numpy as np
import pytest
import tifffile
from helpers.slide_files import overwrite, own_grid, picture, spoil, svs, tiled
from PIL import Image

from bcss_jax.errors import DataError, printable
from bcss_jax.slides.grid import Grid, grid_of
from bcss_jax.slides.reading.open_slide import open_slide
from bcss_jax.slides.reading.read_block import read_block
from bcss_jax.slides.reading.reader_pool import ReaderPool
from bcss_jax.slides.reading.reader_process import ReaderFailed, ReaderProcess
from bcss_jax.slides.reading.tiffslide_backend import TiffSlideSlide
from bcss_jax.slides.tissue.stain_check import out_of_domain


@pytest.fixture(scope="module")
def reader():
    """A reader process that opens one file after the other, which is faster than a pool for each."""
    reader = ReaderProcess()
    reader.wait_ready()
    yield reader
    reader.kill()


def refused(reader, path):
    """Returns the error of one line that opening a slide gives."""
    header, _ = reader.ask({"open": str(path)}, 30.0)
    assert header["error"].isprintable()
    return header["error"]


def read_all(pool, model_mpp=0.25):
    grid = own_grid(pool.info, model_mpp=model_mpp)
    return pool.submit(grid, 0, 0, grid.width, grid.height).result(timeout=60)


# B35 and B36: pixels that cannot be decoded.


@pytest.mark.parametrize("open_with", [open_slide, TiffSlideSlide])
@pytest.mark.parametrize("compression", ["jpeg", "deflate"])
def test_tiles_that_cannot_be_decoded_are_white_and_marked(tmp_path, open_with, compression):
    pixels = picture(320, 256)
    path = tiled(tmp_path / "a.tif", pixels, compression=compression)
    sound = open_slide(path).read(0, 0, 0, 320, 256)
    slide = open_with(spoil(path, [6, 19]))  # 5 x 4 tiles
    bad = np.zeros((256, 320), bool)
    bad[64:128, 64:128] = bad[192:256, 256:320] = True
    grid = own_grid(slide)
    block, unreadable = read_block(slide, grid, 0, 0, 320, 256)
    np.testing.assert_array_equal(unreadable, bad)
    np.testing.assert_array_equal(block, np.where(bad[..., None], 255, sound))
    block, unreadable = read_block(slide, grid, 70, 30, 100, 50)
    np.testing.assert_array_equal(unreadable, bad[30:80, 70:170])
    np.testing.assert_array_equal(block, np.where(bad[..., None], 255, sound)[30:80, 70:170])
    assert read_block(slide, grid, 128, 0, 100, 192)[1] is None


def test_a_bad_tile_in_a_resampled_block(tmp_path):
    path = spoil(tiled(tmp_path / "a.tif", picture(320, 256)), [6])
    slide = open_slide(path)
    grid = own_grid(slide, model_mpp=0.5)
    block, unreadable = read_block(slide, grid, 0, 0, 160, 128)
    bad = np.zeros((128, 160), bool)
    bad[32:64, 32:64] = True
    np.testing.assert_array_equal(unreadable, bad)
    assert (block[bad] == 255).all()
    _, part = read_block(slide, grid, 40, 50, 70, 60)
    np.testing.assert_array_equal(part, bad[50:110, 40:110])
    grid = own_grid(slide, model_mpp=0.1)
    _, unreadable = read_block(slide, grid, 0, 0, grid.width, grid.height)
    assert unreadable[162:318, 162:318].all() and unreadable.sum() <= 162**2


def test_two_percent_of_bad_tiles(tmp_path):
    pixels = picture(640, 640)
    path = spoil(svs(tmp_path / "a.svs", pixels), [17, 93])
    with ReaderPool(path, 2) as pool:
        grid = own_grid(pool.info)
        futures = [pool.submit(grid, x, y, 128, 128) for y in range(0, 640, 128) for x in range(0, 640, 128)]
        blocks = [future.result(timeout=60) for future in futures]
        count = sum(int(block.unreadable.sum()) for block in blocks if block.unreadable is not None)
        assert count / 640**2 == pytest.approx(0.02)
        thumbnail = pool.thumbnail(80).pixels
    assert thumbnail.shape == (80, 80, 3) and (thumbnail[10:14, 58:62] > 230).all()


@pytest.mark.parametrize("share", [0.02, 0.5, 0.7])
def test_a_truncated_svs_gives_one_error_or_the_pixels_that_are_left(reader, shared, tmp_path, share):
    sound = shared / "data/slides/CMU-1-Small-Region.svs"
    path = tmp_path / "cut.svs"
    path.write_bytes(sound.read_bytes()[: int(sound.stat().st_size * share)])
    if share < 0.6:  # the list of tiles follows the tiles
        assert "found a TIFF file without an image (cut off?)" in refused(reader, path)
        return
    with ReaderPool(path, 1) as pool:  # only the label and the macro image are missing
        block = pool.submit(Grid(2220, 2967, 0.499, (1.0, 1.0)), 0, 0, 2220, 2967).result(timeout=60)
    assert block.unreadable is None
    assert np.abs(block.pixels.astype(int) - open_slide(sound).read(0, 0, 0, 2220, 2967)).max() <= 3


def test_a_tiff_whose_end_is_missing_is_read_up_to_there(tmp_path):
    pixels = picture(320, 256)
    path = tiled(tmp_path / "a.tif", pixels, compression=None)
    os.truncate(path, os.path.getsize(path) // 2)
    with ReaderPool(path, 1) as pool:
        block = read_all(pool)
    assert 0.4 < block.unreadable.mean() < 0.6
    np.testing.assert_array_equal(block.pixels[:64], pixels[:64])
    assert (block.pixels[block.unreadable] == 255).all()


def test_a_real_slide_with_a_damaged_tile(shared, tmp_path):
    path = tmp_path / "a.svs"
    shutil.copyfile(shared / "data/slides/CMU-1-Small-Region.svs", path)
    spoil(path, [44])  # 10 x 13 tiles of 240
    with ReaderPool(path, 1) as pool:
        grid = Grid(2220, 2967, 0.499, (1.0, 1.0))
        block = pool.submit(grid, 0, 0, 2220, 2967).result(timeout=60)
        assert block.unreadable.sum() == 240 * 240 and block.unreadable[960:1200, 960:1200].all()
        grid = grid_of(2220, 2967, pool.info.mpp, 0.25)
        block = pool.submit(grid, 1900, 1900, 512, 512).result(timeout=60)
        assert block.unreadable is not None and not block.unreadable.all()


def flat(path, pixels, **options):
    """Writes a TIFF without tiles or compression, and returns the offset of its pixels."""
    tifffile.imwrite(path, pixels, photometric="rgb", metadata=None, **options)
    with tifffile.TiffFile(path) as tiff:
        return tiff.pages[0].dataoffsets[0]


def test_rows_of_an_uncompressed_tiff_that_the_disk_cannot_read_are_white(tmp_path, monkeypatch):
    """With a memory map, the process would end there (SIGBUS); after a second attempt the slide would fail."""
    pixels = picture(320, 256)
    begin = flat(tmp_path / "a.tif", pixels)
    bad = range(begin + (70 * 320 + 100) * 3, begin + (70 * 320 + 103) * 3)
    read = os.preadv

    def failing(descriptor, buffers, offset):
        if offset < bad.stop and bad.start < offset + sum(len(each) for each in buffers):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", failing)
    slide = TiffSlideSlide(tmp_path / "a.tif")
    block, unreadable = read_block(slide, own_grid(slide), 0, 0, 320, 256)
    expected = np.zeros((256, 320), bool)
    expected[64:80] = True  # pieces of 16 rows
    np.testing.assert_array_equal(unreadable, expected)
    np.testing.assert_array_equal(block, np.where(expected[..., None], 255, pixels))
    block, unreadable = read_block(slide, own_grid(slide), 110, 50, 100, 50)
    assert unreadable is None  # next to the bad bytes, which are not read
    np.testing.assert_array_equal(block, pixels[50:100, 110:210])


def test_short_reads_and_truncation_of_an_open_uncompressed_tiff(tmp_path, monkeypatch):
    pixels, read = picture(320, 256), os.preadv
    begin = flat(tmp_path / "a.tif", pixels)
    monkeypatch.setattr(os, "preadv", lambda descriptor, buffers, offset: read(descriptor, [buffers[0][:1000]], offset))
    slide = TiffSlideSlide(tmp_path / "a.tif")
    np.testing.assert_array_equal(slide.read(0, 0, 3, 320, 200), pixels[3:203])
    np.testing.assert_array_equal(slide.read(0, 7, 3, 310, 200), pixels[3:203, 7:317])
    os.truncate(tmp_path / "a.tif", begin + 100 * 320 * 3)
    block, unreadable = read_block(slide, own_grid(slide), 0, 0, 320, 256)
    assert unreadable[96:].all() and not unreadable[:96].any()
    np.testing.assert_array_equal(block[:96], pixels[:96])


def test_a_slide_that_is_deleted_gives_one_error_per_block(tmp_path):
    path = spoil(tiled(tmp_path / "a.tif", picture(320, 256)), [6])
    with ReaderPool(path, 1) as pool:
        path.unlink()  # the open handle still reads, until a bad tile makes the reader open the file again
        with pytest.raises(
            DataError, match=r"a\.tif: expected a slide that can be read, found .*does not open any more"
        ):
            read_all(pool)


# B37: impossible structures.


def loop(path):
    """Makes the list of pages end where it begins."""
    data = bytearray(path.read_bytes())
    first = int.from_bytes(data[4:8], "little")
    entries = int.from_bytes(data[first : first + 2], "little")
    data[first + 2 + 12 * entries : first + 6 + 12 * entries] = data[4:8]
    path.write_bytes(data)


STRUCTURES = {
    "zero tile width": lambda path: overwrite(path, TileWidth=0),
    "zero tile size": lambda path: overwrite(path, TileWidth=0, TileLength=0),
    "more tiles than the file lists": lambda path: overwrite(path, ImageWidth=60_000, ImageLength=60_000),
    "tile count overflows 32 bits": lambda path: overwrite(
        path, ImageWidth=2**32 - 1, ImageLength=2**32 - 1, TileWidth=16, TileLength=16
    ),
    "zero size": lambda path: overwrite(path, ImageWidth=0, ImageLength=0),
}


@pytest.mark.parametrize("kind", ["generic", "svs"])
@pytest.mark.parametrize("damage", STRUCTURES)
def test_impossible_structures_are_refused(reader, tmp_path, kind, damage):
    path = tmp_path / "a.svs"
    if kind == "svs":
        svs(path, picture(320, 256))
    else:
        tiled(path, picture(320, 256))
    STRUCTURES[damage](path)
    assert refused(reader, path).startswith(f"{path}: expected a slide")


@pytest.mark.parametrize("open_with", [open_slide, TiffSlideSlide])
def test_a_header_that_promises_more_tiles_than_there_are(tmp_path, open_with):
    path = overwrite(tiled(tmp_path / "a.tif", picture(320, 256)), ImageWidth=3200)
    with pytest.raises((DataError, ValueError), match="20 .*200"):
        open_with(path)


def test_a_library_that_aborts_gives_one_error(tmp_path):
    """OpenSlide allocates a tile with GLib, which ends the process if there is too little memory."""
    path = overwrite(svs(tmp_path / "a.svs", picture(320, 256)), TileWidth=65_520, TileLength=65_520)
    with ReaderPool(path, 1) as pool:
        with pytest.raises(DataError, match=r"died \(SIGABRT\), saying '.*GLib-ERROR.*tried 2 times") as error:
            read_all(pool)
    assert str(error.value).startswith(f"{path}: expected a slide that can be read at x=0, y=0 (320x256 pixels")


@pytest.mark.parametrize("kind", ["generic", "svs"])
def test_a_loop_of_pages_ends(tmp_path, kind):
    pixels = picture(320, 256)
    path = tmp_path / "a.svs"
    if kind == "svs":
        svs(path, pixels)
    else:
        tiled(path, pixels)
    loop(path)
    begun = time.monotonic()
    try:
        with ReaderPool(path, 1) as pool:  # everything that is needed may be present
            assert read_all(pool).pixels.shape == pixels.shape
    except DataError as error:
        assert str(error).startswith(f"{path}: expected a slide")
    assert time.monotonic() - begun < 30


# B38 and B41: odd sizes.


@pytest.mark.parametrize("size", [(1, 1), (20_000, 1), (1, 20_000), (30, 20)])
@pytest.mark.parametrize("model_mpp", [0.25, 0.4])
def test_slides_of_odd_sizes_keep_their_size(tmp_path, size, model_mpp):
    pixels = picture(*size)
    with ReaderPool(tiled(tmp_path / "a.tif", pixels), 1) as pool:
        grid = own_grid(pool.info, model_mpp=model_mpp)
        block = read_all(pool, model_mpp)
        assert block.pixels.shape == (grid.height, grid.width, 3)
        if model_mpp == 0.25:
            np.testing.assert_array_equal(block.pixels, pixels)
        assert max(pool.thumbnail(100).pixels.shape[:2]) == min(100, max(size))


def test_a_strip_of_200_000_pixels(tmp_path):
    pixels = picture(1, 200_000)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with ReaderPool(tmp_path / "a.png", 1) as pool:
        np.testing.assert_array_equal(read_all(pool).pixels, pixels)
        assert pool.thumbnail(1000).pixels.shape == (1000, 1, 3)


def test_a_flat_tiff_of_ten_gigabytes_is_never_read_whole(tmp_path):
    width, height = 60_000, 60_000
    path = tmp_path / "flat.tif"
    tifffile.imwrite(
        path, shape=(height, width, 3), dtype=np.uint8, photometric="rgb", bigtiff=True
    )  # holes on the disk
    assert os.path.getsize(path) > 10 * 10**9
    rows = np.memmap(path, np.uint8, "r+", offset=os.path.getsize(path) - width * 3 * height, shape=(height, width, 3))
    rows[33_000:33_050, 41_000:41_070] = picture(70, 50)
    with ReaderPool(path, 1) as pool:
        grid = own_grid(pool.info)
        block = pool.submit(grid, 41_000, 33_000, 70, 50).result(timeout=30)
        np.testing.assert_array_equal(block.pixels, picture(70, 50))
        with open(f"/proc/{next(iter(pool._workers._processes)).process.pid}/status") as file:
            peak = next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) // 1024
        assert peak < 400, "MiB"


# B42: slides that are not H&E.


def test_a_gray_slide_is_read_and_reported(tmp_path):
    gray = picture(320, 256)[..., 0]
    path = tiled(tmp_path / "a.tif", gray)
    with ReaderPool(path, 1) as pool:
        np.testing.assert_array_equal(read_all(pool).pixels, np.repeat(gray[..., None], 3, -1))
        assert out_of_domain(pool.thumbnail(100).pixels) == "shades of gray only"
    np.testing.assert_array_equal(TiffSlideSlide(path).read(0, 0, 0, 320, 256)[..., 1], gray)


@pytest.mark.parametrize("name, off", [("a.png", 0), ("a.jpg", 3), ("a.tif", 0)])
def test_a_plain_gray_image_is_read_and_reported(tmp_path, name, off):
    gray = picture(320, 256)[..., 0]
    Image.fromarray(gray).save(tmp_path / name, quality=98)
    with ReaderPool(tmp_path / name, 1) as pool:
        pixels = read_all(pool).pixels
        assert (pixels == pixels[..., :1]).all() and np.abs(pixels[..., 0].astype(int) - gray).mean() <= off
        assert out_of_domain(pool.thumbnail(100).pixels) == "shades of gray only"


# Files that are not slides.


def test_a_file_that_is_not_a_slide_gives_one_error(reader, tmp_path):
    (tmp_path / "empty.svs").touch()
    (tmp_path / "text.svs").write_text("not a slide\n" * 100)
    (tmp_path / "folder.svs").mkdir()
    os.mkfifo(tmp_path / "pipe.svs")
    (tmp_path / "half.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    for name, found in (
        ("empty.svs", "found an empty file"),
        ("text.svs", "found another format"),
        ("folder.svs", "found a folder"),
        ("pipe.svs", "found a FIFO"),
        ("half.png", "expected a readable PNG"),
        ("missing.svs", "found no such file"),
    ):
        line = refused(reader, tmp_path / name)
        assert line.startswith(f"{tmp_path / name}: expected a") and found in line


@pytest.mark.parametrize("name", [b"a\nb.svs", b"\xff\xfe.svs", "å ä.svs".encode(), b"a::b:c.svs", b"-x.svs"])
def test_names_may_hold_any_bytes(reader, tmp_path, name):
    path = os.path.join(tmp_path, os.fsdecode(name))
    pixels = picture(64, 64)
    try:
        tiled(path, pixels)
    except (OSError, ValueError) as error:
        pytest.skip(f"the file system does not take the name ({error})")
    header, _ = reader.ask({"open": path}, 30.0)
    assert header["slide"]["levels"] == [[64, 64, 1.0]]
    _, body = reader.ask({"grid": [64, 64, 0.25, 1.0, 1.0], "box": [0, 0, 64, 64]}, 30.0)
    assert bytes(body) == pixels.tobytes()
    with open(path, "wb") as file:
        file.write(b"II*\0")
    assert refused(reader, path).startswith(printable(path))


def test_the_pool_raises_the_same_error_as_a_process(reader, tmp_path):
    (tmp_path / "text\n.svs").write_text("not a slide")
    with pytest.raises(DataError) as error:
        ReaderPool(tmp_path / "text\n.svs", 2)
    assert str(error.value) == refused(reader, tmp_path / "text\n.svs")


# Random damage.


def mutations(sound, count, seed):
    """Yields copies with changed bytes, mostly in the header, and truncations."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        data = bytearray(sound)
        if rng.random() < 0.2:
            del data[int(rng.integers(8, len(data))) :]
        for _ in range(int(rng.integers(1, 12))):
            end = min(len(data), 700) if rng.random() < 0.7 else len(data)
            data[int(rng.integers(end))] = int(rng.integers(256))
        yield bytes(data)


@pytest.mark.parametrize("kind", ["generic", "svs"])
def test_mutated_slides_give_pixels_or_one_error(tmp_path, kind):
    path = tmp_path / "a.svs"
    pixels = picture(160, 130)
    if kind == "svs":
        svs(path, pixels)
    else:
        tiled(path, pixels, levels=2, compression="jpeg")
    reader, outcomes = None, []
    try:
        for number, data in enumerate(mutations(path.read_bytes(), 60, seed=kind == "svs")):
            mutant = tmp_path / f"{number}.svs"
            mutant.write_bytes(data)
            if reader is None:
                reader = ReaderProcess()
                reader.wait_ready()
            try:
                outcomes.append(outcome(reader, mutant))
            except ReaderFailed as failure:
                assert "no answer" not in str(failure), number
                outcomes.append("died")
                reader.kill()
                reader = None
                with pytest.raises(DataError):  # the pool turns it into one error
                    with ReaderPool(mutant, 1) as pool:
                        read_all(pool)
    finally:
        if reader is not None:
            reader.kill()
    assert {"pixels", "refused"} <= set(outcomes)


def outcome(reader, path):
    header, _ = reader.ask({"open": str(path)}, 30.0)
    if "error" in header:
        assert header["error"].startswith(f"{path}: expected") and header["error"].isprintable()
        return "refused"
    width, height, _ = header["slide"]["levels"][0]
    box = [0, 0, min(width, 500), min(height, 500)]
    header, body = reader.ask({"grid": [width, height, 0.25, 1.0, 1.0], "box": box}, 30.0)
    if "error" in header:
        assert header["error"].startswith(f"{path}: expected") and header["error"].isprintable()
        return "refused"
    assert header["shape"] == box[:1:-1] and len(body) >= 3 * box[2] * box[3]
    return "unreadable" if header["unreadable"] else "pixels"
