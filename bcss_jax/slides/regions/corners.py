"""Finds the corners of the regions in a row of tiles, each with the component of pixels that it belongs to.

A corner is one integer. From the highest bit, it consists of:
  - y and x, a position in the lattice of pixel corners: pixel (x, y) lies between (x, y) and (x + 1, y + 1);
  - DIAGONAL: this is one of two corners at a position where two diagonal pixels have the corner's value;
  - RIGHT: the corner's horizontal edge goes to the right;
  - DOWN: its vertical edge goes down;
  - CONVEX: one of the four pixels around it belongs to the region; otherwise three do.
Sorting the integers therefore sorts the corners along the rows.
"""

import cv2
import numpy as np

DIAGONAL, RIGHT, DOWN, CONVEX = 8, 4, 2, 1
POSITION, _Y = 4, 34  # first bit of the position, and of its y


def pack_corners(
    x: np.ndarray, y: np.ndarray, right: np.ndarray, down: np.ndarray, convex: bool, diagonal: bool
) -> np.ndarray:
    """Returns corners as integers: int64 [n]."""
    kind = right * RIGHT | down * DOWN | convex * CONVEX | diagonal * DIAGONAL
    return y.astype(np.int64) << _Y | x.astype(np.int64) << POSITION | kind


def corner_positions(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns x and y of corners: int64 [n] each."""
    return corners >> POSITION & (1 << _Y - POSITION) - 1, corners >> _Y


def pack_positions(points: np.ndarray) -> np.ndarray:
    """Returns `corner >> POSITION` of corners at points (x, y), int32 [n, 2]: int64 [n]."""
    return points[:, 1].astype(np.int64) << _Y - POSITION | points[:, 0]


def leaves_vertically(corners: np.ndarray) -> np.ndarray:
    """Returns whether a ring leaves each corner along its vertical edge: bool [n].

    A ring has its region on the right, as seen with y pointing down. Rotating a corner by 90 degrees, or exchanging
    region and background, swaps the edge on which the ring arrives and the one on which it leaves. The answer therefore
    depends only on whether an even number of the three bits is set.
    """
    return _EVEN[corners & (RIGHT | DOWN | CONVEX)]


_EVEN = np.array([bits.bit_count() % 2 == 0 for bits in range(8)])
# The pixels around a corner: upper left, upper right, lower left, lower right.
_ROW, _COLUMN = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])


class TileRow:
    """The components, links and corners of a row of tiles, which are added from left to right. Label 0 is no region.

    A tile owns the corners at the upper left of its pixels. The corners at its right and lower edges belong to its
    neighbors.

    Attributes:
      values: labels of the new components, uint8 [n] per piece. New components are numbered from `count`.
      links: pairs of components that are connected, int64 [n, 2] per piece.
      corners: (components, corners) per piece, int64 [n] each.
      labels_below: uint8 [1 + W], the lowest pixels of the row; the first entry lies left of the slide.
      components_below: int64 [1 + W], the components of these pixels, where their label is not 0.
    """

    def __init__(self, labels_above: np.ndarray, components_above: np.ndarray, count: int, row: int, size: int):
        """Starts a row.

        Args:
          labels_above: uint8 [1 + W], `labels_below` of the row above.
          components_above: int64 [1 + W], `components_below` of the row above.
          count: number of components in the row above.
          row: number of the row.
          size: side of a tile in pixels.
        """
        self._labels_above, self._components_above = labels_above, components_above
        self._count, self._row, self._size = count, row, size
        self._column = 0
        self._labels_left, self._components_left = np.zeros(size, np.uint8), np.zeros(size, np.int64)
        self.values: list[np.ndarray] = []
        self.links: list[np.ndarray] = []
        self.corners: list[tuple[np.ndarray, np.ndarray]] = []
        self.labels_below, self.components_below = np.zeros_like(labels_above), np.zeros_like(components_above)

    def add_uniform(self, value: int) -> None:
        """Adds the next tile, in which all pixels have one value."""
        span = slice(self._column * self._size, (self._column + 1) * self._size + 1)
        if value or self._labels_left.any() or self._labels_above[span].any():
            tile = np.full((self._size, self._size), value, np.uint8)
            self._add(tile, {value: (1, np.broadcast_to(np.int32(1), tile.shape))} if value else {})
        else:
            self._column += 1

    def add(self, tile: np.ndarray) -> None:
        """Adds the next tile: uint8 [size, size]."""
        values = np.flatnonzero(np.bincount(tile.ravel(), minlength=256)).tolist()
        by_label = {}
        for value in values:
            if value:
                mask = (tile == value).view(np.uint8)
                number, components = cv2.connectedComponents(mask, connectivity=4, ltype=cv2.CV_32S)
                by_label[value] = number - 1, components
        self._add(tile, by_label)

    def _add(self, tile: np.ndarray, by_label: dict[int, tuple[int, np.ndarray]]) -> None:
        """Adds the next tile.

        Args:
          tile: uint8 [size, size].
          by_label: for each label in the tile except 0, the number of its components, and the components of its pixels,
            int32 [size, size], numbered from 1.
        """
        size, column = self._size, self._column
        above = slice(column * size, (column + 1) * size + 1)
        around = np.empty((size + 1, size + 1), np.uint8)  # the tile, and the pixels above and to the left
        around[0], around[1:, 0], around[1:, 1:] = self._labels_above[above], self._labels_left, tile
        a, b, c, d = around[:-1, :-1], around[:-1, 1:], around[1:, :-1], around[1:, 1:]
        y, x = np.nonzero(((a != b) | (c != d)) & ((a != c) | (b != d)))  # positions where some value has a corner
        pixels = around[y[:, None] + _ROW, x[:, None] + _COLUMN]

        edges = np.zeros((4, size), np.int64)  # components of the top, left, bottom and right pixels
        cuts = ((0, slice(None)), (slice(None), 0), (-1, slice(None)), (slice(None), -1))
        for value in np.flatnonzero(np.bincount(pixels.ravel())).tolist() if len(pixels) else ():
            if value and value not in by_label:  # only pixels above or to the left have it
                self._add_corners(pixels == value, x, y, None, 0)
        for value, (number, components) in by_label.items():
            base = self._count - 1
            self._add_corners(pixels == value, x, y, components, base)
            for edge, cut in zip(edges, cuts, strict=True):
                np.copyto(edge, components[cut] + base, where=tile[cut] == value)
            self._count += number
            self.values.append(np.full(number, value, np.uint8))

        for components, labels, other_components, other_labels in (
            (edges[0], tile[0], self._components_above[above][1:], around[0, 1:]),
            (edges[1], tile[:, 0], self._components_left, around[1:, 0]),
        ):
            same = (labels == other_labels) & (labels > 0)
            links = np.stack([components[same], other_components[same]], 1)
            self.links.append(links[np.any(np.diff(links, axis=0, prepend=-1), 1)])  # drops repetitions
        below = slice(above.start + 1, above.stop)
        self.labels_below[below], self.components_below[below] = tile[-1], edges[2]
        self._labels_left, self._components_left = tile[:, -1].copy(), edges[3]
        self._column += 1

    def _add_corners(
        self, mask: np.ndarray, x: np.ndarray, y: np.ndarray, components: np.ndarray | None, base: int
    ) -> None:
        """Adds the corners of one label.

        Args:
          mask: bool [n, 4], which of the pixels around each position have the label.
          x: int64 [n], positions in the tile.
          y: int64 [n].
          components: int32 [size, size], components of the tile's pixels, or None if none has the label.
          base: is added to `components`.
        """
        count = mask.sum(1)
        diagonal = (count == 2) & (mask[:, 0] == mask[:, 3])
        # The corner's edges separate the one pixel that differs from the other three. Two diagonal pixels with the
        # label make two corners, as if they belonged to two regions.
        for convex, twice, chosen, odd in (
            (True, False, count == 1, mask.argmax(1)),
            (False, False, count == 3, mask.argmin(1)),
            (True, True, diagonal, np.where(mask[:, 0], 0, 1)),
            (True, True, diagonal, np.where(mask[:, 0], 3, 2)),
        ):
            odd, chosen_x, chosen_y = odd[chosen], x[chosen], y[chosen]
            if not len(odd):
                continue
            pixel = odd if convex else 3 - odd  # a pixel that has the label
            pixel_x, pixel_y = chosen_x + _COLUMN[pixel] - 1, chosen_y + _ROW[pixel] - 1
            component = self._components_above[self._column * self._size + 1 + pixel_x]
            component = np.where(pixel_y < 0, component, self._components_left[np.maximum(pixel_y, 0)])
            if components is not None:
                inside = (pixel_x >= 0) & (pixel_y >= 0)
                component[inside] = components[pixel_y[inside], pixel_x[inside]] + base
            x0, y0 = self._column * self._size, self._row * self._size
            corners = pack_corners(chosen_x + x0, chosen_y + y0, _COLUMN[odd], _ROW[odd], convex, twice)
            self.corners.append((component, corners))
