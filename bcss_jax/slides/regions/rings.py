"""Rings of regions, followed from corner to corner in one pass down the slide.

The slide is taken in parts, some rows of pixels over its whole width each. Horizontal edges never leave a part; a path
along the edges does so along vertical ones alone, and then it is a piece of a ring, to be linked with those that other
parts give.

Where two pixels in a diagonal have one value, the rings there depend on whether the two are one region, which may show
only further down. Until then the pieces end there too: a `joint`.
"""

from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, depth_first_order

from bcss_jax.slides.regions.corners import CONVEX, DIAGONAL, DOWN, PLACE, leaves_vertically, place


class Band(NamedTuple):
    """What a part of the slide adds; all in the order of the components.

    Attributes:
      points: int32 [n, 2], x and y of the corners: of the closed rings in the order of `rings`, then of the pieces.
      rings: int64 [r, 2], of those that close in the part: component, and how many points; of a component in the order of
        their first corners. Outer ones begin with that, holes end with it.
      pieces: int64 [p, 5], component, number, first corner, where its points begin and how many they are.
      links: int64 [l, 3], component, number of a piece and of the one that follows it.
      totals: int64 [c, 4], of each component in the part: itself, its first corner, pixels, which later parts may take back,
        and corners.
    """

    points: np.ndarray
    rings: np.ndarray
    pieces: np.ndarray
    links: np.ndarray
    totals: np.ndarray


class Rings:
    """Follows edges; knows the paths that go on below."""

    def __init__(self):
        """Begins above the slide."""
        self._ends = np.zeros((4, 0), np.int64)  # component, x, number of the piece, whether it leaves, else enters
        self._joints = np.zeros((6, 0), np.int64)  # two components, and of each the piece before the joint and after it
        self._pieces = 0

    def rename(self, components: np.ndarray) -> None:
        """Takes the new number of each component."""
        self._ends[0], self._joints[:2] = components[self._ends[0]], components[self._joints[:2]]

    def decide(self, goes_on: np.ndarray) -> np.ndarray:
        """The links at joints of which it has shown whether they are in one region: int64 [l, 3], as in `Band`."""
        one, other, before, after, other_before, other_after = self._joints
        same = one == other
        apart = ~same & ~(goes_on[one] & goes_on[other])
        # Rings that turn around the pixels would touch themselves if these are one region, which polygons may not; rings
        # that turn around the gaps are two.
        links = [
            np.stack([one[same], before[same], other_after[same]], 1),
            np.stack([other[same], other_before[same], after[same]], 1),
            np.stack([one[apart], before[apart], after[apart]], 1),
            np.stack([other[apart], other_before[apart], other_after[apart]], 1),
        ]
        self._joints = self._joints[:, ~same & ~apart]
        return _by_component(np.concatenate(links))

    def add(self, component: np.ndarray, corners: np.ndarray, values: np.ndarray, goes_on: np.ndarray) -> Band:
        """Follows the edges of the next part, whose rows of pixels lie below all before.

        Args:
          component: int64 [n], of each corner.
          corners: int64 [n], in any order.
          values: of each component its label.
          goes_on: bool, whether it may have pixels below the row of tiles.
        """
        order = np.lexsort((corners, component))
        component, corners = component[order], corners[order]
        joints = self._turn_diagonals(component, corners, values, goes_on)
        x, y = (along.astype(np.int32) for along in place(corners))
        vertical = leaves_vertically(corners)

        # Nodes are the horizontal edges, between corners 0 and 1, 2 and 3, ..., and the corners at joints, which are cut
        # from their horizontal edges.
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
        order, bounds, rings = _strung(following, starts, first_corners & CONVEX > 0)
        lengths = np.diff(bounds, append=nodes)
        points_of = np.add.reduceat(np.where(order < edges, 2, 0), bounds) if nodes else np.zeros(0, np.int64)
        owner = node_component[order[bounds]]
        path = order[order < edges]
        tail = 2 * path + vertical[2 * path]
        both = np.stack([tail, tail ^ 1], 1).ravel()
        points = np.stack([x[both], y[both]], 1)

        number = np.empty(nodes, np.int64)  # of the piece that has a node
        number[order] = np.repeat(np.arange(len(bounds)) - rings + self._pieces, lengths)
        firsts = np.minimum.reduceat(first_corners[order], bounds) if nodes else np.zeros(0, np.int64)
        begins = np.cumsum(points_of) - points_of
        pieces = np.stack([owner, np.arange(len(bounds)) - rings + self._pieces, firsts, begins, points_of], 1)[rings:]
        self._pieces += len(pieces)

        links = self._links_above(component, node, number, upper[~inside] - len(corners), lower[~inside])
        self._keep_ends(open_below, component, x, node, number, vertical)
        self._keep_joints(joints, component, vertical, node, number)

        heads = np.flatnonzero(np.diff(component[::2], prepend=-1))
        pixels = (x[::2] - x[1::2]).astype(np.int64) * y[::2]  # along the edge to the left, the ring goes as often back
        pixels[vertical[::2]] *= -1
        pixels = np.add.reduceat(pixels, heads) if edges else np.zeros(0, np.int64)
        totals = [component[2 * heads], corners[2 * heads], pixels, 2 * np.diff(heads, append=edges)]
        rings = np.stack([owner[:rings], points_of[:rings]], 1)
        return Band(points, rings, _by_component(pieces), _by_component(links), np.stack(totals, 1))

    @staticmethod
    def _turn_diagonals(component, corners, values, goes_on):
        """Turns the corners in a diagonal of one region; returns those of which it has not shown, int64 [2, j]."""
        near = corners[1:] ^ corners[:-1] < 1 << PLACE
        twice = np.flatnonzero((component[1:] == component[:-1]) & near)
        for one in (twice, twice + 1):
            corners[one] ^= DOWN | CONVEX
        alone = corners & DIAGONAL > 0
        alone[twice] = alone[twice + 1] = False
        alone = np.flatnonzero(alone)
        alone = alone[goes_on[component[alone]]]
        value = values[component[alone]]
        order = np.lexsort((corners[alone], value))
        alone, value = alone[order], value[order]
        pair = np.flatnonzero((value[1:] == value[:-1]) & (corners[alone[1:]] ^ corners[alone[:-1]] < 1 << PLACE))
        return np.stack([alone[pair], alone[pair + 1]])

    def _vertical_edges(self, component, x, y, down):
        """Upper and lower ends of the vertical edges, and upper ends without a lower one; from len(x) on, of `_ends`."""
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
        """Links between the pieces from above and those that they meet."""
        piece, other = number[node[lower]], self._ends[2, ends]
        leaves = self._ends[3, ends] > 0
        return np.stack([component[lower], np.where(leaves, other, piece), np.where(leaves, piece, other)], 1)

    def _keep_ends(self, ends, component, x, node, number, vertical):
        mine = ends[ends < len(x)]
        new = np.stack([component[mine], x[mine], number[node[mine]], vertical[mine]]).astype(np.int64)
        self._ends = np.concatenate([self._ends[:, ends[ends >= len(x)] - len(x)], new], 1)

    def _keep_joints(self, joints, component, vertical, node, number):
        found = [component[joints]]
        for corner in joints:
            edge, cut = number[corner >> 1], number[node[corner]]
            found.append(np.where(vertical[corner], (edge, cut), (cut, edge)))
        self._joints = np.concatenate([self._joints, np.concatenate(found)], 1)


