"""What the names of tiles say: which lie beside or over one another in their region, and micrometers per pixel."""

import collections

import numpy as np

from bcss_jax.data.discovery import Tile
from bcss_jax.data.names import mpp_of, region_of

MPP_TOLERANCE = 0.02  # share of the declared value


def neighbors(tiles: list[Tile], sizes: list[tuple[int, int]]) -> tuple[dict[str, dict[str, int]], list[tuple]]:
    """Tiles that continue, or overlap, a tile of another part: what one part shows is then half known from the other.

    Place and size are those of the names and of the pixels. Whether a name holds x or y first does not matter here.

    Args:
      tiles: any.
      sizes: (height, width) of each.

    Returns:
      Per part the number of its `tiles`, of those `overlapping` and of those `touching` a tile of another part; and
      (first index, second index) of each overlapping pair.
    """
    regions = collections.defaultdict(list)
    for index, tile in enumerate(tiles):
        regions[region_of(tile.key)].append(index)
    overlapping, touching, pairs = set(), set(), []
    for members in regions.values():
        members = np.array(members)
        place = np.array([(tiles[i].x, tiles[i].y) for i in members])
        side = np.array([max(sizes[i]) for i in members])
        part = np.array([tiles[i].split for i in members])
        away = np.abs(place[:, None] - place).max(axis=-1) - np.maximum(side[:, None], side)
        away[part[:, None] == part] = 1  # of the same part: no matter
        touching.update(members[(away == 0).any(axis=1)].tolist())
        overlapping.update(members[(away < 0).any(axis=1)].tolist())
        pairs += [(int(members[i]), int(members[j])) for i, j in np.argwhere(np.triu(away < 0))]
    counts = {}
    for part in dict.fromkeys(tile.split for tile in tiles):
        own = {index for index, tile in enumerate(tiles) if tile.split == part}
        counts[part] = {"tiles": len(own), "overlapping": len(own & overlapping), "touching": len(own & touching)}
    return counts, pairs


def mpp_of_names(tiles: list[Tile]) -> tuple[dict[str, int], list[tuple[int, float]]]:
    """Micrometers per pixel as the names say, beside what was declared.

    Returns:
      Number of tiles per value as written ("0" where it was cut off, "not said" where there is none); and (index, value)
      of each tile whose value is not the declared one, `Tile.mpp`.
    """
    said, others = collections.Counter(), []
    for index, tile in enumerate(tiles):
        written = mpp_of(tile.key)
        said[written or "not said"] += 1
        value = float(written or 0)
        if value and abs(value / tile.mpp - 1) > MPP_TOLERANCE:
            others.append((index, value))
    return dict(said), others
