import io
import re

import imagecodecs
import numpy as np
import pytest
import tifffile
from helpers.slide_files import difference, overwrite, picture, whole
from PIL import Image

from bcss_jax.errors import DataError
from bcss_jax.slides.reading.open_slide import open_slide

SLIDE = picture(150, 100)
GRAY = np.ascontiguousarray(SLIDE[..., 0])
SMOOTH = np.ascontiguousarray(np.asarray(Image.fromarray(picture(10, 7, seed=3)).resize((150, 100), 1)))
LAYOUTS = {"tiles": {"tile": (64, 64)}, "strips": {"rowsperstrip": 16}}
BY_ORIENTATION = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: np.rot90(stored),
}


@pytest.fixture(params=list(LAYOUTS))
def layout(request):
    return LAYOUTS[request.param]


def write(path, pixels, **options):
    resolution = {"resolution": (40_000, 20_000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, pixels, **{"photometric": "rgb", "metadata": None, **resolution, **options})
    return path


def with_tag(path, code, value, pixels, **options):
    """Writes a tag that tifffile would not write with this value, under a code beside it, and corrects the code."""
    write(path, pixels, extratags=[(code - 1, 3, 1, value, True)], **options)
    content = bytearray(path.read_bytes())
    first = int.from_bytes(content[4:8], "little")
    for entry in range(first + 2, first + 2 + 12 * int.from_bytes(content[first : first + 2], "little"), 12):
        if int.from_bytes(content[entry : entry + 2], "little") == code - 1:
            content[entry : entry + 2] = code.to_bytes(2, "little")
    path.write_bytes(content)
    return path


def read(path):
    slide = open_slide(path)
    pixels = whole(slide)
    slide.close()
    return pixels, " ".join(slide.notes)


# Orientation.


@pytest.mark.parametrize("orientation", BY_ORIENTATION)
@pytest.mark.parametrize("compression", ["none", "jpeg"])
def test_a_turned_slide_is_shown_as_its_tag_says(tmp_path, layout, orientation, compression):
    tags = [(274, 3, 1, orientation, True)]
    path = write(tmp_path / "a.tif", SMOOTH, compression=compression, extratags=tags, **layout)
    slide = open_slide(path)
    expected = BY_ORIENTATION[orientation](SMOOTH)
    assert slide.levels[0][:2] == expected.shape[1::-1]
    assert slide.mpp == ((0.25, 0.5) if orientation < 5 else (0.5, 0.25))
    limit = 0 if compression == "none" else 2
    assert difference(whole(slide), expected).mean() <= limit
    assert difference(slide.read(0, 7, 20, 60, 71), expected[20:91, 7:67]).mean() <= limit
    assert bool(slide.notes) == (orientation != 1)
    assert all(f"as its Orientation tag says ({orientation})" in note for note in slide.notes)


@pytest.mark.parametrize("value", [0, 9, 255])
def test_an_orientation_without_a_meaning_is_said(tmp_path, layout, value):
    path = write(tmp_path / "a.tif", SMOOTH, compression="none", extratags=[(274, 3, 1, value, True)], **layout)
    slide = open_slide(path)
    np.testing.assert_array_equal(whole(slide), SMOOTH)
    assert any(f"the invalid value {value}; read as stored" in note for note in slide.notes)


@pytest.mark.parametrize("tag", [None, 1, 6])
def test_an_orientation_that_xmp_contradicts_is_refused(tmp_path, layout, tag):
    xmp = b'<rdf:Description tiff:Orientation="6"/>'
    tags = [(700, 1, len(xmp), xmp, True)] + ([] if tag is None else [(274, 3, 1, tag, True)])
    path = write(tmp_path / "a.tif", SMOOTH, compression="none", extratags=tags, **layout)
    if tag == 6:
        np.testing.assert_array_equal(whole(open_slide(path)), np.rot90(SMOOTH, -1))
    else:
        with pytest.raises(DataError, match="expected one orientation, found .* in its Exif data and 6 in its XMP"):
            open_slide(path)


def test_levels_of_a_turned_slide(tmp_path):
    pixels, tags = picture(256, 193), [(274, 3, 1, 6, True)]
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        for step in (1, 2):
            own = {"subfiletype": step - 1, "extratags": tags, "tile": (64, 64)}
            tiff.write(pixels[::step, ::step].copy(), photometric="rgb", metadata=None, **own)
    assert [level[:2] for level in open_slide(tmp_path / "a.tif").levels] == [(193, 256)]  # the other would be shifted
    with tifffile.TiffWriter(tmp_path / "b.tif") as tiff:
        for step in (1, 2):
            own = {"subfiletype": step - 1, "extratags": tags, "tile": (64, 64)}
            tiff.write(pixels[:192:step, ::step].copy(), photometric="rgb", metadata=None, **own)
    slide = open_slide(tmp_path / "b.tif")
    np.testing.assert_array_equal(whole(slide, 1), np.rot90(pixels[:192:2, ::2], -1))


def test_levels_in_another_orientation_than_the_slide_are_not_used(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        for step in (1, 2):
            own = {"subfiletype": step - 1, "tile": (64, 64), "extratags": [(274, 3, 1, 3 - 2 * (step - 1), True)]}
            tiff.write(picture(128, 128)[::step, ::step].copy(), photometric="rgb", metadata=None, **own)
    slide = open_slide(tmp_path / "a.tif")
    assert len(slide.levels) == 1
    np.testing.assert_array_equal(whole(slide), picture(128, 128)[::-1, ::-1])


# Channels.


ALPHA = np.broadcast_to(np.linspace(0, 255, 150).astype(np.uint8), (100, 150))
OVER_WHITE = (SLIDE * (ALPHA[..., None] / 255) + 255 - ALPHA[..., None]).round().astype(int)


@pytest.mark.parametrize("alpha", [np.zeros_like(GRAY), ALPHA, GRAY])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_a_fourth_channel_without_a_meaning_is_left_out(tmp_path, layout, alpha, planar):
    pixels = np.dstack([SLIDE, alpha])
    pixels = pixels if planar == "contig" else np.moveaxis(pixels, -1, 0).copy()
    found, notes = read(write(tmp_path / "a.tif", pixels, extrasamples=["unspecified"], planarconfig=planar, **layout))
    np.testing.assert_array_equal(found, SLIDE)
    assert "fourth channel has no stated meaning" in notes


def test_a_fourth_channel_without_its_tag_is_left_out(tmp_path, layout):
    path = write(tmp_path / "a.tif", np.dstack([SLIDE, ALPHA]), extrasamples=["unspecified"], **layout)
    path.write_bytes(path.read_bytes().replace((338).to_bytes(2, "little"), (337).to_bytes(2, "little"), 1))
    with tifffile.TiffFile(path) as tiff:
        assert tiff.pages[0].extrasamples == ()
    np.testing.assert_array_equal(read(path)[0], SLIDE)


@pytest.mark.parametrize("kind", ["assocalpha", "unassalpha"])
def test_a_transparent_slide_is_shown_over_white(tmp_path, layout, kind):
    color = SLIDE if kind == "unassalpha" else (SLIDE * (ALPHA[..., None] / 255)).round().astype(np.uint8)
    found, notes = read(write(tmp_path / "a.tif", np.dstack([color, ALPHA]), extrasamples=[kind], **layout))
    assert difference(found, OVER_WHITE).max() <= 3 and not notes


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite", "palette"])
@pytest.mark.parametrize("compression", ["none", "lzma"])  # OpenSlide does not know the second one
def test_gray_and_palettes(tmp_path, layout, photometric, compression):
    colors = np.random.default_rng(0).integers(1, 256, (3, 256)).astype(np.uint16)
    options = {"colormap": colors * 257} if photometric == "palette" else {}
    found, notes = read(
        write(tmp_path / "a.tif", GRAY, photometric=photometric, compression=compression, **options, **layout)
    )
    assert ("is it a mask" in notes) == (photometric == "palette")
    gray = np.repeat(GRAY[..., None], 3, -1)
    expected = {"minisblack": gray, "miniswhite": 255 - gray, "palette": np.moveaxis(colors, 0, -1)[GRAY]}[photometric]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "pixels, options, found",
    [
        (np.dstack([SLIDE, GRAY]), {"photometric": "separated"}, "the colors SEPARATED"),
        (SLIDE, {"photometric": "cielab"}, "the colors CIELAB"),
        (SLIDE, {"photometric": "ycbcr", "subsampling": (1, 1)}, "YCbCr with the compression NONE"),
        (
            SLIDE,
            {"photometric": "ycbcr", "subsampling": (1, 1), "compression": "deflate"},
            "YCbCr with the compression",
        ),
        (SLIDE, {"photometric": "minisblack", "planarconfig": "contig"}, "3 channels with the colors MINISBLACK"),
        (SLIDE[..., :2].copy(), {"photometric": "minisblack", "planarconfig": "contig"}, "2 channels"),
        (SLIDE.astype(np.int8), {}, "pixels of int8"),
        (SLIDE.astype(np.float32), {"compression": "deflate", "predictor": 3}, "32 bits per channel"),
        (SLIDE.astype(np.uint16), {"bitspersample": 12}, "12 bits per channel"),
        (
            GRAY,
            {"photometric": "palette", "colormap": np.full((3, 256), 255, "u2")},
            "a palette of 8",
        ),
        (
            SLIDE,
            {"compression": "jpeg", "extratags": [(532, 5, 6, (16, 1, 235, 1, 128, 1, 240, 1, 128, 1, 240, 1), True)]},
            "ReferenceBlackWhite",
        ),
    ],
)
def test_pixels_with_two_readings_are_refused(tmp_path, layout, pixels, options, found):
    with pytest.raises(
        DataError, match=f"a.tif: expected .* 8-bit RGB or gray, found .*{found}.*; save it as 8-bit RGB"
    ):
        open_slide(write(tmp_path / "a.tif", pixels, **options, **layout))


@pytest.mark.parametrize("code, found", [(266, "FillOrder 2"), (317, "a predictor with the compression NONE")])
def test_tags_that_readers_ignore_or_not_are_refused(tmp_path, layout, code, found):
    with pytest.raises(DataError, match=re.escape(found)):
        open_slide(with_tag(tmp_path / "a.tif", code, 2, SLIDE, **layout))


# JPEG.


def by_pillow(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=95, subsampling=0)
    return stream.getvalue()


def as_rgb(pixels):
    return imagecodecs.jpeg8_encode(pixels, level=95, colorspace="RGB", outcolorspace="RGB")


def without_markers(stream):
    """Removes what JFIF and Adobe say of the colors."""
    kept, at = stream[:2], 2
    while stream[at + 1] != 0xDA:
        size = 2 + int.from_bytes(stream[at + 2 : at + 4])
        kept += b"" if stream[at + 1] in (0xE0, 0xEE) else stream[at : at + size]
        at += size
    return kept + stream[at:]


@pytest.mark.parametrize("photometric", ["RGB", "YCBCR"])
@pytest.mark.parametrize("stream", [by_pillow, as_rgb, lambda pixels: without_markers(as_rgb(pixels))])
@pytest.mark.parametrize("tile", [(64, 64), None])
def test_jpeg_streams_that_name_their_colors_are_believed(tmp_path, photometric, stream, tile):
    smooth = np.asarray(Image.fromarray(picture(8, 8)).resize((128, 128), 1))
    pieces = [smooth] if tile is None else [smooth[y : y + 64, x : x + 64].copy() for y in (0, 64) for x in (0, 64)]
    path = write(
        tmp_path / "a.tif", (stream(piece) for piece in pieces), shape=smooth.shape, dtype="u1", tile=tile,
        rowsperstrip=None if tile else 128, compression="jpeg", subsampling=(1, 1),
    )  # fmt: skip
    overwrite(path, PhotometricInterpretation=tifffile.PHOTOMETRIC[photometric])
    assert difference(read(path)[0], smooth).mean() < 2


def test_jpeg_of_rgb_with_fewer_pixels_for_two_channels_is_refused(tmp_path):
    path = write(tmp_path / "a.tif", SLIDE, compression="jpeg", tile=(64, 64))  # half the pixels for chroma
    overwrite(path, PhotometricInterpretation=2)
    assert difference(read(path)[0], SLIDE).mean() < 30  # JFIF says YCbCr
    path.write_bytes(path.read_bytes().replace(b"JFIF\0", b"none\0"))
    with pytest.raises(DataError, match="JPEG with the colors RGB but fewer pixels for two of its channels"):
        open_slide(path)


def test_jpeg_2000_in_ycbcr_is_left_to_openslide(tmp_path, layout):
    path = write(tmp_path / "a.tif", SLIDE, compression="aperio_jp2000_ycbc", **layout)
    with pytest.raises(DataError, match=r"found JPEG 2000 in YCbCr \(compression 33003\)"):
        open_slide(path)


# Missing tiles.


def test_tiles_that_the_file_leaves_out_are_counted(tmp_path):
    tiles = iter([SLIDE[:64, :64], None, None, None, None, None])
    path = write(tmp_path / "a.tif", tiles, shape=(100, 150, 3), dtype="u1", tile=(64, 64), compression="deflate")
    pixels, notes = read(path)
    assert "5 of its 6 tiles are not in the file" in notes
    np.testing.assert_array_equal(pixels[:64, :64], SLIDE[:64, :64])
    assert (pixels[64:] == 255).all()
