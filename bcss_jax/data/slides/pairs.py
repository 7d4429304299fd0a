"""Pairs the slides in a folder with their annotations, by the names of the files."""

import collections
from pathlib import Path

from bcss_jax.data.image_folder import LeftOut, comparable, is_hidden, sorted_entries
from bcss_jax.errors import DataError, printable

DRAWN = (".geojson", ".json", ".xml")  # annotations of QuPath and ASAP
SCANS = (".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".dcm", ".czi")  # always slides
IMAGES = (".tif", ".tiff", ".png", ".jpg", ".jpeg")  # slides, or masks of codes
MASKS = (".png", ".tif", ".tiff")
MASK_WORDS = ("_mask", "-mask", "_labels", "-labels")  # end the stem of a mask beside a slide of the same kind


def pairs_in_folder(folder: Path, left_out: LeftOut) -> tuple[list[tuple[Path, Path]], list[str]]:
    """Returns the slides in a folder with their annotations.

    Annotations have the stem of their slide, or its whole name before their own ending (`a.svs.geojson`). A PNG or TIFF
    is a mask if a slide of that stem is there, or if its stem is that of a slide and ends in one of `MASK_WORDS`.

    Args:
      folder: is not searched deeper.
      left_out: gets everything else in the folder.

    Returns:
      (slide, annotations) sorted by name; and a line for each file that has no partner.

    Raises:
      DataError: the folder cannot be read, or it is not clear which file belongs to which.
    """
    scans, drawn = collections.defaultdict(list), collections.defaultdict(list)
    images = collections.defaultdict(list)
    kinds = ((SCANS, scans), (DRAWN, drawn), (IMAGES, images))
    for entry in sorted_entries(folder, "a folder with slides and annotations"):
        path = folder / entry.name
        files = next((files for endings, files in kinds if path.suffix.lower() in endings), None)
        if is_hidden(entry.name):
            left_out.hidden.append(path)
        elif files is not None and not (entry.is_dir() and files is not scans):
            files[_stem(path)].append(path)
        elif entry.is_dir():
            left_out.folders.append(path)
        else:
            left_out.others.append(path)
    slides, masks = _divide_images(scans, images)
    annotations = drawn
    for stem, paths in masks.items():
        annotations[stem] += paths
    _join_whole_names(slides, annotations)
    return _paired(slides, annotations)


def _stem(path: Path) -> str:
    """Returns the name without its ending, as names are compared."""
    stem = path.name[: -len(path.suffix)]
    return comparable(stem[:-4] if stem.lower().endswith(".ome") else stem)


def _divide_images(scans: dict, images: dict) -> tuple[dict, dict]:
    """Returns the slides and the masks by stem; an image is a mask if it stands beside a slide."""
    slides, masks = {stem: list(paths) for stem, paths in scans.items()}, collections.defaultdict(list)
    for stem, paths in images.items():
        word = next((word for word in MASK_WORDS if stem.endswith(word)), None)
        of_slide = stem[: -len(word)] if word else None
        if of_slide and (of_slide in scans or of_slide in images):
            masks[of_slide] += paths
        elif stem in scans:
            masks[stem] += paths
        else:
            pngs = [path for path in paths if path.suffix.lower() == ".png"]
            if len(paths) == 2 and len(pngs) == 1:  # a TIFF or JPEG, and a PNG without loss
                masks[stem] += pngs
                paths = [path for path in paths if path not in pngs]
            slides[stem] = paths
    return slides, masks


def _join_whole_names(slides: dict, annotations: dict) -> None:
    """Moves annotations that are named after the whole name of a slide to its stem."""
    for stem, paths in slides.items():
        for path in paths:
            whole = comparable(path.name)
            if whole in annotations and whole != stem:
                annotations[stem] = annotations.get(stem, []) + annotations.pop(whole)


def _paired(slides: dict, annotations: dict) -> tuple[list[tuple[Path, Path]], list[str]]:
    pairs, missing = [], []
    for stem in sorted(slides.keys() | annotations.keys()):
        scans, drawn = slides.get(stem, []), annotations.get(stem, [])
        for files, what in ((scans, "slide"), (drawn, "file of annotations")):
            if len(files) > 1:
                raise DataError(
                    f"{printable(files[1])}: expected one {what} of that stem, found {printable(files[0].name)} too; "
                    "remove or rename one of them, or give a list with --config.data.list"
                )
        if not scans and drawn:
            missing.append(f"{printable(drawn[0])}: expected a slide of the same stem, found none")
        elif scans and not drawn:
            missing.append(
                f"{printable(scans[0])}: expected annotations of the same stem (.geojson, .json, .xml, or a mask as "
                ".png or .tif), found none"
            )
        elif scans:
            pairs.append((scans[0], drawn[0]))
    return pairs, missing
