"""One rule for the pixels of PNG, JPEG and TIFF: orientation, several pictures, transparency, colors, text bombs."""

import io
import os
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import tifffile
from helpers.tile_files import chunk
from PIL import Image, ImageCms, ImageOps

from bcss_jax.data import image_files
from bcss_jax.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
CODES = np.random.default_rng(1).integers(0, 3, (24, 32), np.uint8)
XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>'


def exif_of(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    return exif


def as_shown(pixels, orientation):
    """Returns pixels as Pillow turns them."""
    picture = Image.fromarray(pixels)
    picture.getexif()[274] = orientation
    return np.asarray(ImageOps.exif_transpose(picture))


def png_with(pixels, *, before=b"", after=b""):
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    whole = content.getvalue()
    return whole[:33] + before + whole[33:-12] + after + whole[-12:]


def read_image(path, content=None):
    if content is not None:
        path.write_bytes(content)
    lines = []
    return image_files.read_image(path, lines.append), lines


# Orientation.


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
def test_images_and_masks_are_turned_as_their_tag_says(tmp_path, suffix, orientation):
    path = tmp_path / f"a.{suffix}"
    options = {"extratags": [(274, 3, 1, orientation, True)], "compression": "deflate"}
    for pixels, read in ((PIXELS, read_image), (CODES, lambda path: (image_files.read_mask(path, "bcss22"), ()))):
        if suffix == "tif":
            tifffile.imwrite(path, pixels, **options)
        elif suffix == "png":
            Image.fromarray(pixels).save(path, exif=exif_of(orientation))
        elif pixels is CODES:
            continue  # masks are not stored as JPEG
        else:
            smooth = np.asarray(Image.fromarray(pixels).resize((8, 6)).resize((32, 24)))
            Image.fromarray(smooth).save(path, exif=exif_of(orientation), quality=95, subsampling=0)
        expected = as_shown(np.asarray(Image.open(path)) if suffix == "jpg" else pixels, orientation)
        found, lines = read(path)
        np.testing.assert_array_equal(found, expected)
        assert image_files.image_size(path) == expected.shape[1::-1]
        if pixels is PIXELS:
            assert lines == [f"{path}: turned as its orientation tag says ({orientation})"]
            np.testing.assert_array_equal(image_files.read_shown(path)[1], expected)


def exif_text(kind, data):
    """Returns a text chunk with Exif data as ImageMagick writes it."""
    digits = b"\nexif\n%8d\n%s\n" % (len(data), data.hex().encode())
    packed = b"\0" + zlib.compress(digits) if kind == b"zTXt" else digits
    return chunk(kind, b"Raw profile type exif\0" + packed)


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("kind", [b"eXIf", b"tEXt", b"zTXt", b"iTXt and eXIf"])
def test_the_orientation_of_a_png_counts_wherever_it_stands(tmp_path, kind, place):
    exif = exif_of(6).tobytes()
    plain = chunk(b"eXIf", exif.removeprefix(b"Exif\0\0"))
    chunks = exif_text(kind, exif) if kind in (b"tEXt", b"zTXt") else plain
    if kind == b"iTXt and eXIf":
        chunks += chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP % 6)
    found, _ = read_image(tmp_path / "a.png", png_with(PIXELS, **{place: chunks}))
    np.testing.assert_array_equal(found, as_shown(PIXELS, 6))
    assert image_files.image_size(tmp_path / "a.png") == (24, 32)


@pytest.mark.parametrize("exif", [None, 1, 3])
def test_orientations_that_contradict_each_other_are_refused(tmp_path, exif):
    said = f"one orientation, found {exif or 'none'} in its Exif data and 6 in its XMP; keep"
    path = tmp_path / "a.tif"
    tags = [(700, 7, len(XMP) - 1, XMP % 6, True)] + ([(274, 3, 1, exif, True)] if exif else [])
    tifffile.imwrite(path, PIXELS, extratags=tags)
    with pytest.raises(DataError, match=said):
        read_image(path)
    options = {"exif": exif_of(exif)} if exif else {}
    Image.fromarray(PIXELS).save(tmp_path / "a.jpg", xmp=XMP % 6, **options)
    with pytest.raises(DataError, match=said):
        image_files.image_size(tmp_path / "a.jpg")
    chunks = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP % 6)
    if exif:
        chunks += chunk(b"eXIf", exif_of(exif).tobytes().removeprefix(b"Exif\0\0"))
    with pytest.raises(DataError, match=said):
        read_image(tmp_path / "a.png", png_with(PIXELS, after=chunks))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_invalid_orientation_is_a_warning(tmp_path, orientation):
    Image.fromarray(PIXELS).save(tmp_path / "a.png", exif=exif_of(orientation))
    tifffile.imwrite(tmp_path / "a.tif", PIXELS, extratags=[(274, 3, 1, orientation, True)])
    for name in ("a.png", "a.tif"):
        found, (line,) = read_image(tmp_path / name)
        np.testing.assert_array_equal(found, PIXELS)
        assert line.endswith(f"its orientation tag has the invalid value {orientation}; read as stored")


