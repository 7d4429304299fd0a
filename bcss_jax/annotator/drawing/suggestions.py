"""Regions that a model has found on a slide, offered to be accepted or corrected."""

import dataclasses
import hashlib
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from bcss_jax.annotator.drawing.geojson_file import SlideFacts
from bcss_jax.annotator.drawing.outline import MODEL, Outline, cleaned
from bcss_jax.common.json_files import read_json
from bcss_jax.common.regular_file import read_regular_file
from bcss_jax.errors import DataError, printable
from bcss_jax.slides import slide_summary
from bcss_jax.slides.annotations import geojson
from bcss_jax.slides.annotations.placement import check_placement
from bcss_jax.slides.batch.slide_folder import is_of_several_models, model_folders

REGIONS = "regions.geojson"
_NAMESPACE = uuid.UUID("5f7e0c5c-6c0e-4d7a-9a57-1f0e6a7f3b52")  # of the ids of suggestions


class SuggestionsFile(NamedTuple):
    """A file of regions, and what it is recognized by."""

    path: Path
    digest: str


def suggestions_file(start: Path) -> SuggestionsFile | None:
    """Returns the regions that `bcss_jax.segment` wrote in a folder or as a file; None for a file of annotations.

    Raises:
      DataError: the folder has no regions.
    """
    path = start / REGIONS if start.is_dir() else start
    if start.is_dir() and not path.is_file():
        if is_of_several_models(start):
            models = model_folders(start)
            raise DataError(
                f"--start-from={printable(start)}: expected the results of one model ({REGIONS}), found those of "
                f"{len(models)}, one folder for each; give one of them, for example {printable(models[0])}, or add "
                "--next to be shown where they disagree"
            )
        raise DataError(
            f"--start-from={printable(start)}: expected the results of a slide ({REGIONS}), found none; give the "
            "folder of the slide that python -m bcss_jax.segment wrote"
        )
    if not start.is_dir() and not _is_of_a_model(path):
        return None
    return SuggestionsFile(path, hashlib.sha256(read_regular_file(path, "regions", "check the path")).hexdigest()[:16])


def read_suggestions(
    file: SuggestionsFile, start: Path | None, slide: SlideFacts, fingerprint: dict, warn: Callable[[str], None]
) -> list[Outline]:
    """Returns the regions of a file as outlines that are not accepted, with the same ids each time.

    Args:
      file: the regions.
      start: what the user named, for its summary.
      slide: to which they must belong.
      fingerprint: of the slide, as in `slide_folder.fingerprints`.
      warn: called with one line about everything that is left out.

    Raises:
      DataError: the file cannot be read, or belongs to another slide.
    """
    summary = file.path.parent / slide_summary.FILE
    if start is not None and start.is_dir() and summary.is_file():
        found = slide_summary.read_summary(summary)
        if found.fingerprint != fingerprint:
            raise DataError(
                f"{printable(summary)}: expected the results of {printable(slide.name)}, found those of "
                f"{printable(found.slide.name)} (another file: its size or content differs); give this slide's results"
            )
    if _has_no_regions(file.path):
        return []
    annotations = geojson.read_annotations(file.path, slide.origin, warn)
    check_placement(file.path, annotations, slide.size, slide.mpp, warn=warn)
    outlines = []
    for number, annotation in enumerate(annotations):
        area = cleaned(annotation.area)
        if area is not None:
            identity = str(uuid.uuid5(_NAMESPACE, f"{file.digest}:{number}"))
            name = annotation.names[0] if annotation.names else None
            outlines.append(dataclasses.replace(Outline(identity, name, area, MODEL), accepted=False))
    return outlines


def _is_of_a_model(path: Path) -> bool:
    if path.suffix.lower() == ".xml":
        return False
    content = read_json(path, "annotations as GeoJSON", "export them again", finite=False)
    marker = content.get("bcss_jax") if isinstance(content, dict) else None
    return isinstance(marker, dict) and "um_per_pixel_of_labels" in marker


def _has_no_regions(path: Path) -> bool:
    content = read_json(path, "regions as GeoJSON", "segment the slide again", finite=False)
    return isinstance(content, dict) and content.get("features") == []
