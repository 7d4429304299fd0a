"""Follows the rings of regions from corner to corner, in one pass down the slide.

The slide is processed in bands: some rows of pixels over its whole width. Horizontal edges never leave a band. A path
along the edges can leave a band only along a vertical edge; it is then a piece of a ring, which is linked with pieces
from other bands.

Where two diagonal pixels have one label, the rings depend on whether the two pixels belong to one region. This may
become known only further down. Until then, pieces also end at such a position, which is called a joint.
"""

from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, depth_first_order

from bcss_jax.slides.regions.corners import CONVEX, DIAGONAL, DOWN, POSITION, corner_positions, leaves_vertically


class Band(NamedTuple):
    """The rings and pieces of a band of the slide. All arrays are sorted by component.

    Attributes:
      points: int32 [n, 2], x and y of the corners: those of the closed rings in the order of `rings`, then of the
        pieces.
      rings: int64 [r, 2], rings that close in the band: component and number of points. The rings of a component are
        sorted by their first corners. Outer rings start with their first corner; holes end with it.
      pieces: int64 [p, 5], component, number of the piece, first corner, start of its points, number of points.
      links: int64 [l, 3], component, number of a piece, number of the piece that follows it.
      totals: int64 [c, 4], each component of the band, its first corner, its pixels and its corners. Later bands may
        subtract pixels.
    """

    points: np.ndarray
    rings: np.ndarray
    pieces: np.ndarray
    links: np.ndarray
    totals: np.ndarray


