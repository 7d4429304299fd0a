"""Glass inside tissue is found where it is, and stained tissue is never taken for it."""

import numpy as np
import pytest
from helpers.paths import DATA
from PIL import Image

from bcss_jax.slides.tissue.glass import find_glass, margin_um
from bcss_jax.slides.tissue.tissue_by_color import MOST, density_of_colors, glass_of

GLASS, TISSUE = (241, 240, 242), (200, 130, 180)
COLOR = np.array(GLASS)
MPP = (1.0, 1.0)


def disc(radius, size=101, center=50, mpp=(1.0, 1.0)):
    rows, columns = np.mgrid[:size, :size] - center
    return (columns * mpp[0]) ** 2 + (rows * mpp[1]) ** 2 <= radius**2


def picture(is_glass, glass=GLASS, tissue=TISSUE):
    noise = np.random.default_rng(0).integers(-3, 4, is_glass.shape)
    return (np.where(is_glass[..., None], glass, tissue) + noise[..., None]).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("mpp", ((1.0, 1.0), (2.0, 2.0), (1.0, 1.4)))
def test_a_lumen_is_found_to_its_edge_and_gaps_between_fibers_are_not(mpp):
    lumen = disc(25, mpp=mpp)
    found = find_glass(picture(lumen), mpp, COLOR)
    np.testing.assert_array_equal(found, lumen)
    gap = np.zeros((101, 101), bool)
    gap[:, 50 : 50 + round(4 / mpp[0])] = True  # 4 um wide
    assert not find_glass(picture(gap), mpp, COLOR).any()


def test_glass_at_the_edge_of_the_slide_is_found_and_pale_tissue_is_not():
    strip = np.zeros((101, 101), bool)
    strip[:9] = True
    np.testing.assert_array_equal(find_glass(picture(strip), MPP, COLOR), strip)
    pale = tuple(round(240 * 10**-0.09) for _ in range(3))
    assert not find_glass(picture(disc(25), glass=pale), MPP, COLOR).any()


@pytest.mark.parametrize("glass", ((205, 203, 206), (240, 225, 205), (253, 253, 254)))
def test_dim_and_tinted_glass_is_found_by_its_own_color(glass):
    pixels = picture(disc(25), glass=glass)
    found = find_glass(pixels, MPP, glass_of(pixels, np.ones(pixels.shape[:2], bool)))
    np.testing.assert_array_equal(found, disc(25))


def test_pixels_that_cannot_be_read_and_black_padding_are_not_glass():
    pixels, unreadable = np.full((101, 101, 3), 255, np.uint8), disc(30)
    assert not (find_glass(pixels, MPP, None, unreadable) & unreadable).any()
    assert not find_glass(np.zeros((101, 101, 3), np.uint8), MPP, COLOR).any()


def test_a_pixel_depends_on_its_neighborhood_alone():
    rng = np.random.default_rng(1)
    blobs = np.kron(rng.random((12, 12)), np.ones((20, 20))) < 0.5
    pixels, margin = picture(blobs, tissue=(235, 205, 225)), int(np.ceil(margin_um()))
    whole = find_glass(pixels, MPP, COLOR)
    assert 0.1 < whole.mean() < 0.9
    for top, left in ((37, 41), (50, 63)):
        part = find_glass(pixels[top - margin : top + 90 + margin, left - margin : left + 77 + margin], MPP, COLOR)
        np.testing.assert_array_equal(part[margin:-margin, margin:-margin], whole[top : top + 90, left : left + 77])


def test_no_stained_pixel_of_real_tissue_is_lost():
    """On fat, fibers, sparse tissue and ink; the glass between them is found."""
    folder = DATA / "edge_tiles"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}")
    shares = {}
    for path in sorted(folder.glob("*.png")):
        with Image.open(path) as image:
            full = np.asarray(image.convert("RGB"))
            reduced = np.asarray(image.convert("RGB").reduce(4))  # about 2 um per pixel
        glass = glass_of(full, np.ones(full.shape[:2], bool))
        found = find_glass(reduced, (2.0, 2.0), glass)
        assert not (found & (density_of_colors(reduced, glass) >= MOST)).any(), path.name
        shares[path.name] = found.mean()
    assert all(shares[name] > 0.99 for name in ("almost-white-1.png", "no-tissue.png", "no-tissue2.png"))
    assert shares["low-nuclei-score-level1.png"] > 0.5  # fat
    assert shares["tcga-green-pen.png"] < 0.05
