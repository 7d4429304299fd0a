"""The meaning of the pixel values in a segmented slide: one code book for all label schemes.

Value 0 is never a tissue class.
"""

from typing import NamedTuple

from bcss_jax.labels import LabelScheme

BACKGROUND = 0  # no tissue, or not requested: nothing was computed
UNREADABLE = 255  # tissue whose pixels could not be read from the slide


class SlideClass(NamedTuple):
    """A class of a label image: its pixel `value`, its name and its color (RGB)."""

    value: int
    name: str
    color: tuple[int, int, int]


def classes_of(scheme: LabelScheme) -> tuple[SlideClass, ...]:
    """Returns the evaluated classes of a scheme in the scheme's order, with the values 1, 2, ..."""
    from bcss_jax.common import figures  # imported here: Matplotlib takes a second, which the viewer need not wait for

    colors = figures.class_colors(scheme)
    return tuple(
        SlideClass(value, scheme.class_names[label], tuple(colors[label].tolist()))
        for value, label in enumerate(scheme.evaluated, 1)
    )
