import re

import numpy as np
import pytest
import tifffile
from helpers.slide_files import overwrite, picture, whole

from bcss_jax.errors import DataError
from bcss_jax.slides.reading.open_slide import open_slide

SLIDE = picture(256, 192)
HALF, QUARTER = np.ascontiguousarray(SLIDE[::2, ::2]), np.ascontiguousarray(SLIDE[::4, ::4])
STRIP = picture(120, 40, seed=1)  # a label or macro image: small, and of another shape
OTHER = picture(240, 150, seed=2)  # another section, nearly as large
TILED, STRIPED, REDUCED = {"tile": (64, 64)}, {"rowsperstrip": 64}, {"tile": (64, 64), "subfiletype": 1}
NOT_FIRST = "which is not the first picture of the file"


def pages(path, *pictures, **options):
    """Writes pictures, each with its options, as pages of 0.25 um/px."""
    with tifffile.TiffWriter(path, **options) as tiff:
        for pixels, own in pictures:
            photometric = "rgb" if pixels.ndim == 3 else "minisblack"
            resolution = {"resolution": (40_000, 40_000), "resolutionunit": "CENTIMETER"}
            tiff.write(pixels, **{"photometric": photometric, "metadata": None, **resolution, **own})
    return path


def ome(path, pixels, axes, **metadata):
    photometric = "rgb" if axes.endswith("S") else "minisblack"
    tifffile.imwrite(path, pixels, photometric=photometric, metadata={"axes": axes, **metadata}, **TILED)
    return path


def read(path):
    slide = open_slide(path)
    pixels, notes = whole(slide), " ".join(slide.notes)
    slide.close()
    return pixels, notes


@pytest.mark.parametrize(
    "pictures, note",
    [
        ([(QUARTER, TILED), (HALF, TILED), (SLIDE, TILED)], NOT_FIRST),
        ([(QUARTER, STRIPED), (SLIDE, TILED)], NOT_FIRST),
        ([(QUARTER, STRIPED), (SLIDE, STRIPED)], NOT_FIRST),
        ([(QUARTER, TILED), (SLIDE, STRIPED)], NOT_FIRST),
        ([(STRIP, TILED), (SLIDE, TILED)], NOT_FIRST),
        ([(QUARTER, REDUCED), (HALF, REDUCED), (SLIDE, TILED)], NOT_FIRST),
        ([(HALF, {**TILED, "subifds": 1}), (SLIDE, TILED)], "SubIFD 0 of page 0"),
        ([(HALF, {**STRIPED, "subifds": 1}), (SLIDE, STRIPED)], "SubIFD 0 of page 0"),
        ([(SLIDE, {**TILED, "subifds": 1}), (HALF, REDUCED)], ""),
        ([(SLIDE, TILED), (HALF, REDUCED), (QUARTER, REDUCED), (STRIP, STRIPED)], ""),
        ([(SLIDE, TILED), (OTHER, TILED)], r"left out: 240x150 \(page 1\)"),
        ([(SLIDE, TILED), (SLIDE[:186, :248].copy(), TILED)], r"left out: 248x186 \(page 1\)"),
        ([(SLIDE, TILED), (picture(500, 300), {**TILED, "description": "macro image"})], "left out: .*macro image"),
    ],
)
@pytest.mark.parametrize("options", [{}, {"bigtiff": True}, {"byteorder": ">"}])
def test_the_largest_picture_is_the_slide_wherever_it_is(tmp_path, pictures, note, options):
    pixels, notes = read(pages(tmp_path / "a.tif", *pictures, **options))
    np.testing.assert_array_equal(pixels, SLIDE)
    assert re.search(note, notes) if note else notes == ""


def test_levels_below_the_slide_are_used_wherever_the_slide_is(tmp_path):
    path = pages(
        tmp_path / "a.tif", (STRIP, STRIPED), (SLIDE, {**TILED, "subifds": 2}), (HALF, REDUCED), (QUARTER, REDUCED)
    )
    slide = open_slide(path)
    assert [level[:2] for level in slide.levels] == [(256, 192), (128, 96), (64, 48)]
    for level, expected in enumerate((SLIDE, HALF, QUARTER)):
        np.testing.assert_array_equal(whole(slide, level), expected)
        np.testing.assert_array_equal(slide.read(level, 10, 20, 50, 25), expected[20:45, 10:60])


