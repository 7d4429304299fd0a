"""The ground truth of a slide and the scores against it: reading in bands gives the same result, for every size."""

import tracemalloc
import zlib

import numpy as np
import pytest
import tifffile
from helpers.slide_summaries import slide_summary
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bcss_jax import metrics
from bcss_jax.data import image_files
from bcss_jax.data.decoding import tiff_rows
from bcss_jax.errors import ConfigError, DataError
from bcss_jax.evaluation.statistics.surface_distance import surface_scores
from bcss_jax.labels import SCHEMES, lookup_table
from bcss_jax.slides.classes import UNREADABLE
from bcss_jax.slides.grid import Grid, grid_of, nearest_indices
from bcss_jax.slides.reading.mask_file import open_mask
from bcss_jax.slides.scoring import slide_scores
from bcss_jax.slides.scoring import truth as truths
from bcss_jax.slides.scoring.truth import open_truth

SCHEME = SCHEMES["tumor_stroma"]
PALETTE = np.random.default_rng(0).integers(0, 1 << 16, (3, 256), np.uint16)


def random_codes(height, width, seed, codes=(0, 1, 2, 4, 7, 19)):
    """Returns codes in small patches, with a margin that is not annotated."""
    rng = np.random.default_rng(seed)
    patches = np.kron(rng.choice(codes, (-(-height // 7), -(-width // 5))), np.ones((7, 5)))[:height, :width]
    patches[: height // 9], patches[:, : width // 9] = 0, 0
    patches[height // 2, width // 2] = 1
    return patches.astype(np.uint8)


def write_tiff(path, codes, **options):
    tifffile.imwrite(path, codes, metadata=None, **{"photometric": "minisblack", **options})
    return path


def write_pyramid(path, codes, **options):
    """Writes an OME-TIFF with the smaller level in a SubIFD."""
    with tifffile.TiffWriter(path, ome=True, bigtiff=True) as tiff:
        tiff.write(codes, subifds=1, tile=(32, 16), compression="zstd", **options)
        tiff.write(codes[::2, ::2], subfiletype=1, tile=(32, 16), compression="zstd")
    return path


WRITERS = {
    "png": lambda path, codes: Image.fromarray(codes).save(path, format="PNG"),
    "tiles": lambda path, codes: write_tiff(path, codes, tile=(16, 48), compression="deflate", predictor=True),
    "strips": lambda path, codes: write_tiff(path, codes, rowsperstrip=5, compression="lzw"),
    "one strip": lambda path, codes: write_tiff(path, codes),
    "compressed strip": lambda path, codes: write_tiff(path, codes, rowsperstrip=len(codes), compression="packbits"),
    "16 bits": lambda path, codes: write_tiff(path, codes.astype(">u2"), byteorder=">"),
    "palette": lambda path, codes: write_tiff(path, codes, photometric="palette", colormap=PALETTE, tile=(64, 64)),
    "pyramid": write_pyramid,
    "pillow": lambda path, codes: Image.fromarray(codes).save(path, format="TIFF", compression="tiff_adobe_deflate"),
}
IN_ROWS = set(WRITERS) - {"png"}


def written(folder, codes, kind):
    path = folder / ("mask.png" if kind == "png" else "mask.tif")
    WRITERS[kind](path, codes)
    return path


def results_of(folder, predicted, grid):
    """Writes the labels of a finished slide and returns its summary."""
    tifffile.imwrite(folder / "labels.ome.tif", predicted, tile=(32, 32), compression="zlib", metadata=None)
    pixels = tuple(int((predicted == value).sum()) for value in (1, 2))
    unreadable = float((predicted == UNREADABLE).sum() * grid.pixel_mm2)
    return slide_summary(folder / "a.svs", grid.width, grid.height, grid, pixels=pixels, unreadable_area_mm2=unreadable)


def score(folder, summary, path, region=None, scheme=SCHEME):
    return slide_scores.with_scores(summary, folder, path, scheme, "bcss22", region, lambda: None).to_json()


def scores_at_once(codes, predicted, grid, scheme):
    """Returns the scores of whole arrays: the confusion counted pair by pair, and both distances."""
    places = [nearest_indices(size, given) for size, given in zip((grid.height, grid.width), codes.shape, strict=True)]
    labels = lookup_table(scheme, "bcss22")[codes[np.ix_(*places)]]
    known = np.isin(labels, scheme.evaluated)
    values = {value: label for value, label in enumerate(scheme.evaluated, 1)}
    found = np.array([values.get(value, scheme.num_classes) for value in range(256)])[predicted]
    counts = np.zeros((scheme.num_classes + 1,) * 2, np.int64)
    np.add.at(counts, (labels[known], found[known]), 1)
    rows, columns = (np.flatnonzero(known.any(axis=axis)) for axis in (1, 0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]  # its diagonal is the distance of a missed class
    arrays = np.where(known, labels, 255)[box], found[box]
    outlines = surface_scores(*arrays, scheme.evaluated, 255, mpp=grid.mpp, tolerance_um=2.0)
    measures = {"dice": metrics.dice(counts, scheme.evaluated), "recall": metrics.recall(counts, scheme.evaluated)}
    return counts, {**measures, "hd95_um": outlines.hd95_um, "nsd": outlines.nsd}


def assert_equal(found, expected, scheme):
    counts, measures = expected
    columns = [*scheme.evaluated, scheme.num_classes]
    assert found["confusion"]["pixels"] == counts[np.ix_(scheme.evaluated, columns)].tolist()
    for name, values in measures.items():
        got = [found[name][each] for each in scheme.evaluated_names]
        assert got == [None if np.isnan(value) else value for value in values], name


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(9, 90),
    width=st.integers(9, 70),
    mpp=st.sampled_from([0.25, 0.499, 0.11, 0.3]),
    on_grid=st.booleans(),
    band=st.integers(1, 3000),
    kind=st.sampled_from(sorted(WRITERS)),
    scheme=st.sampled_from(["tumor_stroma", "tumor_stroma_other"]),
    seed=st.integers(0, 999),
)
def test_reading_in_bands_gives_the_same_scores_as_whole_arrays(
    tmp_path_factory, height, width, mpp, on_grid, band, kind, scheme, seed
):
    folder, scheme, grid = tmp_path_factory.mktemp("slide"), SCHEMES[scheme], grid_of(width, height, (mpp, mpp), 0.25)
    codes = random_codes(*((grid.height, grid.width) if on_grid else (height, width)), seed)
    rng = np.random.default_rng(seed)
    predicted = rng.choice(np.array([0, 1, 2, UNREADABLE], np.uint8), (grid.height, grid.width), p=[0.1, 0.5, 0.3, 0.1])
    path, summary = written(folder, codes, kind), results_of(folder, predicted, grid)
    x, y, w, h = region = (width // 5, height // 4, width - width // 4, height // 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(truths, "BAND", band)
        found = score(folder, summary, path, region, scheme)
        with open_truth(path, scheme, "bcss22", grid, region) as truth:
            truth.check()
            small = truth.resized(7, 5)
    assert_equal(found["scores"], scores_at_once(codes, predicted, grid, scheme), scheme)
    # For a region, nothing outside of it is annotated. Only the diagonal differs, which is the distance of a missed
    # class.
    inside = np.zeros(predicted.shape, bool)
    rows, columns = (np.arange(size) * along for size, along in zip(inside.shape, grid.scale[::-1], strict=True))
    inside[np.ix_((rows >= y) & (rows < y + h), (columns >= x) & (columns < x + w))] = True
    places = [nearest_indices(size, given) for size, given in zip(inside.shape, codes.shape, strict=True)]
    part = np.where(inside, codes[np.ix_(*places)], 0)
    counts, _ = scores_at_once(part, predicted, grid, scheme)
    pixels = counts[np.ix_(scheme.evaluated, [*scheme.evaluated, scheme.num_classes])]
    assert found["scores_of_region"]["confusion"]["pixels"] == pixels.tolist()
    assert found["scores_of_region"]["level0_x_y_width_height"] == list(region)
    whole = lookup_table(scheme, "bcss22")[codes[np.ix_(*places)]]
    at = [nearest_indices(size, given) for size, given in zip((7, 5), whole.shape, strict=True)]
    np.testing.assert_array_equal(small, whole[np.ix_(*at)])


@pytest.mark.parametrize("kind", sorted(WRITERS))
def test_all_ranges_of_rows_equal_those_of_the_whole_mask(tmp_path, monkeypatch, kind):
    codes = random_codes(77, 53, 3)
    path = written(tmp_path, codes, kind)
    np.testing.assert_array_equal(image_files.read_mask(path, "bcss22"), codes)
    if kind in IN_ROWS:
        monkeypatch.setattr("bcss_jax.slides.reading.mask_file.read_mask", None)  # the mask is never read whole
    with open_mask(path, "bcss22") as mask:
        assert mask.shape == codes.shape
        for start, stop in ((0, 77), (5, 6), (16, 32), (3, 50), (0, 1), (76, 77)):
            found = mask.rows(start, stop)
            assert found.dtype == np.uint8
            np.testing.assert_array_equal(found, codes[start:stop])


def odd_mask(path, name):
    codes = random_codes(40, 30, 1, codes=(0, 1, 2))
    if name == "rgb":
        write_tiff(path, np.stack([codes] * 3, 2), photometric="rgb", tile=(16, 16))
    elif name == "rgba":
        write_tiff(path, np.stack([codes] * 4, 2), photometric="rgb", extrasamples=["unassalpha"])
    elif name == "float":
        write_tiff(path, codes.astype(np.float32))
    elif name == "float with nan":
        write_tiff(path, np.where(codes, np.nan, 0).astype(np.float32))
    elif name == "inverted":
        write_tiff(path, 255 - codes, photometric="miniswhite")
    elif name == "turned":
        write_tiff(path, codes, extratags=[(274, 3, 1, 6, True)])
    elif name == "bilevel":
        Image.fromarray(codes > 0).save(path)
    elif name == "32 bits":
        write_tiff(path, codes.astype(np.int32))
    elif name == "values":
        write_tiff(path, codes + np.uint8(30), tile=(16, 16))
    elif name == "black and white":
        write_tiff(path, np.where(codes, 255, 0).astype(np.uint8), rowsperstrip=3, compression="deflate")
    elif name == "16 bit values":
        write_tiff(path, codes.astype(np.uint16) + 256)
    elif name == "jpeg":
        write_tiff(path, np.where(codes, 9, 0).astype(np.uint8), tile=(16, 16), compression="jpeg")
    elif name == "text":
        path.write_text("no mask")
    elif name == "nothing":
        path.write_bytes(b"")
    elif name == "half":
        write_tiff(path, codes, tile=(16, 16), compression="deflate")
        path.write_bytes(path.read_bytes()[:100])
    elif name == "jpeg file":
        Image.fromarray(codes).save(path, format="JPEG")


ODD = ("rgb", "rgba", "float", "float with nan", "inverted", "turned", "bilevel", "32 bits", "values")
ODD += ("black and white", "16 bit values", "jpeg", "text", "nothing", "half", "jpeg file", "missing")


@pytest.mark.parametrize("name", ODD)
def test_unusual_masks_are_accepted_or_refused_as_in_training(tmp_path, name):
    path = tmp_path / "mask.tif"
    odd_mask(path, name)

    def outcome(read):
        try:
            return read().tolist()
        except DataError as error:
            return str(error)

    def in_rows():
        with open_mask(path, "bcss22") as mask:
            return mask.rows(0, mask.shape[0])

    expected = outcome(lambda: image_files.read_mask(path, "bcss22"))
    assert outcome(in_rows) == expected
    assert isinstance(expected, list) == (name in ("inverted", "turned", "bilevel", "32 bits"))


def test_a_wrong_file_extension_is_a_warning(tmp_path, caplog):
    write_tiff(tmp_path / "mask.png", random_codes(20, 20, 0))
    with open_mask(tmp_path / "mask.png", "bcss22"):
        pass
    assert "mask.png: the content is TIFF" in caplog.text


@pytest.mark.parametrize("kind, found", (("png", "not a TIFF"), ("strip", "strips of 60 rows")))
def test_masks_that_must_be_read_whole_have_a_maximum_size(tmp_path, monkeypatch, kind, found):
    monkeypatch.setattr(image_files, "MAX_PIXELS", 1000)
    monkeypatch.setattr(tiff_rows, "MAX_HELD", 2000)
    codes, path = random_codes(60, 50, 0), tmp_path / ("mask.png" if kind == "png" else "mask.tif")
    if kind == "png":
        Image.fromarray(codes).save(path)
    else:
        write_tiff(path, codes, rowsperstrip=60, compression="deflate")
    with pytest.raises(DataError, match=f"mask.*expected a TIFF with one channel.*found {found}.*save"):
        with open_mask(path, "bcss22"):
            pass
    with open_mask(write_tiff(path, codes, tile=(16, 16), compression="deflate"), "bcss22") as mask:
        assert mask.rows(0, 60).tolist() == codes.tolist()


@pytest.mark.parametrize("damage", ("cut off", "spoilt", "code"))
def test_damage_below_the_first_band_is_found_by_the_check(tmp_path, monkeypatch, damage):
    monkeypatch.setattr(truths, "BAND", 200)
    grid, codes = Grid(50, 80, 0.25, (1.0, 1.0)), random_codes(80, 50, 2)
    if damage == "code":
        codes[70, 49] = 77
    path = write_tiff(tmp_path / "mask.tif", codes, tile=(16, 16), compression="deflate")
    with tifffile.TiffFile(path) as tiff:
        offsets, counts = tiff.pages[0].dataoffsets, tiff.pages[0].databytecounts
    if damage == "cut off":  # the header comes before the tiles
        path.write_bytes(path.read_bytes()[: offsets[-1] + 1])
    elif damage == "spoilt":
        content = bytearray(path.read_bytes())
        content[offsets[-1] : offsets[-1] + counts[-1]] = b"\x5a" * counts[-1]
        path.write_bytes(content)
    said = "pixels with other values .value: pixels = .*77: 1" if damage == "code" else "readable PNG or TIFF"
    with open_truth(path, SCHEME, "bcss22", grid, None) as truth:
        truth.rows(0, 10)
        with pytest.raises(DataError, match=f"mask.tif: .*{said}"):
            truth.check()


def test_rows_between_those_of_the_grid_are_checked_too(tmp_path, monkeypatch):
    monkeypatch.setattr(truths, "BAND", 100)
    for row in range(0, 90, 7):
        codes = np.ones((90, 60), np.uint8)
        codes[row, 5] = 99
        path = write_tiff(tmp_path / "mask.tif", codes, rowsperstrip=4)
        with open_truth(path, SCHEME, "bcss22", Grid(20, 30, 0.75, (3.0, 3.0)), None) as truth:
            with pytest.raises(DataError, match="99: 1"):
                truth.check()


def test_a_ground_truth_without_annotation_is_refused(tmp_path):
    grid, codes = Grid(50, 80, 0.25, (1.0, 1.0)), np.zeros((80, 50), np.uint8)
    with open_truth(write_tiff(tmp_path / "a.tif", codes), SCHEME, "bcss22", grid, None) as truth:
        with pytest.raises(DataError, match="a.tif: expected pixels of tumor, stroma, found none in it"):
            truth.check()
    codes[:10] = 1
    path = write_tiff(tmp_path / "b.tif", codes)
    with open_truth(path, SCHEME, "bcss22", grid, (0, 10, 50, 70)) as truth:
        with pytest.raises(DataError, match="found none in that region"):
            truth.check()
    with pytest.raises(ConfigError, match="does not lie on the slide of 50x80"):
        with open_truth(path, SCHEME, "bcss22", grid, (0, 11, 50, 70)):
            pass
    with pytest.raises(ConfigError, match="--truth_codes=kaggle3"):
        with open_truth(path, SCHEMES["five_classes"], "kaggle3", grid, None):
            pass
    with pytest.raises(DataError, match="expected 60x80 pixels as the slide has .* found 50x80"):
        with open_truth(path, SCHEME, "bcss22", Grid(60, 80, 0.25, (1.0, 1.0)), None):
            pass


def test_labels_that_do_not_match_the_summary_are_refused(tmp_path):
    grid, codes = Grid(50, 80, 0.25, (1.0, 1.0)), random_codes(80, 50, 2)
    predicted = np.where(codes == 2, 2, 1).astype(np.uint8)
    path, summary = write_tiff(tmp_path / "mask.tif", codes), results_of(tmp_path, predicted, grid)
    labels = tmp_path / "labels.ome.tif"
    score(tmp_path, summary, path)

    def refused(found):
        said = f"labels.ome.tif: expected the labels that the summary.json .* found .*{found}.*--overwrite"
        with pytest.raises(DataError, match=said):
            score(tmp_path, summary, path)

    whole = labels.read_bytes()
    with tifffile.TiffFile(labels) as tiff:
        offset = tiff.pages[0].dataoffsets[2]
    labels.write_bytes(whole[:offset] + bytes(8) + whole[offset + 8 :])
    refused("")
    labels.write_bytes(whole[: offset + 5])
    refused("ends early")
    predicted[3, 3] = 3 - predicted[3, 3]
    tifffile.imwrite(labels, predicted, metadata=None)
    refused("pixels of the value 2 in place of")
    tifffile.imwrite(labels, predicted[1:], metadata=None)
    refused("50x79 pixels of uint8")
    labels.unlink()
    refused("No such file")


def test_the_reason_for_omitted_distances_is_stated(tmp_path, monkeypatch, caplog):
    grid, codes = Grid(50, 80, 0.25, (1.0, 1.0)), np.ones((80, 50), np.uint8)
    codes[10:20] = 2
    path = write_tiff(tmp_path / "mask.tif", codes)
    summary = results_of(tmp_path, np.where(codes == 2, 2, 1).astype(np.uint8), grid)
    region = (0, 0, 50, 40)
    complete = score(tmp_path, summary, path, region)
    assert caplog.text == "" and complete["scores"]["nsd"]["macro"] == 1
    assert not any("distances_left_out" in complete[name] for name in ("scores", "scores_of_region"))
    monkeypatch.setattr(slide_scores, "MAX_DISTANCE_PIXELS", 2000)  # exactly the size of the region
    found = score(tmp_path, summary, path, region)
    assert found["scores"]["hd95_um"] is None and found["scores"]["dice"] == complete["scores"]["dice"]
    reason = (
        "the annotated area spans 50 x 80 pixels, and HD95 and NSD can be computed for at most 2,000; --truth_region "
        "scores a part"
    )
    assert found["scores"]["distances_left_out"] == reason
    assert found["scores_of_region"] == complete["scores_of_region"]
    assert [record.getMessage() for record in caplog.records] == [f"a.svs: scores without HD95 and NSD: {reason}"]
    monkeypatch.setattr(slide_scores, "MAX_DISTANCE_PIXELS", 1999)
    found = score(tmp_path, summary, path, region)
    assert "50 x 40" in found["scores_of_region"]["distances_left_out"] and "of the region without HD95" in caplog.text


def constant(path, side, value, top):
    """Writes a TIFF of side x side pixels from two streams: `top` in its first row of tiles, `value` below."""
    streams = [zlib.compress(bytes([each]) * 512**2) for each in (top, value)]
    across = -(-side // 512)
    tiled = (streams[min(1, number // across)] for number in range(across**2))
    tifffile.imwrite(
        path, tiled, shape=(side, side), dtype=np.uint8, tile=(512, 512), compression="zlib", photometric="minisblack",
        metadata=None,
    )  # fmt: skip


def test_memory_does_not_grow_with_the_mask(tmp_path):
    """20,000 x 20,000 pixels, which Pillow refuses, need less than a fifth of their bytes."""
    side = 20_000
    grid = Grid(side, side, 0.25, (1.0, 1.0))
    constant(tmp_path / "mask.tif", side, 2, 1)
    constant(tmp_path / "labels.ome.tif", side, 2, 2)
    summary = slide_summary(tmp_path / "a.svs", side, side, grid, pixels=(0, side**2))
    tracemalloc.start()
    try:
        found = score(tmp_path, summary, tmp_path / "mask.tif")["scores"]
        with open_truth(tmp_path / "mask.tif", SCHEME, "bcss22", grid, None) as truth:
            picture = truth.resized(120, 100)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found["confusion"]["pixels"] == [[0, 512 * side, 0], [0, (side - 512) * side, 0]]
    assert found["hd95_um"] is found["nsd"] is None  # annotated everywhere: too large for surface distances
    assert found["distances_left_out"].startswith("the annotated area spans 20000 x 20000 pixels")
    assert picture[:3].tolist() == [[1] * 100] * 3 and (picture[4:] == 2).all()
    assert peak < side**2 / 5
    with pytest.raises(DataError, match="expected at most 178956970 pixels"):
        image_files.read_mask(tmp_path / "mask.tif", "bcss22")
