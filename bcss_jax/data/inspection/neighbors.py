"""Finds tiles of different splits that touch or overlap, by the names of the tiles."""

import collections

import numpy as np

from bcss_jax.data.discovery import Tile
from bcss_jax.data.names import region_of


def neighbors(tiles: list[Tile], sizes: list[tuple[int, int]]) -> tuple[dict[str, dict[str, int]], list[tuple]]:
    """Finds tiles that touch or overlap a tile of another split, which then partly shows the same tissue.

    The places are from the names, and the sizes from the pixels. Whether a name gives x or y first does not matter
    here.

    Args:
      tiles: any tiles.
      sizes: (height, width) of each tile.

    Returns:
      For each split the number of its `tiles`, of the tiles that are `overlapping` and of those that are `touching` a
      tile of another split; and (first index, second index) of each overlapping pair.
    """
    regions = collections.defaultdict(list)
    for index, tile in enumerate(tiles):
        regions[region_of(tile.key)].append(index)
    overlapping, touching, pairs = set(), set(), []
    for members in regions.values():
        members = np.array(members)
        place = np.array([(tiles[i].x, tiles[i].y) for i in members])
        side = np.array([max(sizes[i]) for i in members])
        split = np.array([tiles[i].split for i in members])
        away = np.abs(place[:, None] - place).max(axis=-1) - np.maximum(side[:, None], side)
        away[split[:, None] == split] = 1  # tiles of the same split do not count
        touching.update(members[(away == 0).any(axis=1)].tolist())
        overlapping.update(members[(away < 0).any(axis=1)].tolist())
        pairs += [(int(members[i]), int(members[j])) for i, j in np.argwhere(np.triu(away < 0))]
    counts = {}
    for split in dict.fromkeys(tile.split for tile in tiles):
        own = {index for index, tile in enumerate(tiles) if tile.split == split}
        counts[split] = {"tiles": len(own), "overlapping": len(own & overlapping), "touching": len(own & touching)}
    return counts, pairs
