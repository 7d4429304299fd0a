"""Draws glass.jpg for the page on slides: parts of slides, their labels with glass kept, and with glass taken out.

    python -m bcss_jax.segment --checkpoint=runs/unet --slide=CMU-1-Small-Region.svs --glass=keep --output=keep
    python -m bcss_jax.segment --checkpoint=runs/unet --slide=CMU-1-Small-Region.svs --glass=background --output=glass
    python docs/draw_glass.py --keep=keep --background=glass CMU-1-Small-Region.svs:300,1500,1000,700 ...

After each slide stand x, y, width and height of the part in pixels of level 0.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import tifffile
from matplotlib import pyplot

from bcss_jax.labels import unchecked_scheme
from bcss_jax.slides.reading.open_slide import open_slide

OPACITY = 0.5


def main():
    """Writes glass.jpg beside this script, and prints the areas that were found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=Path, required=True)
    parser.add_argument("--background", type=Path, required=True)
    parser.add_argument("parts", nargs="+")
    arguments = parser.parse_args()
    figure, panels = pyplot.subplots(
        len(arguments.parts), 3, figsize=(10.5, 3.1 * len(arguments.parts)), layout="constrained", squeeze=False
    )
    for row, part in zip(panels, arguments.parts, strict=True):
        path, _, box = part.rpartition(":")
        picture = read_part(Path(path), *map(int, box.split(",")))
        row[0].imshow(picture)
        for panel, folder in zip(row[1:], (arguments.keep, arguments.background), strict=True):
            panel.imshow(painted(picture, folder / Path(path).stem, *map(int, box.split(","))))
        for panel in row:
            panel.set_axis_off()
    for panel, title in zip(panels[0], ("slide", "--glass=keep", "--glass=background"), strict=True):
        panel.set_title(title)
    figure.savefig(Path(__file__).with_name("glass.jpg"), dpi=90, pil_kwargs={"quality": 85})


def read_part(path: Path, x: int, y: int, width: int, height: int) -> np.ndarray:
    """Returns a part of level 0: uint8 [height, width, 3]."""
    slide = open_slide(path)
    picture = slide.read(0, x, y, width, height)
    slide.close()
    return picture


def painted(picture: np.ndarray, folder: Path, x: int, y: int, width: int, height: int) -> np.ndarray:
    """Returns the part with the labels of a folder of results over it; prints the areas of that slide."""
    summary = json.loads((folder / "summary.json").read_text())
    print(folder, {name: summary[name] for name in ("tissue_area_mm2", "glass_area_mm2", "scores") if name in summary})
    colors = np.array(unchecked_scheme(summary["model"]["label_scheme"]).colors)
    evaluated = np.array(unchecked_scheme(summary["model"]["label_scheme"]).evaluated)
    labels = tifffile.imread(folder / "labels.ome.tif", level=0)
    across, down = summary["grid"]["scale"]
    rows = ((y + np.arange(height) + 0.5) / down).astype(int).clip(0, labels.shape[0] - 1)
    columns = ((x + np.arange(width) + 0.5) / across).astype(int).clip(0, labels.shape[1] - 1)
    labels = labels[np.ix_(rows, columns)]
    result = picture.astype(float)
    for value, label in enumerate(evaluated, 1):
        result[labels == value] = (1 - OPACITY) * result[labels == value] + OPACITY * colors[label]
    return result.astype(np.uint8)


if __name__ == "__main__":
    main()
