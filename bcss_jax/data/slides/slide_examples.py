"""The examples of a data set of annotated slides, read one slide after the other, and the report on them.

Only the patches in flight are in memory. Of the patches that are done, their place, a digest and counts are kept.
"""

import collections
import contextlib
import hashlib
import logging
import os
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from bcss_jax.common.interruption import safe_point
from bcss_jax.common.progress import ProgressLine
from bcss_jax.data import names
from bcss_jax.data.checks import CheckReport, summarize_defects
from bcss_jax.data.slides.annotated_slides import SPLITS, AnnotatedSlide, FoundSlides
from bcss_jax.data.slides.pairs import MASKS
from bcss_jax.data.slides.patches import Patch, SlidePatches
from bcss_jax.data.tile_reader import tile_stats
from bcss_jax.errors import DataError, printable
from bcss_jax.labels import OWN_CODES, SCHEME_CODES, LabelScheme, codes_of_slide_masks, names_of_codes

log = logging.getLogger(__name__)

MAX_READERS = 8


class PatchSettings(NamedTuple):
    """How patches are cut.

    Attributes:
      mpp: um per pixel.
      size: side in pixels.
      stride: distance in pixels.
      region: name of the annotations that bound what is annotated exhaustively; "": none.
      max_bad: share of the slides that may be unusable, and of the patches that may be unreadable; they are left out.
    """

    mpp: float
    size: int
    stride: int
    region: str
    max_bad: float


class SlideExample(NamedTuple):
    """A patch with the fields of `discovery.TileOrigin`, its index in its split, its image and its labels."""

    origin: dict
    index: int
    image: np.ndarray
    mask: np.ndarray

    @property
    def key(self) -> str:
        """Unique in the data set."""
        return self.origin["key"]

    def features(self) -> dict:
        """Returns what is stored, by name."""
        return {**self.origin, "index": self.index, "image": self.image, "mask": self.mask}