def test_a_slide_in_an_ome_tiff_among_macro_and_label(tmp_path):
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path) as tiff:
        for name, pixels in (("macro image", picture(500, 300)), ("label image", STRIP), ("slide.svs", SLIDE)):
            tiff.write(pixels, photometric="rgb", metadata={"axes": "YXS", "Name": name}, **TILED)
    pixels, notes = read(path)
    np.testing.assert_array_equal(pixels, SLIDE)
    assert "left out: 500x300 (macro image)" in notes


def test_pages_of_an_svs_in_another_order(tmp_path):
    head = "Aperio Image Library v10.0.51\r\n"
    slide = (SLIDE, {**TILED, "description": head + "256x192|AppMag = 40|MPP = 0.25"})
    thumbnail = (QUARTER, {"description": head + "256x192 -> 64x48|AppMag = 40|MPP = 0.25"})
    label = (STRIP, {"description": head + "label 120x40"})
    half = (HALF, {**TILED, "description": head + "256x192 -> 128x96|AppMag = 40|MPP = 0.25"})
    orders = [slide, thumbnail, half, label], [thumbnail, slide, half, label], [half, label, slide, thumbnail]
    for number, order in enumerate(orders):
        opened = open_slide(pages(tmp_path / f"{number}.svs", *order))
        np.testing.assert_array_equal(whole(opened), SLIDE)
        np.testing.assert_array_equal(whole(opened, 1), HALF)
        assert opened.mpp == (0.25, 0.25)
    with pytest.raises(DataError, match=r"expected one picture that is the slide, found only thumbnail \(64x48\)"):
        open_slide(pages(tmp_path / "a.svs", thumbnail, label))


@pytest.mark.parametrize(
    "pictures, found",
    [
        ([(SLIDE, TILED), (SLIDE[::-1].copy(), TILED)], "2 pictures of the same size, 256x192 pixels"),
        ([(SLIDE, STRIPED), (SLIDE[::-1].copy(), STRIPED)], "2 pictures of the same size"),
        ([(SLIDE[..., each].copy(), TILED) for each in (0, 1, 2)], "3 pictures of the same size"),
        ([(SLIDE[..., each].copy(), STRIPED) for each in (0, 1, 2, 0)], "4 pictures of the same size"),
        (
            [(OTHER, TILED), (SLIDE, TILED)],
            "pictures of 240x150 .* and 256x192 .* the first is not the larger",
        ),
        ([(STRIP, {"description": "label"}), (SLIDE, {"description": "macro"})], "only label .*, macro"),
    ],
)
def test_a_tiff_that_does_not_tell_which_picture_is_the_slide_is_refused(tmp_path, pictures, found):
    with pytest.raises(DataError, match=f"a.tif: expected one picture that is the slide, found {found}.*; "):
        open_slide(pages(tmp_path / "a.tif", *pictures))


PLANES = np.moveaxis(SLIDE, -1, 0).copy()


@pytest.mark.parametrize(
    "planes, metadata, note",
    [
        (PLANES, {"Channel": {"Name": ["Red", "Green", "Blue"]}}, ""),
        (PLANES[::-1].copy(), {"Channel": {"Name": ["b", "g", "r"]}}, ""),
        (PLANES[[1, 0, 2]], {"Channel": {"Color": [0x00FF00FF, -16776961, 0x0000FFFF]}}, ""),
        (PLANES, {}, "taken for red, green and blue"),
        (PLANES, {"Channel": {"Name": ["C:0", "C:1", "C:2"]}}, "taken for red, green and blue"),
    ],
)
def test_color_planes_of_an_ome_tiff_are_read_as_rgb(tmp_path, planes, metadata, note):
    pixels, notes = read(ome(tmp_path / "a.ome.tif", planes, "CYX", **metadata))
    np.testing.assert_array_equal(pixels, SLIDE)
    assert note in notes and bool(note) == bool(notes)


@pytest.mark.parametrize(
    "pixels, axes, metadata, found",
    [
        (PLANES, "CYX", {"Channel": {"Name": ["DAPI", "FITC", "TRITC"]}}, r"not red, green and blue \(DAPI"),
        (PLANES, "CYX", {"Channel": {"Name": ["Red", "Green", "Red"]}}, "not red, green and blue"),
        (PLANES[:2].copy(), "CYX", {}, "2 channels"),
        (np.concatenate([PLANES, PLANES]), "CYX", {}, "6 channels"),
        (PLANES, "ZYX", {}, "3 focal planes"),
        (np.stack([SLIDE, SLIDE]), "ZYXS", {}, "2 focal planes"),
        (np.stack([SLIDE, SLIDE]), "TYXS", {}, "2 time points"),
        (np.stack([PLANES, PLANES]), "ZCYX", {}, "3 channels and 2 focal planes in 6 pictures"),
    ],
)
def test_other_planes_of_an_ome_tiff_are_refused(tmp_path, pixels, axes, metadata, found):
    with pytest.raises(DataError, match=f"expected one picture that is the slide, found .*{found}"):
        open_slide(ome(tmp_path / "a.ome.tif", pixels, axes, **metadata))


