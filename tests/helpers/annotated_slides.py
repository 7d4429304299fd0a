"""Small annotated slides: PNG or TIFF images whose annotations are boxes."""

import csv
import json

import cv2
import numpy as np

SIDE = 160  # pixels of a slide


def box(x, y, width, height, name):
    """Returns an annotation as QuPath writes it."""
    ring = [[x, y], [x + width, y], [x + width, y + height], [x, y + height], [x, y]]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"objectType": "annotation", "classification": {"name": name, "color": [200, 0, 0]}},
    }


BOXES = (box(0, 0, 64, 64, "Tumor"), box(64, 0, 64, 128, "Stroma"))


def write_slide(folder, stem, boxes=BOXES, seed=0, side=SIDE):
    """Writes `stem`.png and `stem`.geojson. Returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(120, 230, (side // 8, side // 8, 3), dtype=np.uint8)
    slide, annotations = folder / f"{stem}.png", folder / f"{stem}.geojson"
    cv2.imwrite(str(slide), np.kron(pixels, np.ones((8, 8, 1), np.uint8)))
    annotations.write_text(json.dumps({"type": "FeatureCollection", "features": list(boxes)}))
    return slide, annotations


def write_list(path, rows, columns=("slide", "annotations", "mpp", "patient")):
    """Writes a CSV list."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def listed_slides(folder, patients=("a", "b"), splits=None, name="list.csv", **slide):
    """Writes a slide for each patient, and a list of them. Returns the list."""
    rows = []
    for number, patient in enumerate(patients):
        files = write_slide(folder, f"slide{number}", seed=number, **slide)
        rows.append([*(file.name for file in files), 0.25, patient, *([splits[number]] if splits else [])])
    columns = ("slide", "annotations", "mpp", "patient", *(["split"] if splits else []))
    return write_list(folder / name, rows, columns)
