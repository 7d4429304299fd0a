"""Segments a region from simulated strokes, beside the same classifier with all labels of the region.

    python benchmarks/scribbles.py --slide=../shared/data/slides/TCGA-A2-A0D2_pyramid.tif \
        --truth=../shared/data/bcss_roi/masks/TCGA-A2-A0D2-DX1_xmin96887_ymin22299_MPP-0.2500.png --work=runs/scribbles

Strokes are random curves that stay within one class, drawn for the class that has the fewest pixels with strokes until
they cover the share of the region. Both are read and segmented by `bcss_jax.scribble`, and scored on the pixels with
truth and without strokes.
"""

import argparse
import json
from pathlib import Path

import matplotlib
import numpy as np
import openslide
import rasterio.features
import tifffile
from PIL import Image
from scipy import ndimage

from bcss_jax.api.scribbling import LABELS, scribble
from bcss_jax.labels import QUPATH_NAMES, LabelScheme, find_scheme, lookup_table
from bcss_jax.slides.grid import Grid, nearest_indices
from bcss_jax.slides.scribbles.strokes import read_strokes

MPP = 0.5  # um per pixel that strokes are simulated at
BEND = 0.1  # standard deviation of the turn after each pixel, radians
Image.MAX_IMAGE_PIXELS = None


def simulated_strokes(
    truth: np.ndarray, classes: tuple[int, ...], share: float, width: float, length: int, seed: int
) -> list[tuple[int, np.ndarray]]:
    """Returns random curves within the classes.

    Args:
      truth: labels of the region [H, W].
      classes: labels to draw strokes for.
      share: of the pixels of these classes that strokes are to cover.
      width: of a stroke in pixels.
      length: of a stroke in pixels, at most.
      seed: of the strokes.

    Returns:
      The label and the points float64 [n, 2], x and y, of each stroke.
    """
    rng = np.random.default_rng(seed)
    # A pen of this width stays within the class if its middle does.
    inside = {
        label: np.asarray(ndimage.distance_transform_edt(np.pad(truth == label, 1)))[1:-1, 1:-1] > width / 2 + 1
        for label in classes
    }
    wanted, covered = share * np.isin(truth, classes).sum(), dict.fromkeys(classes, 0.0)
    strokes = []
    while sum(covered.values()) < wanted:
        label = min(classes, key=lambda each: covered[each])
        points = _curve(rng, inside[label], length)
        if len(points) > 1:
            covered[label] += len(points) * width  # a point follows each pixel
            strokes.append((label, points))
    return strokes


def _curve(rng: np.random.Generator, inside: np.ndarray, length: int) -> np.ndarray:
    """Returns the points [n, 2], x and y, of a curve that begins anywhere inside and turns away from the border."""
    ys, xs = np.nonzero(inside)
    start = rng.integers(len(ys))
    place, angle, points = np.array([xs[start], ys[start]]) + 0.5, rng.uniform(0, 2 * np.pi), []
    for _ in range(length):
        angle += rng.normal(0, BEND)
        after = place + (np.cos(angle), np.sin(angle))
        x, y = np.floor(after).astype(int)
        if 0 <= y < inside.shape[0] and 0 <= x < inside.shape[1] and inside[y, x]:
            place = after
            points.append(after)
        else:
            angle += rng.choice([-1, 1]) * np.pi / 2
    return np.array(points)


