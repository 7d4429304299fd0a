"""Draws the pictures of the page on QuPath: regions of a model, corrections, and the labels that are trained on.

    python docs/qupath/draw_pictures.py --slide=TCGA-A2-A0D2_pyramid.tif --regions=out/regions.geojson --truth=mask.png

The corrections are outlines of necrosis from the truth of BCSS, simplified as if they were drawn by hand.
"""

import argparse
import json
import uuid
from pathlib import Path

import matplotlib
import numpy as np
import rasterio.features
import shapely
from matplotlib import pyplot
from PIL import Image
from rasterio.transform import Affine
from scipy import ndimage

from bcss_jax.labels import BCSS22_NAMES, SCHEMES
from bcss_jax.slides.annotations.slide_labels import open_slide_labels, read_annotations
from bcss_jax.slides.grid import grid_of
from bcss_jax.slides.reading.open_slide import open_slide
from bcss_jax.slides.reading.read_block import read_block

NECROSIS = BCSS22_NAMES.index("necrosis_or_debris")
PIXELS = 900  # width of a panel
SMALLEST = 40_000  # pixels of level 0 of an outline


def main():
    """Writes corrected.geojson beside the regions, and round_trip.jpg beside this script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("slide", "regions", "truth"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    arguments = parser.parse_args()
    slide = open_slide(arguments.slide)
    size = slide.levels[0][:2]
    scale = size[0] / PIXELS
    grid = grid_of(*size, (1.0, 1.0), scale)
    picture, _ = read_block(slide, grid, 0, 0, grid.width, grid.height)

    content = json.loads(arguments.regions.read_text())
    drawn = outlines_of(np.asarray(Image.open(arguments.truth)) == NECROSIS)
    for outline in drawn:
        properties = {"objectType": "annotation", "classification": {"name": "Necrosis", "color": [50, 50, 50]}}
        content["features"].append(
            {"type": "Feature", "id": str(uuid.uuid4()), "geometry": shapely.geometry.mapping(outline)}
            | {"properties": properties}
        )
    corrected = arguments.regions.with_name("corrected.geojson")
    corrected.write_text(json.dumps({"type": "FeatureCollection", "features": content["features"]}))

    scheme = SCHEMES["tumor_stroma"]
    found = []
    for path in (arguments.regions, corrected):
        with open_slide_labels(path, scheme, size, warn=print) as truth:
            found.append(truth.labels(0, 0, grid.width, grid.height, grid.scale))
    colors = np.array(scheme.colors)
    figure, panels = pyplot.subplots(1, 3, figsize=(13, 3.3), layout="constrained")
    titles = ("1  regions of the model, imported", "2  corrected: necrosis outlined", "3  labels that are trained on")
    for panel, title, labels, opacity in zip(panels, titles, (found[0], *found), (0.45, 0.45, 0.75), strict=True):
        blended = (1 - opacity) * picture + opacity * colors[labels]
        panel.imshow(np.where((labels == 0)[..., None] & (opacity < 0.5), picture, blended).astype(np.uint8))
        panel.set_title(title)
    draw(panels[1], [each for each in read_annotations(corrected) if each.names == ("Necrosis",)], scale)
    for panel in panels:
        panel.set_axis_off()
        panel.set(xlim=(0, grid.width), ylim=(grid.height, 0))
    named = zip(("ignored", "tumor", "stroma"), scheme.colors, strict=True)
    handles = [matplotlib.patches.Patch(color=np.array(color) / 255, label=name) for name, color in named]
    panels[2].legend(handles=handles, loc="lower left", fontsize=8)
    figure.savefig(Path(__file__).with_name("round_trip.jpg"), dpi=110, bbox_inches="tight", pil_kwargs={"quality": 85})
    print(f"{len(content['features']) - len(drawn)} regions, {len(drawn)} outlines drawn")


def outlines_of(mask: np.ndarray) -> list[shapely.Polygon]:
    """Returns smooth outlines around the large parts of a mask, in its pixels."""
    step = 8
    smooth = ndimage.gaussian_filter(mask[::step, ::step].astype(np.float32), 4) > 0.5
    shapes = rasterio.features.shapes(smooth.astype(np.uint8), smooth, transform=Affine.scale(step))
    polygons = [shapely.geometry.shape(geometry).simplify(2 * step) for geometry, _ in shapes]
    return [polygon for polygon in polygons if polygon.area > SMALLEST]


def draw(panel, annotations, scale: float) -> None:
    """Draws the outlines of annotations."""
    for annotation in annotations:
        for ring in shapely.get_rings(shapely.get_parts(annotation.area)):
            x, y = (shapely.get_coordinates(ring) / scale).T
            panel.plot(x, y, color="black", linewidth=2.5)


if __name__ == "__main__":
    main()
