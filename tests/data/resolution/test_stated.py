"""What image files say about the size of their pixels."""

import numpy as np
import pytest
import tifffile
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

from bcss_jax.data.resolution.check import resolved_mpp
from bcss_jax.data.resolution.stated import stated_in_file, stated_in_tiff_file
from bcss_jax.errors import DataError

PIXELS = np.full((32, 48, 3), 200, np.uint8)


def ome(path, *, tags=None, size=(48, 32), images=1, **pixels):
    """Writes a TIFF with hand-made OME-XML; `tags` are (x, y, unit)."""
    attributes = " ".join(f'{name}="{value}"' for name, value in pixels.items())
    one = f'<Image ID="Image:0"><Pixels SizeX="{size[0]}" SizeY="{size[1]}" {attributes}><TiffData/></Pixels></Image>'
    xml = f'<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/x">{one * images}</OME>'
    return tiff(path, xml.encode(), tags)


def tiff(path, description=None, tags=None, **options):
    x, y, unit = tags or (1, 1, "NONE")
    tifffile.imwrite(
        path, PIXELS, photometric="rgb", description=description, metadata=None, resolution=(x, y),
        resolutionunit=unit, **options,
    )  # fmt: skip
    return path


def used(path):
    """Returns the um per pixel that a slide gets, and the lines that are said."""
    lines = []
    return resolved_mpp("a", stated_in_file(path), None, lines.append), lines


def sizes(x, y, x_unit, y_unit):
    return {"PhysicalSizeX": x, "PhysicalSizeXUnit": x_unit, "PhysicalSizeY": y, "PhysicalSizeYUnit": y_unit}