def test_damaged_exif_data_have_no_orientation(tmp_path):
    for data in (b"", b"II*\0", b"MM\0*\0\0\0\xff", b"garbage", b"II*\0\x08\0\0\0\xff\xff"):
        np.testing.assert_array_equal(
            read_image(tmp_path / "a.png", png_with(PIXELS, before=chunk(b"eXIf", data)))[0], PIXELS
        )


# Several pictures.


def refused_as_several(path, found=""):
    with pytest.raises(DataError, match=f"expected one picture, found {found}.*; save the one that counts"):
        image_files.read_mask(path, "bcss22")
    with pytest.raises(DataError, match="expected one picture"):
        image_files.image_size(path)


@pytest.mark.parametrize("content", ["apng", "pages", "stack", "imagej", "shaped", "first small", "flagged", "mask"])
def test_files_with_several_pictures_are_refused(tmp_path, content):
    path, frames = tmp_path / "a.tif", np.stack([CODES, CODES[::-1]])
    if content in ("apng", "pages"):
        path = tmp_path / ("a.png" if content == "apng" else "a.tif")
        Image.fromarray(frames[0]).save(path, save_all=True, append_images=[Image.fromarray(frames[1])])
    elif content == "stack":
        tifffile.imwrite(path, frames, photometric="minisblack", metadata=None)
    elif content == "imagej":
        tifffile.imwrite(path, frames, imagej=True)
    elif content == "shaped":
        tifffile.imwrite(path, frames, photometric="minisblack", tile=(16, 16))
    else:
        first = CODES[::2, ::2] if content == "first small" else CODES
        # A copy that is not reduced, and a mask of what is valid.
        second = {"first small": CODES, "flagged": CODES[:, :16], "mask": CODES > 0}[content]
        with tifffile.TiffWriter(path) as tiff:
            tiff.write(first, metadata=None)
            tiff.write(second, metadata=None, subfiletype={"flagged": 1, "mask": 4}.get(content, 0))
    refused_as_several(path)


def test_an_animation_of_one_frame_is_a_picture(tmp_path):
    Image.fromarray(CODES).save(tmp_path / "a.png", save_all=True)
    np.testing.assert_array_equal(image_files.read_mask(tmp_path / "a.png", "bcss22"), CODES)


def test_pictures_in_one_jpeg(tmp_path):
    path, picture = tmp_path / "a.jpg", Image.fromarray(PIXELS)
    picture.save(path, format="MPO", save_all=True, append_images=[picture])
    with pytest.raises(DataError, match="expected one picture, found 2 .MPO."):
        read_image(path)
    # The same file with a second entry of the type "large thumbnail".
    entry = struct.pack("<IIIHH", 0, 0, 0, 0, 0)
    content = path.read_bytes()
    start = content.index(b"MPF\0") + 4
    place = content.index(struct.pack("<HH", 0xB002, 7), start)
    size, offset = struct.unpack_from("<II", content, place + 4)
    assert size == 2 * len(entry)
    second = start + offset + len(entry)
    read_image(path, content[:second] + struct.pack("<I", 0x010001) + content[second + 4 :])


@pytest.mark.parametrize("place", ["subifds", "pages"])
def test_reduced_copies_in_a_tiff_are_not_pictures_of_their_own(tmp_path, place):
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        tiff.write(CODES, subifds=2 if place == "subifds" else None, metadata=None)
        for step in (2, 4):
            tiff.write(CODES[::step, ::step].copy(), subfiletype=1, metadata=None)
    np.testing.assert_array_equal(image_files.read_mask(tmp_path / "a.tif", "bcss22"), CODES)


# Colors and transparency.


@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha", "unspecified"])
def test_a_fourth_channel_of_a_tiff_must_be_opaque(tmp_path, kind):
    alpha = np.full((*PIXELS.shape[:2], 1), 255, np.uint8)
    options = {"photometric": "rgb", "extrasamples": [kind]}
    tifffile.imwrite(tmp_path / "a.tif", np.dstack([PIXELS, alpha]), **options)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif")[0], PIXELS)
    alpha[3, 4] = 254
    tifffile.imwrite(tmp_path / "a.tif", np.dstack([PIXELS, alpha]), **options)
    with pytest.raises(DataError, match="an opaque image, found transparent pixels"):
        read_image(tmp_path / "a.tif")