def test_stacks_of_imagej(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, PLANES, imagej=True, metadata={"axes": "ZYX", "Labels": ["Red", "Green", "Blue"]})
    np.testing.assert_array_equal(read(path)[0], SLIDE)
    tifffile.imwrite(path, PLANES, imagej=True, metadata={"axes": "ZYX"})
    with pytest.raises(DataError, match="found 3 pictures of the same size"):
        open_slide(path)


def test_an_ome_tiff_with_pixels_in_other_files_is_refused(tmp_path):
    ome(tmp_path / "a.ome.tif", SLIDE[..., 0].copy(), "YX")
    xml = tifffile.TiffFile(tmp_path / "a.ome.tif").ome_metadata
    data = '<TiffData FirstC="{}" IFD="0" PlaneCount="1"><UUID FileName="{}">urn:uuid:{}</UUID></TiffData>'
    parts = "".join(data.format(number, f"{name}.ome.tif", name) for number, name in enumerate("abc"))
    begin, end = xml.index("<TiffData"), xml.index("</Pixels>")
    xml = (xml[:begin] + parts + xml[end:]).replace('SizeC="1"', 'SizeC="3"')
    tifffile.imwrite(tmp_path / "a.ome.tif", SLIDE[..., 0], description=xml, metadata=None, ome=False, **TILED)
    with pytest.raises(DataError, match=r"an OME-TIFF with pixels in other files \(b.ome.tif, c.ome.tif\)"):
        open_slide(tmp_path / "a.ome.tif")


def test_a_renamed_ome_tiff_is_complete(tmp_path):
    ome(tmp_path / "a.ome.tif", SLIDE, "YXS")
    xml = tifffile.TiffFile(tmp_path / "a.ome.tif").ome_metadata
    uuid = xml.split('UUID="')[1].split('"')[0]
    xml = xml.replace(
        '<TiffData IFD="0" PlaneCount="1"/>', f'<TiffData IFD="0"><UUID FileName="old.tif">{uuid}</UUID></TiffData>'
    )
    assert "old.tif" in xml
    tifffile.imwrite(tmp_path / "b.ome.tif", SLIDE, photometric="rgb", description=xml, metadata=None, **TILED)
    np.testing.assert_array_equal(read(tmp_path / "b.ome.tif")[0], SLIDE)


def test_a_mask_page_is_not_the_slide(tmp_path):
    path = pages(tmp_path / "a.tif", (SLIDE, TILED), (SLIDE[..., 0].copy(), REDUCED))
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tiff.pages[1].tags["NewSubfileType"].overwrite(4)
    pixels, notes = read(path)
    np.testing.assert_array_equal(pixels, SLIDE)
    assert notes == "its mask of transparency (page 1) is not used"


@pytest.mark.parametrize("place", ["first", "second"])
@pytest.mark.parametrize("layout", [TILED, STRIPED])
def test_a_mask_of_the_size_of_the_slide_is_not_the_slide(tmp_path, layout, place):
    """GDAL writes such masks of transparency; OpenSlide and tiffslide take the first picture of a size."""
    mask = (np.full((192, 256), 255, np.uint8), {**layout, "subfiletype": 1})
    slide = (SLIDE, layout)
    path = pages(tmp_path / "a.tif", *((mask, slide) if place == "first" else (slide, mask)), (HALF, REDUCED))
    overwrite(path, page=int(place == "second"), NewSubfileType=4)
    pixels, notes = read(path)
    np.testing.assert_array_equal(pixels, SLIDE)
    assert f"its mask of transparency (page {int(place == 'second')}) is not used" in notes


def test_strips_are_read_whatever_pages_follow(tmp_path):
    pixels, notes = read(pages(tmp_path / "a.tif", (SLIDE, STRIPED), (HALF, STRIPED), (QUARTER, STRIPED)))
    np.testing.assert_array_equal(pixels, SLIDE)
    assert notes == ""