class Rings:
    """Follows the edges of regions, and keeps the paths that continue below."""

    def __init__(self):
        """Starts above the slide."""
        # Vertical edges that cross to the next band: component, x, number of the piece, and whether the piece leaves
        # the band there (1) or enters it (0).
        self._ends = np.zeros((4, 0), np.int64)
        # The components of the two pixels at each joint, then for each of the two the pieces before and after the
        # joint.
        self._joints = np.zeros((6, 0), np.int64)
        self._pieces = 0

    def rename(self, components: np.ndarray) -> None:
        """Replaces the number of each component by a new one."""
        self._ends[0], self._joints[:2] = components[self._ends[0]], components[self._joints[:2]]

    def resolve_joints(self, continues: np.ndarray) -> np.ndarray:
        """Returns the links at joints whose pixels are now known to be in one region or in two.

        Args:
          continues: bool, whether each component may have pixels below the row of tiles.

        Returns:
          int64 [l, 3], as in `Band`.
        """
        one, other, before, after, other_before, other_after = self._joints
        same = one == other
        separate = ~same & ~(continues[one] & continues[other])
        # If the two pixels are in one region, a ring that turns around each pixel would touch itself, which is invalid.
        # Rings that turn around the gaps instead are two rings.
        links = [
            np.stack([one[same], before[same], other_after[same]], 1),
            np.stack([other[same], other_before[same], after[same]], 1),
            np.stack([one[separate], before[separate], after[separate]], 1),
            np.stack([other[separate], other_before[separate], other_after[separate]], 1),
        ]
        self._joints = self._joints[:, ~same & ~separate]
        return _by_component(np.concatenate(links))

    def add(self, component: np.ndarray, corners: np.ndarray, values: np.ndarray, continues: np.ndarray) -> Band:
        """Follows the edges of the next band, which lies below all bands so far.

        Args:
          component: int64 [n], the component of each corner.
          corners: int64 [n], in any order.
          values: the label of each component.
          continues: bool, whether each component may have pixels below the row of tiles.
        """
        order = np.lexsort((corners, component))
        component, corners = component[order], corners[order]
        joints = self._turn_diagonals(component, corners, values, continues)
        x, y = (along.astype(np.int32) for along in corner_positions(corners))
        vertical = leaves_vertically(corners)

        # Nodes are the horizontal edges, between the corners 0 and 1, 2 and 3, ..., and the corners at joints, which
        # are separated from their horizontal edges.
        edges = len(corners) // 2
        nodes = edges + joints.size
        node = np.arange(len(corners), dtype=np.int32) >> 1
        node[joints.ravel()] = np.arange(edges, nodes)
        node_component = np.concatenate([component[::2], component[joints.ravel()]])
        upper, lower, open_below = self._vertical_edges(component, x, y, corners & DOWN > 0)
        inside = upper < len(corners)
        up, low = upper[inside], lower[inside]
        falls = vertical[up]
        following = np.full(nodes, -1, np.int32)
        target = np.where(falls, node[low], node[up])
        following[np.where(falls, node[up], node[low])] = target
        entered = np.zeros(nodes, bool)
        entered[target] = True

        first_corners = np.concatenate([corners[::2], np.full(joints.size, np.iinfo(np.int64).max)])
        starts = np.flatnonzero(~entered)
        order, bounds, rings = _order_along_paths(following, starts, first_corners & CONVEX > 0)
        lengths = np.diff(bounds, append=nodes)
        points_of = np.add.reduceat(np.where(order < edges, 2, 0), bounds) if nodes else np.zeros(0, np.int64)
        owner = node_component[order[bounds]]
        path = order[order < edges]
        tail = 2 * path + vertical[2 * path]
        both = np.stack([tail, tail ^ 1], 1).ravel()
        points = np.stack([x[both], y[both]], 1)

        number = np.empty(nodes, np.int64)  # of the piece that contains each node
        number[order] = np.repeat(np.arange(len(bounds)) - rings + self._pieces, lengths)
        firsts = np.minimum.reduceat(first_corners[order], bounds) if nodes else np.zeros(0, np.int64)
        start_of_points = np.cumsum(points_of) - points_of
        numbers = np.arange(len(bounds)) - rings + self._pieces
        pieces = np.stack([owner, numbers, firsts, start_of_points, points_of], 1)[rings:]
        self._pieces += len(pieces)

        links = self._links_above(component, node, number, upper[~inside] - len(corners), lower[~inside])
        self._keep_ends(open_below, component, x, node, number, vertical)
        self._keep_joints(joints, component, vertical, node, number)

        heads = np.flatnonzero(np.diff(component[::2], prepend=-1))
        # Areas between the horizontal edges and the top of the slide, positive where the ring goes to the left; their
        # sum is the enclosed area.
        pixels = (x[::2] - x[1::2]).astype(np.int64) * y[::2]
        pixels[vertical[::2]] *= -1
        pixels = np.add.reduceat(pixels, heads) if edges else np.zeros(0, np.int64)
        totals = [component[2 * heads], corners[2 * heads], pixels, 2 * np.diff(heads, append=edges)]
        rings = np.stack([owner[:rings], points_of[:rings]], 1)
        return Band(points, rings, _by_component(pieces), _by_component(links), np.stack(totals, 1))

    @staticmethod
    def _turn_diagonals(component, corners, values, continues):
        """Rotates pairs of diagonal corners in one region, in place; returns pairs that are undecided, int64 [2, j]."""
        same_position = corners[1:] ^ corners[:-1] < 1 << POSITION
        in_one_region = np.flatnonzero((component[1:] == component[:-1]) & same_position)
        for index in (in_one_region, in_one_region + 1):
            corners[index] ^= DOWN | CONVEX
        is_undecided = corners & DIAGONAL > 0
        is_undecided[in_one_region] = is_undecided[in_one_region + 1] = False
        undecided = np.flatnonzero(is_undecided)
        undecided = undecided[continues[component[undecided]]]
        value = values[component[undecided]]
        order = np.lexsort((corners[undecided], value))
        undecided, value = undecided[order], value[order]
        same_position = corners[undecided[1:]] ^ corners[undecided[:-1]] < 1 << POSITION
        pair = np.flatnonzero((value[1:] == value[:-1]) & same_position)
        return np.stack([undecided[pair], undecided[pair + 1]])

    def _vertical_edges(self, component, x, y, down):
        """Returns the upper and lower ends of the vertical edges, and the upper ends that have no lower end.

        Numbers from len(x) on are ends in `_ends`, from earlier bands.
        """
        above = self._ends.shape[1]
        component = np.concatenate([component, self._ends[0]])
        x = np.concatenate([x, self._ends[1].astype(np.int32)])
        rank = np.concatenate([y << 1 | down, np.full(above, -1, np.int32)])
        order = np.lexsort((rank, x, component)).astype(np.int32)
        position = np.flatnonzero(np.concatenate([down, np.ones(above, bool)])[order])
        upper, lower = order[position], order[np.minimum(position + 1, len(order) - 1)]
        pairs = (component[upper] == component[lower]) & (x[upper] == x[lower]) & (upper != lower)
        return upper[pairs], lower[pairs], upper[~pairs]

    def _links_above(self, component, node, number, ends, lower):
        """Returns the links between pieces from above and the pieces that they meet."""
        piece, other = number[node[lower]], self._ends[2, ends]
        leaves = self._ends[3, ends] > 0
        return np.stack([component[lower], np.where(leaves, other, piece), np.where(leaves, piece, other)], 1)

    def _keep_ends(self, ends, component, x, node, number, vertical):
        """Keeps the vertical edges that cross to the next band."""
        in_band = ends[ends < len(x)]
        new = np.stack([component[in_band], x[in_band], number[node[in_band]], vertical[in_band]]).astype(np.int64)
        self._ends = np.concatenate([self._ends[:, ends[ends >= len(x)] - len(x)], new], 1)

    def _keep_joints(self, joints, component, vertical, node, number):
        """Keeps the joints with the pieces that end there."""
        rows = [component[joints]]
        for corner in joints:
            edge, cut = number[corner >> 1], number[node[corner]]
            rows.append(np.where(vertical[corner], (edge, cut), (cut, edge)))
        self._joints = np.concatenate([self._joints, np.concatenate(rows)], 1)


