"""The corners of the regions in a row of tiles, each with the component of pixels that it belongs to."""

import cv2
import numpy as np

# A corner as one number that sorts along the rows, from the highest bit: y, x (of the lattice: pixel (x, y) lies between
# (x, y) and (x + 1, y + 1)), whether it is one of two in a diagonal of pixels with its value, whether its horizontal edge
# goes to the right, its vertical one down, and whether it is convex: one of the four pixels around is the region's, else
# three.
PLACE, _Y, DIAGONAL, RIGHT, DOWN, CONVEX = 4, 34, 8, 4, 2, 1


def corner(
    x: np.ndarray, y: np.ndarray, right: np.ndarray, down: np.ndarray, convex: bool, diagonal: bool
) -> np.ndarray:
    """Corners as numbers: int64 [n]."""
    kind = right * RIGHT | down * DOWN | convex * CONVEX | diagonal * DIAGONAL
    return y.astype(np.int64) << _Y | x.astype(np.int64) << PLACE | kind


def place(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x and y of corners: int64 [n] each."""
    return corners >> PLACE & (1 << _Y - PLACE) - 1, corners >> _Y


def places(points: np.ndarray) -> np.ndarray:
    """What corners at these points, int32 [n, 2] x and y, are from the bit `PLACE` on: int64 [n]."""
    return points[:, 1].astype(np.int64) << _Y - PLACE | points[:, 0]


def leaves_vertically(corners: np.ndarray) -> np.ndarray:
    """Whether a ring with its region on the right leaves the corner along the vertical edge: bool [n].

    Right as seen with y going down. Turning a corner by a quarter, or filling it up, changes which of its edges is the
    first; so it is a matter of how many of the three bits are set.
    """
    return _EVEN[corners & (RIGHT | DOWN | CONVEX)]


_EVEN = np.array([bits.bit_count() % 2 == 0 for bits in range(8)])
# The pixels around a corner: upper left, upper right, lower left, lower right.
_ROW, _COLUMN = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])


class TileRow:
    """A row of tiles, taken from left to right; 0 is no region.

    A tile has the corners at the upper left of its pixels, so those at its right and lower edge are its neighbors'.

    Attributes:
      values: labels of the new components, which are numbered from `count` on, in pieces.
      links: pairs of components that hang together, in pieces [n, 2].
      corners: in pieces, of each the components and the corners themselves, int64 [n].
      labels_below: uint8 [1 + W], the lowest pixels of the row; the first stands left of the slide.
      components_below: int64 [1 + W], what they belong to, where a label is not 0.
    """

    def __init__(self, labels_above: np.ndarray, components_above: np.ndarray, count: int, row: int, size: int):
        """Begins the row below these lowest pixels, which have `count` components; `size` is that of a tile."""
        self._labels_above, self._components_above = labels_above, components_above
        self._count, self._row, self._size = count, row, size
        self._column = 0
        self._labels_left, self._components_left = np.zeros(size, np.uint8), np.zeros(size, np.int64)
        self.values: list[np.ndarray] = []
        self.links: list[np.ndarray] = []
        self.corners: list[tuple[np.ndarray, np.ndarray]] = []
        self.labels_below, self.components_below = np.zeros_like(labels_above), np.zeros_like(components_above)

    def add_uniform(self, value: int) -> None:
        """Takes the next tile, which has one value."""
        span = slice(self._column * self._size, (self._column + 1) * self._size + 1)
        if value or self._labels_left.any() or self._labels_above[span].any():
            tile = np.full((self._size, self._size), value, np.uint8)
            self._add(tile, {value: (1, np.broadcast_to(np.int32(1), tile.shape))} if value else {})
        else:
            self._column += 1

    def add(self, tile: np.ndarray) -> None:
        """Takes the next tile: uint8 [size, size]."""
        values = np.flatnonzero(np.bincount(tile.ravel(), minlength=256)).tolist()
        parts = {}
        for value in values:
            if value:
                mask = (tile == value).view(np.uint8)
                number, components = cv2.connectedComponents(mask, connectivity=4, ltype=cv2.CV_32S)
                parts[value] = number - 1, components
        self._add(tile, parts)

    def _add(self, tile: np.ndarray, parts: dict[int, tuple[int, np.ndarray]]) -> None:
        """parts: for each label but 0 in the tile the number of its components, and int32 [size, size], from 1 on."""
        size, column = self._size, self._column
        above = slice(column * size, (column + 1) * size + 1)
        around = np.empty((size + 1, size + 1), np.uint8)  # the tile, and the pixels above and to the left
        around[0], around[1:, 0], around[1:, 1:] = self._labels_above[above], self._labels_left, tile
        a, b, c, d = around[:-1, :-1], around[:-1, 1:], around[1:, :-1], around[1:, 1:]
        y, x = np.nonzero(((a != b) | (c != d)) & ((a != c) | (b != d)))  # where some value has a corner
        pixels = around[y[:, None] + _ROW, x[:, None] + _COLUMN]

        edges = np.zeros((4, size), np.int64)  # components of the uppermost, leftmost, lowest and rightmost pixels
        cuts = ((0, slice(None)), (slice(None), 0), (-1, slice(None)), (slice(None), -1))
        for value in np.flatnonzero(np.bincount(pixels.ravel())).tolist() if len(pixels) else ():
            if value and value not in parts:  # it is above or to the left only
                self._take_corners(pixels == value, x, y, None, 0)
        for value, (number, components) in parts.items():
            base = self._count - 1
            self._take_corners(pixels == value, x, y, components, base)
            for edge, cut in zip(edges, cuts, strict=True):
                np.copyto(edge, components[cut] + base, where=tile[cut] == value)
            self._count += number
            self.values.append(np.full(number, value, np.uint8))

        for mine, labels, other, other_labels in (
            (edges[0], tile[0], self._components_above[above][1:], around[0, 1:]),
            (edges[1], tile[:, 0], self._components_left, around[1:, 0]),
        ):
            same = (labels == other_labels) & (labels > 0)
            links = np.stack([mine[same], other[same]], 1)
            self.links.append(links[np.any(np.diff(links, axis=0, prepend=-1), 1)])  # without repetitions
        below = slice(above.start + 1, above.stop)
        self.labels_below[below], self.components_below[below] = tile[-1], edges[2]
        self._labels_left, self._components_left = tile[:, -1].copy(), edges[3]
        self._column += 1

    def _take_corners(
        self, mask: np.ndarray, x: np.ndarray, y: np.ndarray, components: np.ndarray | None, base: int
    ) -> None:
        """The corners of one value among the places (x, y) of the tile; mask: bool [n, 4], the pixels around with it."""
        count = mask.sum(1)
        diagonal = (count == 2) & (mask[:, 0] == mask[:, 3])
        # The edges go between the one pixel that differs from the three others and these. Two in a diagonal are two
        # corners, as if they were of two regions.
        for convex, twice, chosen, odd in (
            (True, False, count == 1, mask.argmax(1)),
            (False, False, count == 3, mask.argmin(1)),
            (True, True, diagonal, np.where(mask[:, 0], 0, 1)),
            (True, True, diagonal, np.where(mask[:, 0], 3, 2)),
        ):
            odd, chosen_x, chosen_y = odd[chosen], x[chosen], y[chosen]
            if not len(odd):
                continue
            pixel = odd if convex else 3 - odd  # one that has the value
            pixel_x, pixel_y = chosen_x + _COLUMN[pixel] - 1, chosen_y + _ROW[pixel] - 1
            component = self._components_above[self._column * self._size + 1 + pixel_x]
            component = np.where(pixel_y < 0, component, self._components_left[np.maximum(pixel_y, 0)])
            if components is not None:
                inside = (pixel_x >= 0) & (pixel_y >= 0)
                component[inside] = components[pixel_y[inside], pixel_x[inside]] + base
            x0, y0 = self._column * self._size, self._row * self._size
            corners = corner(chosen_x + x0, chosen_y + y0, _COLUMN[odd], _ROW[odd], convex, twice)
            self.corners.append((component, corners))
