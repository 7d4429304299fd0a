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
    known = annotation_labels(scheme)
    wanted = None if region is None else comparable(region)
    by_label: dict[int, list[BaseGeometry]] = {label: [] for label in known.values()}
    regions, without_class, general = [], 0, {}
    if wanted is not None and not any(wanted in map(comparable, annotation.names) for annotation in annotations):
        raise DataError(
            f"{printable(path)}: expected an annotation of the class {ascii(region)[:70]}, which bounds what is "
            f"annotated, found only {_listed(annotations)}; draw it, or leave the setting out"
        )
    for annotation in annotations:
        names = [comparable(name) for name in annotation.names]
        if wanted is not None and wanted in names:
            regions.append(annotation.area)
            continue
        if not names:
            without_class += 1
            continue
        place = next((place for place, name in enumerate(names) if name in known), None)
        if place is None:
            raise _unknown(path, annotation, scheme, known, may_have_region and region is None)
        if place:
            general.setdefault(annotation.names[0], annotation.names[place])
        by_label[known[names[place]]].append(annotation.area)
    if without_class:
        warn(
            f"{printable(path)}: {without_class} of {len(annotations)} annotations have no class; they are left out, "
            "and their pixels count as not annotated"
        )
    for specific, taken in general.items():
        warn(f"{printable(path)}: annotations of the class {ascii(specific)[:70]} count as {ascii(taken)[:70]}")
    found = {label: areas for label, areas in by_label.items() if areas}
    if not found and scheme.unannotated is None:
        raise DataError(
            f"{printable(path)}: expected annotations with a class, found {_listed(annotations)}; classify them"
        )
    return Labeled(found, regions)


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
