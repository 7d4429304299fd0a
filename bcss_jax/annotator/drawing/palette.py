"""The classes that can be given to outlines: names as QuPath has them, and colors of the label scheme."""

from typing import NamedTuple

from bcss_jax.labels import QUPATH_IGNORED, QUPATH_NAMES, LabelScheme, annotation_labels, comparable

OTHER_COLOR = (110, 110, 110)  # of outlines whose class the scheme does not know


class PaletteClass(NamedTuple):
    """A class: its label in the scheme, its name in files and its color (RGB)."""

    label: int
    name: str
    color: tuple[int, int, int]


class Palette:
    """The classes of a label scheme.

    Attributes:
      classes: those that outlines can be given: all that are evaluated, and the one without truth.
    """

    def __init__(self, scheme: LabelScheme):
        """Takes the evaluated classes in the order of the scheme."""
        self._labels = annotation_labels(scheme)
        evaluated = [
            PaletteClass(label, _file_name(scheme.class_names[label]), scheme.colors[label])
            for label in scheme.evaluated
        ]
        self.classes = (*evaluated, PaletteClass(scheme.ignore_index, QUPATH_IGNORED, (150, 150, 150)))
        self._by_label = {each.label: each for each in self.classes}
        self._by_name = {each.name: each for each in self.classes}

    def named(self, name: str) -> PaletteClass | None:
        """Returns the class that has exactly this name in files, or None."""
        return self._by_name.get(name)

    def of(self, name: str | None) -> PaletteClass | None:
        """Returns the class that a name of an annotation stands for, or None if the scheme does not know it.

        Of QuPath's derived classes ("Tumor: Positive") the most specific name that is known counts.
        """
        parts = [] if name is None else name.split(":")
        for count in range(len(parts), 0, -1):
            label = self._labels.get(comparable(": ".join(part.strip() for part in parts[:count])))
            if label is not None:
                return self._by_label.get(label)
        return None

    def color(self, name: str | None) -> tuple[int, int, int]:
        """Returns the color of outlines of this name."""
        found = self.of(name)
        return found.color if found else OTHER_COLOR


def _file_name(class_name: str) -> str:
    return QUPATH_NAMES.get(class_name, class_name)