@pytest.mark.parametrize(
    "pixels, mpp",
    [
        ({"PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25}, 0.25),  # OME's default unit is um
        (
            {"PhysicalSizeX": 0.25, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.25, "PhysicalSizeYUnit": "\u03bcm"},
            0.25,
        ),
        ({"PhysicalSizeX": 250, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.00025, "PhysicalSizeYUnit": "mm"}, 0.25),
        (
            {"PhysicalSizeX": "2.5e-5", "PhysicalSizeXUnit": "cm", "PhysicalSizeY": "2.5E-7", "PhysicalSizeYUnit": "m"},
            0.25,
        ),
        ({"PhysicalSizeX": "0,5", "PhysicalSizeY": "0,5"}, 0.5),
    ],
)
def test_ome_xml_is_read_in_its_units(tmp_path, pixels, mpp):
    found, lines = used(ome(tmp_path / "a.ome.tif", **pixels))
    assert found == pytest.approx((mpp, mpp)) and lines == []


@pytest.mark.parametrize(
    "pixels, message",
    [
        ({}, "OME-XML: it has no PhysicalSizeX"),
        ({"PhysicalSizeX": 1, "PhysicalSizeY": 1, "PhysicalSizeXUnit": "pixel"}, "'pixel' is no known unit of length"),
        ({"PhysicalSizeX": 1, "PhysicalSizeXUnit": "reference frame"}, "'reference frame' is no known unit"),
        ({"PhysicalSizeX": "a", "PhysicalSizeY": 1}, "PhysicalSizeX='a' is no number"),
        ({"PhysicalSizeX": 0, "PhysicalSizeY": 0.25}, "found 0 by OME-XML"),
        ({"PhysicalSizeX": -0.25, "PhysicalSizeY": -0.25}, "found -0.25 by OME-XML"),
        ({"PhysicalSizeX": 250, "PhysicalSizeY": 250}, "nanometers"),
        ({"PhysicalSizeX": 40, "PhysicalSizeY": 40}, "a magnification"),
        ({"PhysicalSizeX": "NaN", "PhysicalSizeY": "NaN"}, "found nan"),
        ({"PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25, "size": (480, 320)}, "describes no image of 48x32 pixels"),
    ],
)
def test_ome_xml_that_says_no_possible_size_is_refused_with_the_reason(tmp_path, pixels, message):
    with pytest.raises(DataError, match=message):
        used(ome(tmp_path / "a.ome.tif", **pixels))


def test_ome_xml_for_one_direction_is_used_and_said(tmp_path):
    found, (line,) = used(ome(tmp_path / "a.ome.tif", PhysicalSizeX=0.25))
    assert found == (0.25, 0.25) and "gives one direction only" in line


def test_ome_xml_and_tags_that_differ_are_said(tmp_path):
    sizes = {"PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25}
    assert used(ome(tmp_path / "a.ome.tif", tags=(40_000, 40_000, "CENTIMETER"), **sizes)) == ((0.25, 0.25), [])
    assert used(ome(tmp_path / "a.ome.tif", tags=(72, 72, "INCH"), **sizes)) == ((0.25, 0.25), [])
    found, (line,) = used(ome(tmp_path / "a.ome.tif", tags=(20_000, 20_000, "CENTIMETER"), **sizes))
    assert (
        found == (0.25, 0.25) and "0.25 um per pixel by OME-XML" in line and "0.5 by the TIFF's resolution tags" in line
    )


def test_broken_ome_xml_is_named(tmp_path):
    with pytest.raises(DataError, match="OME-XML: it cannot be parsed"):
        used(tiff(tmp_path / "a.tif", "<OME><Image>"))


@pytest.mark.parametrize("unit", ["micron", "um", "\\u00B5m", "microns"])
def test_imagej_has_its_unit_in_the_description(tmp_path, unit):
    assert used(tiff(tmp_path / "a.tif", f"ImageJ=1.53t\nimages=1\nunit={unit}\n", (4, 4, "NONE"))) == (
        (0.25, 0.25),
        [],
    )
    tifffile.imwrite(tmp_path / "b.tif", PIXELS, imagej=True, resolution=(2, 2), metadata={"unit": unit})
    assert used(tmp_path / "b.tif") == ((0.5, 0.5), [])


@pytest.mark.parametrize(
    "unit, tags, mpp",
    [
        ("inch", (101_600, 101_600, "INCH"), 0.25),
        ("cm", (40_000, 40_000, "CENTIMETER"), 0.25),
        ("nm", (0.004, 0.004, "NONE"), 0.25),
        ("pixel", (1, 1, "NONE"), "ImageJ .unit=pixel.: no known unit"),
        ("inch", (72, 72, "INCH"), "screen"),
        ("um", (40_000, 40_000, "CENTIMETER"), "found 2.5e-05 by ImageJ .* .and 0.25 by the TIFF's resolution tags"),
    ],
)  # fmt: skip
def test_units_of_imagej(tmp_path, unit, tags, mpp):
    path = tiff(tmp_path / "a.tif", f"ImageJ=1.53t\nunit={unit}\n", tags)
    if isinstance(mpp, str):
        with pytest.raises(DataError, match=mpp):
            used(path)
    else:
        assert used(path)[0] == pytest.approx((mpp, mpp))


@pytest.mark.parametrize(
    "tags, message",
    [
        ((40_000, 40_000, "NONE"), "without a unit of length"),
        ((0, 0, "CENTIMETER"), "0 x 0 pixels per centimeter"),
        ((10, 10, "INCH"), "screen"),
    ],
)
def test_tags_that_say_nothing_are_named(tmp_path, tags, message):
    with pytest.raises(DataError, match=f"found no um per pixel .the TIFF's resolution tags: .*{message}"):
        used(tiff(tmp_path / "a.tif", None, tags))


def test_tags_in_inches_and_for_one_direction(tmp_path):
    assert used(tiff(tmp_path / "a.tif", None, (101_600, 101_600, "INCH"))) == ((0.25, 0.25), [])
    found, (line,) = used(tiff(tmp_path / "a.tif", None, (40_000, 20_000, "CENTIMETER")))
    assert found == (0.25, 0.5) and "not square" in line


def test_aperio_says_mpp_and_magnification(tmp_path):
    said = "Aperio Image Library v10.0.51\r\n48x32|AppMag = {}|MPP = {}"
    assert used(tiff(tmp_path / "a.tif", said.format(40, 0.2525))) == ((0.2525, 0.2525), [])
    assert used(tiff(tmp_path / "a.tif", said.format(20, "0,499"))) == ((0.499, 0.499), [])
    found, (line,) = used(tiff(tmp_path / "a.tif", said.format(20, 0.25)))
    assert found == (0.25, 0.25) and "an objective of 20x (usually 0.5 um)" in line
    found, (line,) = used(tiff(tmp_path / "a.tif", said.format(40, 0.25) + "|MPP = 0.5"))
    assert found == (0.25, 0.25) and "0.5 by Aperio" in line


def test_only_the_image_of_the_asked_size_counts(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for pixels, density in ((PIXELS[::4, ::4], 10_000), (PIXELS, 40_000)):
            file.write(
                pixels, photometric="rgb", resolution=(density, density), resolutionunit="CENTIMETER", metadata=None
            )
    assert [each.mpp for each in stated_in_tiff_file(tmp_path / "a.tif", 48, 32)] == [(0.25, 0.25)]
    assert stated_in_tiff_file(tmp_path / "a.tif", 50, 50) == ()


def test_png_jpeg_and_exif(tmp_path):
    image = Image.fromarray(PIXELS)
    image.save(tmp_path / "a.png", dpi=(101_600, 101_600))
    assert used(tmp_path / "a.png")[0] == pytest.approx((0.25, 0.25))
    image.save(tmp_path / "a.jpg", dpi=(50_800, 50_800))
    assert used(tmp_path / "a.jpg")[0] == pytest.approx((0.5, 0.5))
    exif = Image.Exif()
    exif[282] = exif[283] = IFDRational(40_000)
    exif[296] = 3
    image.save(tmp_path / "b.jpg", dpi=(50_800, 50_800), exif=exif)
    found, (line,) = used(tmp_path / "b.jpg")
    assert found == (0.5, 0.5) and "0.25 by EXIF" in line
    image.save(tmp_path / "c.png")
    assert stated_in_file(tmp_path / "c.png") == ()
    (tmp_path / "d.png").write_bytes(b"\x89PNG")
    assert stated_in_file(tmp_path / "d.png") == () == stated_in_file(tmp_path / "none.png")