class SlideExamples:
    """Reads the patches of all slides once, and counts what they contain."""

    def __init__(self, found: FoundSlides, settings: PatchSettings, scheme: LabelScheme):
        """Takes the slides; nothing is read."""
        self._found, self._settings, self._scheme = found, settings, scheme
        self._rows: dict[str, list[tuple[AnnotatedSlide, int, int]]] = {}
        self._code_counts = {}
        self._first_with: dict[bytes, tuple[str, str]] = {}
        self._repeated, self._without_truth = 0, 0
        self._bad_slides: list[str] = []
        self._bad_patches: collections.Counter[str] = collections.Counter()
        self._blank_slides: list[str] = []
        self._digest = hashlib.sha256()
        masks = [slide.annotations for slide in found.slides if slide.annotations.suffix.lower() in MASKS]
        if masks:
            codes = codes_of_slide_masks(scheme)
            book = f"[{OWN_CODES}] of {scheme.name}" if codes == OWN_CODES else f"the code book {codes}"
            log.info("the numbers in %d masks are read as codes of %s", len(masks), book)
        self._read_slides = 0

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have slides."""
        present = {slide.split for slide in self._found.slides}
        return tuple(split for split in SPLITS if split in present)

    def of_split(self, split: str) -> Iterator[SlideExample]:
        """Reads the slides of a split and yields their patches with truth.

        Raises:
          DataError: more slides or patches are unusable than allowed, the same image is in another split, or no patch
            of the split has truth.
        """
        rows, counts = self._rows.setdefault(split, []), np.zeros(256, np.int64)
        self._code_counts[split] = counts
        slides = [slide for slide in self._found.slides if slide.split == split]
        with contextlib.closing(ProgressLine(f"reading slides ({split})", len(slides))) as line:
            for number, slide in enumerate(slides, 1):
                for patch in self._patches_of(slide):
                    assert patch.image is not None
                    stats = tile_stats(patch.image, patch.label)
                    origin = self._origin(slide, patch.x, patch.y)
                    self._compare(origin["key"], split, stats.digest)
                    self._digest.update(f"{origin['key']} {split} {slide.weight:g} ".encode() + stats.pair_digest)
                    counts += np.bincount(patch.label.ravel(), minlength=256)
                    rows.append((slide, patch.x, patch.y))
                    yield SlideExample(origin, len(rows) - 1, patch.image, patch.label)
                line.update(number)
        if not rows:
            raise DataError(
                f"{printable(slides[0].annotations)}: expected annotations of evaluated classes "
                f"({', '.join(self._scheme.evaluated_names)}) in the {len(slides)} slides of {split}, found none; "
                "annotate them, or name the classes in the label scheme"
            )

    def finish(self) -> CheckReport:
        """Returns the report; all splits have been read.

        Raises:
          DataError: more patches are unreadable than allowed.
        """
        total, bad = sum(map(len, self._rows.values())), self._bad_patches.total()
        if bad > self._settings.max_bad * (total + bad):
            raise DataError(self._unreadable_patches(total + bad))
        lines = [f"{name}: {count} patches cannot be decoded" for name, count in sorted(self._bad_patches.items())]
        code_names = names_of_codes(self._scheme)
        left_out = {
            "patches_without_truth": self._without_truth,
            "unreadable_patches": bad,
            "slides_without_patches": len(self._blank_slides),
        }
        return CheckReport(
            tiles={split: len(rows) for split, rows in self._rows.items()},
            patients={split: len({slide.patient for slide, _, _ in rows}) for split, rows in self._rows.items()},
            patients_in_two_parts=[],
            code_pixels={
                split: {code_names[code]: int(counts[code]) for code in np.flatnonzero(counts).tolist()}
                for split, counts in self._code_counts.items()
            },
            all_ignored={},
            absent={},
            repeated=self._repeated,
            missing=list(self._found.missing),
            bad=self._bad_slides + lines,
            warnings=self._blank_slides,
            content_sha256=self._digest.hexdigest(),
            left_out={name: count for name, count in left_out.items() if count},
        )

    def tables(self) -> dict[str, list[dict]]:
        """Returns the fields of `discovery.TileOrigin` of each example of each split."""
        return {split: [self._origin(*row) for row in rows] for split, rows in self._rows.items()}

    def weights(self) -> dict[str, float]:
        """Returns the weights of the slides by their names; empty if all are equal."""
        weights = {slide.name: slide.weight for slide in self._found.slides}
        return weights if len(set(weights.values())) > 1 else {}

    def _patches_of(self, slide: AnnotatedSlide) -> Iterator[Patch]:
        """Yields the readable patches of a slide; counts the others, or the slide if it cannot be used."""
        settings, done, readers = self._settings, 0, min(MAX_READERS, os.cpu_count() or 1)
        try:
            with SlidePatches(
                slide, mpp=settings.mpp, scheme=self._scheme, region=settings.region, readers=readers
            ) as opened:
                for patch in opened.patches(settings.size, settings.stride):
                    safe_point()
                    if patch.image is None:
                        self._bad_patches[printable(slide.slide)] += 1
                        if not settings.max_bad:
                            raise _TooManyBad(self._unreadable_patches(None))
                    else:
                        done += 1
                        yield patch
                self._without_truth += opened.without_truth
        except _TooManyBad as error:
            raise DataError(str(error)) from error
        except DataError as error:
            if done:  # its patches are in the data set already
                raise
            self._bad_slides.append(str(error))
            if len(self._bad_slides) > settings.max_bad * len(self._found.slides):
                raise DataError(
                    summarize_defects(self._bad_slides, len(self._found.slides))
                    + "; repair or remove them, or leave out up to a share of them with --config.data.max_bad=0.01"
                ) from error
            log.warning("left out: %s", error)
            return
        if not done:
            self._blank_slides.append(
                f"{printable(slide.slide)}: no patch, because its annotations have no evaluated class"
            )

    def _unreadable_patches(self, total: int | None) -> str:
        name, count = next(iter(self._bad_patches.items()))
        of = "" if total is None else f" (of {total} patches, {self._bad_patches.total()} cannot be decoded)"
        return (
            f"{name}: expected a slide that can be decoded where it is annotated, found {count} damaged "
            f"patch{'es' if count > 1 else ''}{of}; fetch the slide again, or leave out up to a share of the patches "
            "with --config.data.max_bad=0.01"
        )

    def _origin(self, slide: AnnotatedSlide, x: int, y: int) -> dict:
        size, mpp = self._settings.size, float(self._settings.mpp)
        return {
            "key": f"{slide.name}_{x}_{y}_size{size}",
            "barcode": slide.name,
            "patient": slide.patient,
            "institute": names.stated_institute(slide.patient) or names.NOT_SAID,
            "x": x,
            "y": y,
            "mpp": mpp,
            "codes": SCHEME_CODES,
        }

    def _compare(self, key: str, split: str, digest: bytes) -> None:
        """Raises DataError if the same image is in another split."""
        if not digest:
            return
        other_key, other_split = self._first_with.setdefault(digest[:16], (key, split))
        if other_split != split:
            raise DataError(
                f"{printable(key)}: expected an image that only {split} has, found the same pixels as in "
                f"{printable(other_key)} of {other_split}; remove one of the two slides, or give them one patient"
            )
        self._repeated += other_key != key


class _TooManyBad(Exception):
    """Raised when a patch cannot be decoded and none may be left out."""