def test_transparent_areas_of_a_slide_are_white(tmp_path):
    alpha = np.full((*PIXELS.shape[:2], 1), 255, np.uint8)
    alpha[:, :16] = 128
    expected = {"unassalpha": PIXELS * (128 / 255) + 127, "assocalpha": np.minimum(PIXELS + 127.0, 255)}
    for kind, shown in expected.items():
        tifffile.imwrite(tmp_path / "a.tif", np.dstack([PIXELS, alpha]), photometric="rgb", extrasamples=[kind])
        found = image_files.read_shown(tmp_path / "a.tif")[1]
        np.testing.assert_array_equal(found[:, 16:], PIXELS[:, 16:])
        assert np.abs(found[:, :16] - shown[:, :16]).max() <= 1
    tifffile.imwrite(tmp_path / "a.tif", np.dstack([PIXELS, alpha]), photometric="rgb", extrasamples=["unspecified"])
    lines = []
    np.testing.assert_array_equal(image_files.read_shown(tmp_path / "a.tif", lines.append)[1], PIXELS)
    assert len(lines) == 1 and "is left out" in lines[0]


@pytest.mark.parametrize("options", [{"planarconfig": "separate"}, {"compression": "lzw", "predictor": True}])
def test_rgb_tiffs_of_any_arrangement(tmp_path, options):
    pixels = np.moveaxis(PIXELS, 2, 0).copy() if "planarconfig" in options else PIXELS
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", rowsperstrip=5, **options)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif")[0], PIXELS)


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "jpeg", "tiff_adobe_deflate"])
def test_tiffs_are_decoded_as_by_pillow(tmp_path, compression):
    Image.fromarray(PIXELS).save(tmp_path / "a.tif", compression=compression)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif")[0], np.asarray(Image.open(tmp_path / "a.tif")))


def test_a_color_profile_other_than_srgb_is_said(tmp_path):
    for name, lines in (("sRGB", 0), ("XYZ", 1)):
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile(cast(Any, name))).tobytes()
        for path in (tmp_path / "a.png", tmp_path / "a.tif", tmp_path / "a.jpg"):
            Image.fromarray(PIXELS).save(path, icc_profile=profile)
            assert len(read_image(path)[1]) == lines, path
    linear = png_with(PIXELS, before=chunk(b"gAMA", struct.pack(">I", 100_000)))
    assert "gamma (1) is not applied" in read_image(tmp_path / "a.png", linear)[1][0]
    usual = png_with(PIXELS, before=chunk(b"gAMA", struct.pack(">I", 45_455)))
    assert read_image(tmp_path / "a.png", usual)[1] == []


# Damage and bombs.


@pytest.mark.parametrize("place", ["before", "after"])
def test_texts_that_unpack_to_more_than_they_should_are_refused(tmp_path, place):
    for keyword in (b"a", b"Raw profile type exif"):
        bomb = chunk(b"zTXt", keyword + b"\0\0" + zlib.compress(bytes(10**7)))
        with pytest.raises(DataError, match="more than 1048576 bytes|too large"):
            read_image(tmp_path / "a.png", png_with(PIXELS, **{place: bomb}))


def test_a_strip_that_unpacks_to_more_than_it_should_takes_no_more_memory(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, CODES, compression="deflate")
    with tifffile.TiffFile(path) as tiff:
        page = cast(Any, tiff.pages[0])
        offset = page.dataoffsets[0]
        counts = page.tags["StripByteCounts"].valueoffset
    bomb = zlib.compress(CODES.tobytes() + bytes(10**8), 9)
    content = bytearray(path.read_bytes()[:offset] + bomb)
    struct.pack_into("<I", content, counts, len(bomb))
    path.write_bytes(content)
    tracemalloc.start()
    try:
        np.testing.assert_array_equal(image_files.read_mask(path, "bcss22"), CODES)
    except DataError:
        pass
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


@pytest.mark.parametrize("compression", [None, "deflate", "lzw", "jpeg"])
def test_tiffs_that_end_early_are_refused(tmp_path, compression):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.kron(PIXELS, np.ones((4, 4, 1), np.uint8)), compression=compression, rowsperstrip=16)
    whole = path.read_bytes()
    for share in (0.2, 0.6, 0.98):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(DataError, match="a readable PNG, JPEG or TIFF file, found .*; fetch or export"):
            read_image(path)


def test_special_files_are_refused_before_they_are_opened(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(DataError, match="a.png: expected a PNG, JPEG or TIFF file, found a FIFO"):
        read_image(tmp_path / "a.png")
    with pytest.raises(DataError, match="found a device"):
        image_files.read_mask(Path("/dev/zero"), "bcss22")