def write_features(path: Path, features: list[tuple[str, dict]]) -> Path:
    """Writes GeoJSON as QuPath does; features are class names with geometries."""
    written = [
        {"type": "Feature", "geometry": geometry, "properties": {"classification": {"name": QUPATH_NAMES[name]}}}
        for name, geometry in features
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": written}))
    return path


def ious(found: np.ndarray, truth: np.ndarray, classes: tuple[int, ...], counts: np.ndarray) -> list[float]:
    """Returns the IoU of each class over the pixels that count."""
    result = []
    for label in classes:
        a, b = (found == label) & counts, (truth == label) & counts
        result.append(float((a & b).sum() / (a | b).sum()))
    return result


class Region:
    """A region with its truth, at level 0 and at the resolution of the strokes."""

    def __init__(self, slide: Path, codes: np.ndarray, scheme: LabelScheme, mpp: float):
        """Reads nothing; `mpp` is that of level 0."""
        self.slide, self.scheme, self.mpp = slide, scheme, mpp
        self.labels = lookup_table(scheme, "bcss22")[codes]
        self.classes = tuple(label for label in scheme.evaluated if (self.labels == label).any())
        self.size = codes.shape[1], codes.shape[0]

    def resampled(self, width: int, height: int) -> np.ndarray:
        """Returns the labels in another size."""
        return self.labels[nearest_indices(height, self.size[1])[:, None], nearest_indices(width, self.size[0])]

    def segmented(self, strokes: Path, output: Path, options: dict) -> np.ndarray:
        """Returns the labels that `bcss_jax.scribble` gives the region."""
        result = scribble(self.slide, strokes, output=output, **options)
        values = tifffile.imread(result.folder / "labels.ome.tif")
        table = np.array([255, *self.scheme.evaluated])
        return table[np.where(values < len(table), values, 0)]


def main() -> None:
    """Measures, prints a table, and draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--slide", type=Path, required=True)
    add("--truth", type=Path, required=True, help="mask of the 22 codes of BCSS")
    add("--work", type=Path, required=True, help="folder for strokes and results")
    add("--labels", default="tumor_stroma_other", help=f"label scheme (bcss_jax.scribble: {LABELS})")
    add("--share", type=float, default=0.01)
    add("--width_um", type=float, default=2.0)
    add("--length_um", type=float, default=50.0)
    add("--seeds", type=int, default=5)
    add("--encoder")
    add("--weights", type=Path)
    add("--checkpoint", type=Path)
    add("--figure", type=Path, help="of the first seed")
    args = parser.parse_args()
    with openslide.OpenSlide(args.slide) as opened:
        mpp = 1e4 / float(opened.properties["tiff.XResolution"])
    region = Region(args.slide, np.asarray(Image.open(args.truth)), find_scheme(args.labels), mpp)
    options = {"labels": args.labels, "stroke_um": args.width_um, "tissue": "all"}
    options |= {"encoder": args.encoder, "weights": args.weights, "checkpoint": args.checkpoint}
    args.work.mkdir(parents=True, exist_ok=True)
    found = _from_all(region, args.work, options)
    truth = region.resampled(found.shape[1], found.shape[0])
    names = [region.scheme.class_names[label] for label in region.classes]
    whole = np.isin(truth, region.classes)
    print(f"strokes, share of the region, IoU of {', '.join(names)}, mean")
    everything = ious(found, truth, region.classes, whole)
    print(f"all labels: {_row(everything)}")
    means = []
    for seed in range(args.seeds):
        path, number = _simulate(region, args, seed)
        labels = region.segmented(path, args.work / f"seed{seed}", options)
        covered = _covered(region, path, args.width_um, labels.shape)
        scores = ious(labels, truth, region.classes, whole & ~covered)
        means.append(np.mean(scores))
        print(f"seed {seed}: {number} strokes, {100 * covered.sum() / whole.sum():.2f} %: {_row(scores)}", flush=True)
        if seed == 0 and args.figure is not None:
            draw(args.figure, region, path, [truth, labels, found])
    ratio = np.array(means) / np.mean(everything)
    print(
        f"mean IoU {np.mean(means):.3f} +- {np.std(means):.3f} over seeds, {100 * ratio.mean():.1f} % "
        f"({100 * ratio.min():.1f} to {100 * ratio.max():.1f}) of all labels"
    )


def _row(scores: list[float]) -> str:
    return f"{', '.join(f'{each:.3f}' for each in scores)}; {np.mean(scores):.3f}"


def _from_all(region: Region, work: Path, options: dict) -> np.ndarray:
    """Returns the segmentation by all labels of the region, which are given as polygons."""
    shapes = rasterio.features.shapes(region.labels, mask=np.isin(region.labels, region.classes))
    polygons = [(region.scheme.class_names[int(label)], geometry) for geometry, label in shapes]
    return region.segmented(write_features(work / "all.geojson", polygons), work / "all", options)


def _simulate(region: Region, args: argparse.Namespace, seed: int) -> tuple[Path, int]:
    """Writes the strokes of a seed; returns the file and their number."""
    scale = MPP / region.mpp
    truth = region.resampled(*(int(side / scale) for side in region.size))
    width, length = args.width_um / MPP, int(args.length_um / MPP)
    strokes = simulated_strokes(truth, region.classes, args.share, width, length, seed)
    lines = [
        (region.scheme.class_names[label], {"type": "LineString", "coordinates": (points * scale).round(1).tolist()})
        for label, points in strokes
    ]
    return write_features(args.work / f"strokes{seed}.geojson", lines), len(lines)


def _covered(region: Region, path: Path, width_um: float, shape: tuple[int, ...]) -> np.ndarray:
    """Returns which pixels of the segmentation strokes cover, bool [H, W]."""
    height, width = shape
    strokes = read_strokes(path, region.scheme, region.size, (region.mpp, region.mpp), (0, 0), width_um)
    grid = Grid(width, height, region.mpp * region.size[0] / width, (region.size[0] / width, region.size[1] / height))
    labels = strokes.labels.labels(0, 0, width, height, grid.scale)
    return np.isin(labels, region.classes)


def draw(path: Path, region: Region, strokes: Path, maps: list[np.ndarray]) -> None:
    """Draws the region with the strokes, and its labels by truth, strokes, and all labels."""
    matplotlib.use("Agg")
    from matplotlib import patheffects, pyplot
    from matplotlib.patches import Patch

    colors = {region.scheme.class_names[label]: np.array(region.scheme.colors[label]) / 255 for label in region.classes}
    figure, axes = pyplot.subplots(1, 4, figsize=(16, 3.6), layout="constrained")
    with openslide.OpenSlide(region.slide) as opened:
        axes[0].imshow(opened.get_thumbnail((1400, 1400)), extent=(0, region.size[0], region.size[1], 0))
    rim = [patheffects.withStroke(linewidth=4, foreground="black")]
    of_qupath = {theirs: ours for ours, theirs in QUPATH_NAMES.items()}
    for feature in json.loads(strokes.read_text())["features"]:
        name = of_qupath[feature["properties"]["classification"]["name"]]
        axes[0].plot(*np.array(feature["geometry"]["coordinates"]).T, color=colors[name], linewidth=2, path_effects=rim)
    for axis, labels in zip(axes[1:], maps, strict=True):
        picture = np.ones((*labels.shape, 3))
        for label, color in zip(region.classes, colors.values(), strict=True):
            picture[labels == label] = color
        axis.imshow(picture[::2, ::2])
    titles = ("strokes", "truth", "from the strokes", "from all labels, same classifier")
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=11)
        axis.set_axis_off()
    figure.legend(
        handles=[Patch(color=tuple(color), label=name) for name, color in colors.items()],
        loc="outside lower center", ncols=len(colors), frameon=False,
    )  # fmt: skip
    figure.savefig(path, dpi=90, pil_kwargs={"quality": 85} if path.suffix == ".jpg" else None)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
