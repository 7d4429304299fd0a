"""Is a data set sound: every file readable, every image with its mask, every code in the book, no part leaking?"""

import collections
import dataclasses
import time
from collections.abc import Callable

from bcss_jax.data import checks
from bcss_jax.data.inspection.source import Source


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What was found.

    Attributes:
      tiles: per part, number of usable tiles, images without masks included.
      patients: number of patients.
      institutes: number of institutes.
      pairs: number of image files, or masks where the image is missing.
      defects: per kind, a line for each; kinds without any are left out.
      notes: a line for each thing that is odd and no defect.
      seconds: that reading took.
    """

    tiles: dict[str, int]
    patients: int
    institutes: int
    pairs: int
    defects: dict[str, list[str]]
    notes: list[str]
    seconds: float


def verify(source: Source, progress: Callable[[int], None] | None = None) -> Verdict:
    """Reads every tile and judges as `data_checks.check` does, but collects all defects instead of raising the first.

    Args:
      source: made with `collect=True`.
      progress: called with the number of tiles done.
    """
    start = time.perf_counter()
    defects = collections.defaultdict(list, {"name or place": list(source.refused)})
    notes, contents, pairs = [], {}, 0
    for pair, finding in source.examine(progress=progress):
        pairs += 1
        defects["missing"] += finding.missing
        defects["unusable"] += finding.bad
        notes += finding.warnings
        contents.update(zip((tile.key for tile in pair), finding.contents, strict=False))
    seconds = time.perf_counter() - start
    defects["of another size"] += checks.take_out_other_sizes(source.tiles, contents)
    usable = [tile for tile in source.tiles if tile.key in contents]
    # Nothing is trained or judged on images without masks: they leak nothing.
    rows = [(tile.key, tile.split, tile.patient, contents[tile.key]) for tile in usable if tile.mask]
    shared, repeated = checks.same_images(rows)
    defects["in two parts"] += shared
    recurring = checks.recurring_patients(rows)
    if recurring and source.settings.layout == "kaggle224" and source.settings.split_by == "published":
        notes.append(f"patients with tiles in more than one part: {len(recurring)}, as this data set was published")
    elif recurring:
        defects["patients in two parts"].append(checks.recurring_line(recurring))
    tiles = collections.Counter(tile.split for tile in usable)
    if repeated:
        notes.append(f"{repeated} tiles repeat the pixels of another tile of their part")
    without = sum(not tile.mask for tile in usable)
    if without:
        notes.append(f"test: {without} images have no masks (none were published); only the images were checked")
    notes += [f"no usable tiles for {part}: training needs them" for part in ("train", "val") if not tiles[part]]
    return Verdict(
        tiles={part: tiles[part] for part in ("train", "val", "test") if tiles[part]},
        patients=len({tile.patient for tile in usable}),
        institutes=len({tile.institute for tile in usable}),
        pairs=pairs + len(source.refused),
        defects={kind: lines for kind, lines in defects.items() if lines},
        notes=notes,
        seconds=seconds,
    )