def _strung(following: np.ndarray, starts: np.ndarray, outer: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Goes along closed and open paths.

    Instead of a loop over the nodes, all paths are cut open and strung together, and SciPy goes along the one long path.

    Args:
      following: int32 [n], the node that follows each, -1 where a path ends; overwritten.
      starts: int64 [p], nodes that open paths start with.
      outer: bool [n], whether a closed path begins with its least node if this is it, else with the one after it.

    Returns:
      int32 [n], the nodes along closed paths in the order of their least nodes, then along open ones; int64, where paths
      begin in these; and how many are closed.
    """
    count = len(following)
    if not count:
        return np.zeros(0, np.int32), np.zeros(0, np.int64), 0
    numbers = np.arange(count, dtype=np.int32)
    following[following < 0] = starts  # whichever: then all paths are closed
    steps = np.arange(count + 1, dtype=np.int32)
    graph = csr_array((np.ones(count, bool), following, steps), shape=(count, count))
    cycles, cycle = connected_components(graph, connection="strong")
    least = np.empty(cycles, np.int32)
    least[cycle[::-1]] = numbers[::-1]  # the last assignment counts
    begin = np.where(outer[least], least, following[least])
    is_open = np.zeros(cycles, bool)
    is_open[cycle[starts]] = True
    begin[cycle[starts]] = starts
    begin = begin[np.lexsort((least, is_open))]
    preceding = np.empty_like(following)
    preceding[following] = numbers
    following[preceding[begin[:-1]]] = begin[1:]
    graph = csr_array((np.ones(count, bool), following, steps), shape=(count, count))
    order = depth_first_order(graph, begin[0], return_predecessors=False)
    begins = np.zeros(count, bool)
    begins[begin] = begins[starts] = True
    return order, np.flatnonzero(begins[order]), cycles - int(is_open.sum())


def joined(pieces: np.ndarray, links: np.ndarray) -> list[np.ndarray]:
    """The closed paths that a region's pieces make.

    Args:
      pieces: int64 [p, 5], all of the region.
      links: int64 [p, 3], likewise.

    Returns:
      Of each, in the order of their first corners, its pieces, int64 [k, 5]; the first has the first corner.
    """
    pieces = pieces[np.argsort(pieces[:, 2], kind="stable")]
    order = np.argsort(pieces[:, 1])
    source, target = order[np.searchsorted(pieces[:, 1], links[:, 1:], sorter=order)].T
    following = np.empty(len(pieces), np.int64)
    following[source] = target
    following, seen, paths = following.tolist(), bytearray(len(pieces)), []
    for start in range(len(pieces)):  # mostly a handful, for which SciPy takes longer
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
