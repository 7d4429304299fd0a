import subprocess
import sys

import numpy as np
import pytest
import tifffile
from helpers.paths import ROOT
from helpers.slide_files import difference, picture, svs, tiled, whole
from PIL import Image

from bcss_jax.errors import DataError
from bcss_jax.slides.reading import open_slide as open_slide_module
from bcss_jax.slides.reading import openslide_backend
from bcss_jax.slides.reading.backend import Level
from bcss_jax.slides.reading.open_slide import open_slide
from bcss_jax.slides.reading.tiffslide_backend import TiffSlideSlide

# Formats.


def test_openslide_reads_tiled_tiffs_and_svs_files(tmp_path):
    pixels = picture(300, 200)
    slide = open_slide(tiled(tmp_path / "a.tif", pixels, levels=3))
    assert (slide.format, slide.mpp, slide.bounds) == ("generic-tiff", (0.25, 0.25), None)
    assert slide.levels == (Level(300, 200, 1.0), Level(150, 100, 2.0), Level(75, 50, 4.0))
    assert [slide.tile_size(level) for level in range(3)] == [(64, 64)] * 3
    for level in range(3):
        np.testing.assert_array_equal(whole(slide, level), pixels[:: 2**level, :: 2**level])
    slide = open_slide(svs(tmp_path / "a.svs", pixels, mpp="0.499", compression="jpeg2000"))
    assert (slide.format, slide.mpp) == (
        "tiffslide",
        (0.499, 0.499),
    )  # OpenSlide does not know this code of JPEG 2000
    slide = open_slide(svs(tmp_path / "b.svs", pixels, mpp="0.499"))
    assert (slide.format, slide.mpp, slide.levels) == ("aperio", (0.499, 0.499), (Level(300, 200, 1.0),))
    assert difference(whole(slide), pixels).mean() < 10


def test_tiffslide_reads_files_whose_names_look_like_urls(tmp_path):
    pixels = picture(300, 200)
    path = tiled(tmp_path / "zip::https:a.tif", pixels, levels=2)
    slide = TiffSlideSlide(path)
    assert (slide.format, slide.mpp) == ("tiffslide", (0.25, 0.25))
    for level in range(2):
        np.testing.assert_array_equal(whole(slide, level), pixels[:: 2**level, :: 2**level])
        np.testing.assert_array_equal(
            slide.read(level, 33, 21, 70, 50), pixels[:: 2**level, :: 2**level][21:71, 33:103]
        )
    slide.close()


def test_tiffslide_is_used_if_openslide_is_not_installed(tmp_path):
    tiled(tmp_path / "a.tif", picture(100, 80))
    code = (
        "import sys; sys.modules['openslide'] = None\n"
        "from bcss_jax.slides.reading.open_slide import open_slide\n"
        "slide = open_slide(sys.argv[1]); print(slide.format, slide.read(0, 0, 0, 100, 80).mean())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.tif")], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.stdout.split() == ["tiffslide", str(picture(100, 80).mean())], result.stderr


