"""What the pixels of a segmented slide mean: one code book for all label schemes, in which 0 is never a tissue class."""

from typing import NamedTuple

from bcss_jax.labels import LabelScheme

BACKGROUND = 0  # no tissue, or not asked for: nothing was computed
UNREADABLE = 255  # tissue whose pixels the slide does not give


class SlideClass(NamedTuple):
    """A class: `value` in label images, its name, its color (RGB)."""

    value: int
    name: str
    color: tuple[int, int, int]


def classes_of(scheme: LabelScheme) -> tuple[SlideClass, ...]:
    """The evaluated classes of a scheme, with the values 1, 2, ... in its order."""
    from bcss_jax.common import figures  # here, because Matplotlib takes a second that the viewer should not cost

    colors = figures.class_colors(scheme)
    return tuple(
        SlideClass(value, scheme.class_names[label], tuple(colors[label].tolist()))
        for value, label in enumerate(scheme.evaluated, 1)
    )