def _order_along_paths(
    following: np.ndarray, starts: np.ndarray, outer: np.ndarray
) -> tuple[np.ndarray, np.ndarray, int]:
    """Returns the nodes in their order along closed and open paths.

    To avoid a loop over the nodes, all paths are cut open and joined into one long path, which SciPy follows.

    Args:
      following: int32 [n], the node that follows each node, -1 where a path ends; overwritten.
      starts: int64 [p], the first nodes of the open paths.
      outer: bool [n], for the least node of a closed path: whether the path starts with it, or with the node after it.

    Returns:
      int32 [n], the nodes along closed paths in the order of their least nodes, then along open paths; int64, where
      each path starts in this array; and the number of closed paths.
    """
    count = len(following)
    if not count:
        return np.zeros(0, np.int32), np.zeros(0, np.int64), 0
    numbers = np.arange(count, dtype=np.int32)
    following[following < 0] = starts  # in any assignment, this closes all paths
    steps = np.arange(count + 1, dtype=np.int32)
    graph = csr_array((np.ones(count, bool), following, steps), shape=(count, count))
    cycles, cycle = connected_components(graph, connection="strong")
    least = np.empty(cycles, np.int32)
    least[cycle[::-1]] = numbers[::-1]  # of repeated assignments, the last one counts
    first = np.where(outer[least], least, following[least])
    is_open = np.zeros(cycles, bool)
    is_open[cycle[starts]] = True
    first[cycle[starts]] = starts
    first = first[np.lexsort((least, is_open))]
    preceding = np.empty_like(following)
    preceding[following] = numbers
    following[preceding[first[:-1]]] = first[1:]
    graph = csr_array((np.ones(count, bool), following, steps), shape=(count, count))
    order = depth_first_order(graph, first[0], return_predecessors=False)
    is_first = np.zeros(count, bool)
    is_first[first] = is_first[starts] = True
    return order, np.flatnonzero(is_first[order]), cycles - int(is_open.sum())


def join_pieces(pieces: np.ndarray, links: np.ndarray) -> list[np.ndarray]:
    """Joins the pieces of a region into closed paths.

    Args:
      pieces: int64 [p, 5], all pieces of the region, as in `Band`.
      links: int64 [p, 3], all links of the region, as in `Band`.

    Returns:
      The pieces of each path, int64 [k, 5], in the order of the paths' first corners. The first piece of a path
      contains its first corner.
    """
    pieces = pieces[np.argsort(pieces[:, 2], kind="stable")]
    order = np.argsort(pieces[:, 1])
    source, target = order[np.searchsorted(pieces[:, 1], links[:, 1:], sorter=order)].T
    following = np.empty(len(pieces), np.int64)
    following[source] = target
    following, seen, paths = following.tolist(), bytearray(len(pieces)), []
    for start in range(len(pieces)):  # there are usually a few pieces, for which SciPy would take longer
        path, piece = [], start
        while not seen[piece]:
            seen[piece] = 1
            path.append(piece)
            piece = following[piece]
        if path:
            paths.append(pieces[path])
    return paths


def _by_component(rows):
    return rows[np.argsort(rows[:, 0], kind="stable")]