@pytest.mark.parametrize("options", [{}, {"compression": "deflate", "rowsperstrip": 16}])
def test_untiled_tiffs_are_read_whole_when_small_and_in_pieces_when_large(tmp_path, monkeypatch, options):
    pixels = picture(300, 200)
    path = tmp_path / "flat.tif"
    resolution = {"resolution": (40_000, 40_000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, pixels, photometric="rgb", **resolution, **options)
    slide = open_slide(path)
    assert (slide.format, slide.in_memory) == ("tiff", True)
    assert slide.mpp == pytest.approx((0.25, 0.25))
    np.testing.assert_array_equal(whole(slide), pixels)
    monkeypatch.setattr(open_slide_module, "IN_MEMORY_PIXELS", 1000)
    slide = open_slide(path)
    assert (slide.format, slide.in_memory) == ("tiffslide", False)
    np.testing.assert_array_equal(slide.read(0, 17, 31, 200, 150), pixels[31:181, 17:217])


def test_a_large_tiff_in_one_compressed_piece_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "flat.tif"
    tifffile.imwrite(
        path, np.zeros((4100, 4100, 3), np.uint8), photometric="rgb", compression="deflate", rowsperstrip=4100
    )
    monkeypatch.setattr(open_slide_module, "IN_MEMORY_PIXELS", 1000)
    with pytest.raises(DataError, match="found tiles or strips of 4100x4100 pixels, which cannot be read in parts"):
        open_slide(path)


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_plain_images_are_slides_of_one_level(tmp_path, name):
    pixels = picture(120, 90)
    Image.fromarray(pixels).save(tmp_path / name, dpi=(72, 72), quality=95)
    slide = open_slide(tmp_path / name)
    assert slide.levels == (Level(120, 90, 1.0),)
    assert slide.format == {"a.png": "png", "a.jpg": "jpeg"}[name]
    assert slide.mpp is None  # 72 dpi is the resolution of a screen
    assert difference(slide.read(0, 5, 6, 50, 40), pixels[6:46, 5:55]).mean() < 6
    Image.fromarray(pixels).save(tmp_path / name, dpi=(50_800, 50_800))
    assert open_slide(tmp_path / name).mpp == pytest.approx((0.5, 0.5), rel=1e-3)


def shown(image):
    """Returns what a viewer with a white background shows: uint8 [H, W, 3]."""
    white = Image.new("RGBA", image.size, "white")
    return np.asarray(Image.alpha_composite(white, image.convert("RGBA")).convert("RGB"))


@pytest.mark.parametrize(
    "suffix, mode",
    [*(("png", mode) for mode in ("L", "1", "LA", "P", "RGBA")), *(("tif", mode) for mode in ("L", "1", "P", "RGBA"))],
)
def test_plain_images_of_other_modes_are_read_as_a_viewer_shows_them(tmp_path, suffix, mode):
    image = Image.fromarray(picture(120, 90)).convert(mode)
    if mode in ("LA", "RGBA"):  # transparent at the left, half transparent in the middle
        image.putalpha(Image.fromarray(np.repeat(np.uint8([0, 128, 255]), 40)[None].repeat(90, 0)))
    image.save(tmp_path / f"a.{suffix}")
    slide = open_slide(tmp_path / f"a.{suffix}")
    assert (slide.format, slide.in_memory) == ({"png": "png", "tif": "tiff"}[suffix], True)
    assert any("is it a mask" in note for note in slide.notes) == (mode == "P")
    assert difference(whole(slide), shown(image)).max() <= 1  # rounding of half transparent pixels
    if mode in ("LA", "RGBA"):
        assert (whole(slide)[:, :40] == 255).all()


def test_a_color_of_a_palette_that_is_transparent_is_white(tmp_path):
    indices = np.uint8([[0, 1], [2, 1]])
    image = Image.fromarray(indices, "P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.save(tmp_path / "a.png", transparency=1)
    expected = np.uint8([[[10, 20, 30], [255] * 3], [[70, 80, 90], [255] * 3]])
    np.testing.assert_array_equal(whole(open_slide(tmp_path / "a.png")), expected)


@pytest.mark.parametrize("options", [{}, {"tile": (64, 64)}, {"tile": (64, 64), "compression": "deflate"}])
@pytest.mark.parametrize("photometric", ["rgb", "minisblack"])
@pytest.mark.parametrize("dtype, found", [("u2", "16|uint16"), ("f4", "32|float32")])
def test_more_than_8_bits_are_refused_however_they_are_stored(tmp_path, options, photometric, dtype, found):
    pixels = picture(99, 99) if photometric == "rgb" else picture(99, 99)[..., 0]
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels.astype(dtype) * 16, photometric=photometric, **options)  # 12 bits of 16 are used
    with pytest.raises(
        DataError, match=f"a.tif: expected .*8-bit RGB or gray, found .*({found}).*; save it as 8-bit RGB"
    ):
        open_slide(path)


def test_a_png_of_16_bits_is_refused(tmp_path):
    Image.fromarray(picture(99, 99)[..., 0].astype(np.uint16) * 257).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="a.png: expected 8 bits per channel, found 16 bits or more; save as 8-bit RGB"):
        open_slide(tmp_path / "a.png")


@pytest.mark.parametrize("options", [{}, {"tile": (64, 64)}])
def test_channels_that_are_not_colors_are_refused(tmp_path, options):
    pixels = np.dstack([picture(99, 99), picture(99, 99)])
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig="contig", **options)
    with pytest.raises(DataError, match="found 6 channels; save it as 8-bit RGB"):
        open_slide(path)


