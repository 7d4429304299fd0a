"""Verifies a data set: readable files, a mask for every image, known codes, and no leak between the splits."""

import collections
import dataclasses
import time
from collections.abc import Callable

from bcss_jax.data import checks
from bcss_jax.data.discovery import SPLITS
from bcss_jax.data.inspection.source import Source


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The result of `verify`.

    Attributes:
      tiles: number of usable tiles of each split, including images without masks.
      patients: number of patients.
      institutes: number of institutes.
      pairs: number of image files, or of masks whose image is missing.
      defects: one line for each defect, by kind. Kinds without defects are left out.
      notes: one line for each thing that is unusual but not a defect.
      seconds: time that reading took.
    """

    tiles: dict[str, int]
    patients: int
    institutes: int
    pairs: int
    defects: dict[str, list[str]]
    notes: list[str]
    seconds: float


def verify(source: Source, progress: Callable[[int], None] | None = None) -> Verdict:
    """Reads every tile and checks it as `checks.check_tiles` does.

    Collects all defects instead of raising the first.

    Args:
      source: the data set, made with `collect=True`.
      progress: called with the number of tiles done.
    """
    start = time.perf_counter()
    defects = collections.defaultdict(list, {"name or place": list(source.refused)})
    notes, stats, num_pairs = [], {}, 0
    for pair, result in source.read_pairs(progress=progress):
        num_pairs += 1
        defects["missing"] += result.missing
        defects["unusable"] += result.bad
        notes += result.warnings
        stats.update(zip((tile.key for tile in pair), result.stats, strict=False))
    seconds = time.perf_counter() - start
    defects["of another size"] += checks.remove_other_sizes(source.tiles, stats)
    usable = [tile for tile in source.tiles if tile.key in stats]
    # Images without masks are used neither for training nor for scores, so they leak nothing.
    checked = [checks.CheckedTile(tile.key, tile.split, tile.patient, stats[tile.key]) for tile in usable if tile.mask]
    shared, repeated = checks.find_shared_images(checked)
    defects["in two splits"] += shared
    recurring = checks.find_recurring_patients(checked)
    if recurring and source.settings.layout == "kaggle224" and source.settings.split_by == "published":
        notes.append(f"{len(recurring)} patients have tiles in more than one split, as this data set was published")
    elif recurring:
        defects["patients in two splits"].append(checks.describe_recurring_patients(recurring))
    tiles = collections.Counter(tile.split for tile in usable)
    if repeated:
        notes.append(f"{repeated} tiles repeat the pixels of another tile of their split")
    if line := source.left_out.line():
        notes.append(f"left out: {line}")
    without = sum(not tile.mask for tile in usable)
    if without:
        notes.append(f"test: {without} images have no masks (none were published); only the images were checked")
    notes += [f"no usable tiles for {split}: training needs them" for split in ("train", "val") if not tiles[split]]
    return Verdict(
        tiles={split: tiles[split] for split in SPLITS if tiles[split]},
        patients=len({tile.patient for tile in usable}),
        institutes=len({tile.institute for tile in usable}),
        pairs=num_pairs + len(source.refused),
        defects={kind: lines for kind, lines in defects.items() if lines},
        notes=notes,
        seconds=seconds,
    )
