"""Measures the stain of H&E pixels: the colors of hematoxylin and eosin, and how strong they are.

The method is that of Macenko et al. ("A method for normalizing histology slides for quantitative analysis", 2009). The
optical densities of pixels with two stains lie in a plane; the directions at both ends of it are the stains, and a high
percentile of their amounts is their strength, which depends little on how much of the tissue is nuclei.
"""

import dataclasses
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from typing_extensions import TypedDict

from bcss_jax.common.json_files import check_shape
from bcss_jax.data.inspection.stain import STAIN_VECTORS, TISSUE_DENSITY

STAINS = ("hematoxylin", "eosin")
WHITE = 255.0  # taken for the glass where it is unknown
LEAST_PIXELS = 1000  # of tissue; with fewer the percentiles are chance
ENDS = 1.0  # percent of the directions that lie beyond those of the stains
STRENGTH = 99.0  # percentile of a stain's amounts that is its strength
LEAST_ANGLE = 10.0  # degrees between two stains; a single one, or gray, spreads by less
MOST_AWAY = (25.0, 45.0)  # degrees from the vectors of Ruifrok and Johnston, beyond which it is another dye, or ink

_Vector = Annotated[list[Annotated[float, Field(ge=-1, le=1)]], Field(min_length=3, max_length=3)]


class MeasuredStainJson(TypedDict):
    """What `MeasuredStain.to_json` returns."""

    vectors: Annotated[list[_Vector], Field(min_length=2, max_length=2)]
    strengths: Annotated[list[Annotated[float, Field(gt=0, le=100)]], Field(min_length=2, max_length=2)]
    white: Annotated[list[Annotated[float, Field(gt=0, le=255)]], Field(min_length=3, max_length=3)] | None


@dataclasses.dataclass(frozen=True)
class MeasuredStain:
    """The stain of a slide, or of the slides of a training set.

    Attributes:
      vectors: density of hematoxylin and eosin in red, green and blue, each of length 1.
      strengths: of both, optical density (to the base 10).
      white: the color of the glass that densities are relative to; None: unknown, they are relative to `WHITE`.
    """

    vectors: tuple[tuple[float, ...], ...]
    strengths: tuple[float, ...]
    white: tuple[float, ...] | None

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON; `from_json` reads it."""
        return {
            "vectors": [list(each) for each in self.vectors],
            "strengths": list(self.strengths),
            "white": None if self.white is None else list(self.white),
        }

    @classmethod
    def from_json(cls, values: Any) -> "MeasuredStain":
        """Reads what `to_json` returns.

        Raises:
          ValueError: it is something else, or stains that cannot be told apart.
        """
        check_shape(values, MeasuredStainJson)
        vectors = np.array(values["vectors"])
        if why := _implausible(vectors):
            raise ValueError(f"its stain has {why}")
        white = values["white"]
        return cls(_tuples(vectors), tuple(values["strengths"]), None if white is None else tuple(white))


class NotMeasurable(ValueError):
    """The pixels do not show hematoxylin and eosin; the message says why, as the end of a sentence."""


def measure(pixels: np.ndarray, white: np.ndarray | None) -> MeasuredStain:
    """Measures the stain of the tissue among some pixels.

    Args:
      pixels: uint8 RGB [N, 3]; what is as bright as glass does not count.
      white: the color of the glass, float [3]; None: unknown.

    Raises:
      NotMeasurable: there is hardly any tissue, or not the two stains.
    """
    density = density_of_pixels(pixels, np.full(3, WHITE) if white is None else white)
    tissue = density[density.mean(axis=1) >= TISSUE_DENSITY]
    if len(tissue) < LEAST_PIXELS:
        raise NotMeasurable("hardly any stained tissue")
    plane = np.linalg.eigh(np.cov(tissue.T))[1][:, :0:-1]  # the two directions of most variance, the first one first
    plane *= np.where(plane.sum(axis=0) < 0, -1, 1)
    along = tissue @ plane.astype(np.float32)
    middle = np.arctan2(*along.mean(axis=0)[::-1])  # angles are relative to it, so that none is cut at 180 degrees
    turned = np.arctan2(along[:, 1], along[:, 0]) - middle
    ends = np.percentile((turned + np.pi) % (2 * np.pi) - np.pi, [ENDS, 100 - ENDS]) + middle
    vectors = np.stack([np.cos(ends), np.sin(ends)], axis=1) @ plane.T
    vectors = vectors[np.argsort(-vectors[:, 0])]  # hematoxylin, which is blue, absorbs more red
    if why := _implausible(vectors):
        raise NotMeasurable(why)
    amounts = tissue @ np.linalg.inv(with_remainder(vectors)).astype(np.float32)
    strengths = np.percentile(amounts[:, :2], STRENGTH, axis=0)
    return MeasuredStain(
        _tuples(vectors),
        tuple(strengths.astype(float).tolist()),
        None if white is None else tuple(np.asarray(white, float).tolist()),
    )


def typical(stains: list[MeasuredStain]) -> MeasuredStain:
    """Returns the mean colors, median strengths and median glass of several slides, at least one.

    Their densities are relative to their own glass, or to the same color where it is unknown.
    """
    vectors = np.mean([each.vectors for each in stains], axis=0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    strengths = np.median([each.strengths for each in stains], axis=0)
    known = [each.white for each in stains if each.white is not None]
    white = tuple(np.median(known, axis=0).tolist()) if known else None
    return MeasuredStain(_tuples(vectors), tuple(strengths.tolist()), white)


def density_of_pixels(pixels: np.ndarray, white: np.ndarray) -> np.ndarray:
    """Returns optical densities relative to a color, float32 [..., 3], of uint8 [..., 3]."""
    levels = np.log10((np.arange(256)[:, None] + 1) / (np.asarray(white) + 1))
    table = -levels.astype(np.float32)
    return np.stack([table[pixels[..., channel], channel] for channel in range(3)], axis=-1)


def with_remainder(vectors: np.ndarray) -> np.ndarray:
    """Returns both stain vectors and the direction that neither explains, float64 [3, 3]."""
    across = np.cross(*vectors)
    return np.vstack([vectors, across / np.linalg.norm(across)])


def _implausible(vectors: np.ndarray) -> str | None:
    """Returns why vectors [2, 3] are not those of hematoxylin and eosin, or None."""
    lengths = np.linalg.norm(vectors, axis=1)
    if abs(lengths - 1).max() > 1e-3:
        return "vectors that are not of length 1"
    if _degrees(vectors[0] @ vectors[1]) < LEAST_ANGLE:
        return "a single stain, or shades of gray"
    for name, vector, known, most in zip(STAINS, vectors, STAIN_VECTORS, MOST_AWAY, strict=True):
        if _degrees(vector @ known) > most:
            return f"colors that are not those of {name}"
    return None


def _degrees(cosine: float) -> float:
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def _tuples(vectors: np.ndarray) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(each) for each in vectors.astype(float).tolist())