def test_print_colors_are_refused(tmp_path):
    Image.fromarray(picture(99, 99)).convert("CMYK").save(tmp_path / "a.jpg")
    with pytest.raises(DataError, match="found the color mode CMYK; save it as 8-bit RGB"):
        open_slide(tmp_path / "a.jpg")


@pytest.mark.parametrize("options", [{}, {"tile": (64, 64)}])
def test_tiffs_of_inverted_gray(tmp_path, options):
    gray = picture(99, 99)[..., 0]
    tifffile.imwrite(tmp_path / "a.tif", gray, photometric="miniswhite", **options)
    np.testing.assert_array_equal(whole(open_slide(tmp_path / "a.tif")), np.repeat(255 - gray[..., None], 3, -1))


@pytest.mark.parametrize(
    "found, options",
    [
        ("uint16", {"pixels": picture(99, 99).astype(np.uint16)}),
        (
            "PALETTE",
            {"pixels": picture(99, 99)[..., 0], "photometric": "palette", "colormap": np.zeros((3, 256), "u2")},
        ),
        ("2 channels", {"pixels": picture(99, 99)[..., :2], "photometric": "minisblack", "planarconfig": "contig"}),
    ],
)
def test_tiffslide_refuses_pixels_that_are_not_8_bit_rgb(tmp_path, found, options):
    pixels = options.pop("pixels")
    tifffile.imwrite(tmp_path / "a.tif", pixels, tile=(64, 64), **{"photometric": "rgb", **options})
    with pytest.raises(DataError, match=f"8-bit RGB or gray, found .*{found}; save it as 8-bit RGB"):
        TiffSlideSlide(tmp_path / "a.tif")


# Resolution.


@pytest.mark.parametrize(
    "text, mpp",
    [("0.25", (0.25, 0.25)), ("0", (0.0, 0.0)), ("-1", (-1.0, -1.0)), ("250", (250.0, 250.0)), (None, None)],
)
def test_the_resolution_in_an_svs_is_returned_unchecked(tmp_path, text, mpp):
    assert open_slide(svs(tmp_path / "a.svs", picture(99, 99), mpp=text)).mpp == mpp


def test_an_svs_without_a_resolution_has_that_of_its_tags(tmp_path):
    tags = {"resolution": (40_000, 39_000), "resolutionunit": "CENTIMETER"}
    mpp = open_slide(svs(tmp_path / "a.svs", picture(99, 99), mpp=None, **tags)).mpp
    assert mpp == pytest.approx((0.25, 10_000 / 39_000))


@pytest.mark.parametrize("opened", [open_slide, TiffSlideSlide])
def test_the_resolution_of_a_screen_is_ignored(tmp_path, opened):
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, picture(99, 99), tile=(64, 64), photometric="rgb", resolution=(72, 72), resolutionunit="INCH"
    )
    assert opened(path).mpp is None


def test_the_scanned_area_is_read_if_the_slide_stores_it():
    names = {
        f"openslide.bounds-{name}": str(value)
        for name, value in zip(("x", "y", "width", "height"), (5, 6, 70, 80), strict=True)
    }
    assert openslide_backend._bounds(names) == (5, 6, 70, 80)
    del names["openslide.bounds-y"]
    assert openslide_backend._bounds(names) is None


# Transparent and missing parts.


def test_transparent_parts_are_white(tmp_path):
    pixels = np.dstack([picture(100, 64), np.full((64, 100), 255, np.uint8)])
    pixels[:, :50, 3] = 0
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, tile=(64, 64), photometric="rgb", extrasamples=["unassalpha"])
    for slide in (open_slide(path), TiffSlideSlide(path)):
        assert (whole(slide)[:, :50] == 255).all()
        np.testing.assert_array_equal(whole(slide)[:, 50:], pixels[:, 50:, :3])


@pytest.mark.parametrize("opened", [open_slide, TiffSlideSlide])
def test_tiles_that_the_file_leaves_out_are_white(tmp_path, opened):
    pixels = picture(128, 128)
    quarters = [pixels[:64, :64], None, None, pixels[64:, 64:]]
    path = tmp_path / "sparse.tif"
    tifffile.imwrite(
        path,
        iter(quarters),
        shape=pixels.shape,
        dtype=np.uint8,
        tile=(64, 64),
        photometric="rgb",
        compression="deflate",
    )
    expected = pixels.copy()
    expected[:64, 64:] = expected[64:, :64] = 255
    np.testing.assert_array_equal(whole(opened(path)), expected)
