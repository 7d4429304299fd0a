"""Which label of a scheme the class of an annotation stands for."""

import difflib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from shapely.geometry.base import BaseGeometry

from bcss_jax.errors import DataError, printable
from bcss_jax.labels import LabelScheme, annotation_labels, comparable
from bcss_jax.slides.annotations.annotation import Annotation

log = logging.getLogger(__name__)


class Labeled(NamedTuple):
    """Annotations by what they mean.

    Attributes:
      by_label: areas of each label that occurs, the label that wins where areas overlap first.
      regions: areas that bound what is annotated exhaustively.
    """

    by_label: dict[int, list[BaseGeometry]]
    regions: list[BaseGeometry]


def label_annotations(
    path: Path,
    annotations: list[Annotation],
    scheme: LabelScheme,
    region: str | None = None,
    warn: Callable[[str], None] = log.warning,
    *,
    may_have_region: bool = True,
) -> Labeled:
    """Returns annotations by their labels; those without a class are left out.

    Args:
      path: their file, for messages.
      annotations: as read from the file.
      scheme: which names have which labels. The most specific name that it knows counts.
      region: name of the annotations that bound what is annotated exhaustively, or None.
      warn: called with one line on annotations that are left out or taken by a more general name.
      may_have_region: a region could be named; the message about an unknown name says so.

    Raises:
      DataError: the scheme does not know the name of a class; there is no region; or no annotation has a class.
    """
    wanted = None if region is None else comparable(region)
    by_label: dict[int, list[BaseGeometry]] = {label: [] for label in annotation_labels(scheme).values()}
    bounding = [wanted is not None and wanted in map(comparable, annotation.names) for annotation in annotations]
    if wanted is not None and not any(bounding):
        raise DataError(
            f"{printable(path)}: expected an annotation of the class {ascii(region)[:70]}, which bounds what is "
            f"annotated, found only {_listed(annotations)}; draw it, or leave the setting out"
        )
    regions = [annotation.area for annotation, bounds in zip(annotations, bounding, strict=True) if bounds]
    inner = [annotation for annotation, bounds in zip(annotations, bounding, strict=True) if not bounds]
    without_class = sum(not annotation.names for annotation in inner)
    if without_class:
        warn(
            f"{printable(path)}: {without_class} of {len(annotations)} annotations have no class; they are left out, "
            "and their pixels count as not annotated"
        )
    labels = labels_of_classes(path, inner, scheme, warn, name_region=may_have_region and region is None)
    for annotation, label in zip(inner, labels, strict=True):
        if label is not None:
            by_label[label].append(annotation.area)
    found = {label: areas for label, areas in by_label.items() if areas}
    if not found and scheme.unannotated is None:
        raise DataError(
            f"{printable(path)}: expected annotations with a class, found {_listed(annotations)}; classify them"
        )
    return Labeled(found, regions)


def labels_of_classes(
    path: Path,
    annotations: list[Annotation],
    scheme: LabelScheme,
    warn: Callable[[str], None] = log.warning,
    *,
    name_region: bool = False,
) -> list[int | None]:
    """Returns the label of each annotation's class; None for those without a class.

    Args:
      path: their file, for messages.
      annotations: as read from the file.
      scheme: which names have which labels. The most specific name that it knows counts.
      warn: called with one line on classes that are taken by a more general name.
      name_region: the message about an unknown name says how a region is named.

    Raises:
      DataError: the scheme does not know the name of a class.
    """
    known = annotation_labels(scheme)
    labels: list[int | None] = []
    general: dict[str, str] = {}
    for annotation in annotations:
        names = [comparable(name) for name in annotation.names]
        place = next((place for place, name in enumerate(names) if name in known), None)
        if names and place is None:
            raise _unknown(path, annotation, scheme, known, name_region)
        if place:
            general.setdefault(annotation.names[0], annotation.names[place])
        labels.append(None if place is None else known[names[place]])
    for specific, taken in general.items():
        warn(f"{printable(path)}: annotations of the class {ascii(specific)[:70]} count as {ascii(taken)[:70]}")
    return labels


def _unknown(path, annotation: Annotation, scheme, known: dict[str, int], name_region: bool) -> DataError:
    name = annotation.names[0]
    near = difflib.get_close_matches(comparable(name), known, n=1, cutoff=0.5)
    hint = f"; did you mean {ascii(near[0])}?" if near else ""
    outline = "; an outline of what is annotated is named by config.data.region" if name_region else ""
    return DataError(
        f"{printable(path)}: {annotation.place}: expected a class that the label scheme {scheme.name} knows, found "
        f"{ascii(name)[:70]}; correct it, or add it to [annotations] in the scheme's file{outline}{hint}"
    )


def _listed(annotations: list[Annotation]) -> str:
    names = sorted({annotation.names[0] if annotation.names else "none" for annotation in annotations})
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(ascii(name)[1:-1][:70] for name in names[:5]) + more
