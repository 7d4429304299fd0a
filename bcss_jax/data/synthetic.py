"""The built-in data set: small H&E-like patches of synthetic patients, drawn by numpy.

With it every command of this package runs, and learns something, without a download. Scores on it say nothing about
real tissue.

A patch is drawn as follows. A smooth random field is cut at a quantile into tumor nests and stroma. Other tissue (fat,
lymphocytes, necrosis, glass) is placed in this field where it occurs in reality. Every tissue adds to two maps, the
amounts of hematoxylin and of eosin, and the image is the light that remains after both have absorbed by the
Beer-Lambert law (Ruifrok and Johnston, "Quantification of histochemical staining by color deconvolution", 2001). Stain
and scanner differ between patients. Tumor cytoplasm and stroma deliberately have overlapping amounts of both stains, so
that only texture separates them (crowded large nuclei against wavy fibers); see `benchmarks/sample_difficulty.py`.
"""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from bcss_jax.common.interruption import safe_point

# Names the drawing in the fingerprint of prepared data; change it when any drawn pixel changes. (It is the SHA-256 of
# the source that first drew these patches.)
VERSION = "e9610fc013dbc3e74d6e1d1a477c7d0c115498e3e775d9f48f3fdd6e2c9e3d25"
SIZE = 224  # pixels
MPP = 0.25  # micrometers per pixel
TRAIN_PATIENTS, VAL_PATIENTS = 12, 4
INSTITUTES = (
    "A1",
    "B2",
    "C3",
    "D4",
    "E5",
)  # assigned to the patients in turn, so every institute of "val" is also in "train"
SPACING = 2 * SIZE  # patches of a patient have gaps between them in their slide

OUTSIDE, TUMOR, STROMA, LYMPHOCYTES, NECROSIS, FAT, GLASS = 0, 1, 2, 3, 4, 9, 21

# What a patch shows, by its number: the shape of the tumor, and the other tissue.
PLANS = (
    ("nests", "nothing"),
    ("front", "lymphocytes"),
    ("cords", "nothing"),
    ("nests", "fat"),
    ("front", "necrosis"),
    ("nests", "glass"),
    ("cords", "lymphocytes"),
    ("front", "outside"),
)
_COARSENESS = {"nests": 30.0, "front": 44.0, "cords": 34.0}  # pixels: smoothness of the field that is cut
_Y, _X = np.mgrid[0:SIZE, 0:SIZE].astype(np.float64)


@dataclasses.dataclass(frozen=True)
class Patch:
    """One labeled patch.

    Attributes:
      key: unique in the data set.
      patient: for example "SAMPLE-A1-0001"; the middle part is the institute.
      split: "train" or "val"; all patches of a patient are in the same split.
      x: offset in the patient's slide, pixels from the left.
      y: offset in the patient's slide, pixels from the top.
      image: uint8 [224, 224, 3], RGB.
      mask: uint8 [224, 224], codes of the code book "bcss22": 0 outside the ROI (the image shows tissue there too),
        1 tumor, 2 stroma, 3 lymphocytic_infiltrate, 4 necrosis_or_debris, 9 fat, and 21 (other) for blank glass within
        the ROI, so that a model with a class for all other tissue learns what glass looks like.
    """

    key: str
    patient: str
    split: str
    x: int
    y: int
    image: np.ndarray
    mask: np.ndarray

    def origin(self) -> dict:
        """Returns the fields of `discovery.TileOrigin`."""
        return {
            "key": self.key,
            "barcode": self.patient,
            "patient": self.patient,
            "institute": self.patient.split("-")[1],
            "x": self.x,
            "y": self.y,
            "mpp": MPP,
            "codes": "bcss22",
        }


def draw(seed: int = 0) -> Iterator[Patch]:
    """Draws the whole data set, patient by patient: 96 training and 32 validation patches.

    Args:
      seed: which data set, 0 or above. The same seed gives the same bytes.

    Yields:
      Patches in a fixed order; `draw_patch` draws a single one of them.

    Raises:
      ValueError: the seed is negative.
    """
    for patient in range(TRAIN_PATIENTS + VAL_PATIENTS):
        for number in range(len(PLANS)):
            safe_point()
            yield draw_patch(patient, number, seed)


def draw_patch(patient: int, number: int, seed: int = 0) -> Patch:
    """Draws one patch. The result depends only on the arguments.

    Args:
      patient: 0 to 15; the first twelve are for training.
      number: 0 to 7, which patch of the patient; it selects what the patch shows (`PLANS`).
      seed: which data set, 0 or above.

    Returns:
      The patch.

    Raises:
      ValueError: `patient` or `number` is out of range, or the seed is negative.
    """
    if not (0 <= patient < TRAIN_PATIENTS + VAL_PATIENTS and 0 <= number < len(PLANS)):
        raise ValueError(f"no patch {number} of patient {patient} in the sample data set")
    return _drawn(patient, number, seed)


def draw_unlabeled(number: int, seed: int = 0) -> np.ndarray:
    """Draws one patch of further patients, whose masks nobody has: for pretraining without labels.

    Args:
      number: 0 or above. Eight consecutive patches are of one patient.
      seed: which data set, 0 or above; its patients are others than those of `draw` with the same seed.

    Returns:
      uint8 [224, 224, 3].

    Raises:
      ValueError: the number or the seed is negative.
    """
    return _drawn(*_unlabeled(number), seed).image


def unlabeled_key(number: int) -> str:
    """Returns the key of a patch of `draw_unlabeled`."""
    name, x, y = _place(*_unlabeled(number))
    return f"{name}_{x}_{y}"


def _unlabeled(number: int) -> tuple[int, int]:
    """Returns the patient of an unlabeled patch, and which one of the patient's it is."""
    if number < 0:
        raise ValueError(f"no patch {number}")
    patient, of_patient = divmod(number, len(PLANS))
    return TRAIN_PATIENTS + VAL_PATIENTS + patient, of_patient


def _place(patient: int, number: int) -> tuple[str, int, int]:
    """Returns the name of the patient, and the offsets of a patch in the patient's slide."""
    name = f"SAMPLE-{INSTITUTES[patient % len(INSTITUTES)]}-{patient + 1:04d}"
    return name, SPACING * (number % 4), SPACING * (number // 4)


def _drawn(patient: int, number: int, seed: int) -> Patch:
    style = _PatientStyle.of(_generator(seed, patient))
    rng = _generator(seed, patient, number)
    nest, mask = _layout(rng, *PLANS[number])
    tissue = _Tissue(rng, style, nest, mask)
    image = _photograph(rng, style, tissue.hematoxylin, tissue.eosin)
    labeled = _leave_roi(rng, mask) if PLANS[number][1] == "outside" else mask

    name, x, y = _place(patient, number)
    split = "train" if patient < TRAIN_PATIENTS else "val"
    return Patch(f"{name}_{x}_{y}", name, split, x, y, image, labeled)


def _generator(*numbers: int) -> np.random.Generator:
    # The length is included because SeedSequence treats (3,) and (3, 0) as the same entropy.
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((len(numbers), *numbers))))


@dataclasses.dataclass(frozen=True)
class _PatientStyle:
    """What all patches of a patient share: stain, scanner, and the appearance of the tumor cells."""

    vectors: np.ndarray  # [2, 3], optical density of hematoxylin and eosin per channel
    strength: np.ndarray  # [2], how strongly the slide was stained with each
    white: np.ndarray  # [3], the color of glass in the scan
    gamma: float
    blur: float  # pixels
    cell: float  # pixels from one tumor nucleus to the next
    pleomorphism: float  # how much tumor nuclei differ from one another
    vesicular: float  # share of pale tumor nuclei
    cytoplasm: np.ndarray  # [2], amounts of both stains
    collagen: np.ndarray  # [2], amounts of both stains

    @classmethod
    def of(cls, rng: np.random.Generator) -> "_PatientStyle":
        vectors = np.array([[0.60, 0.73, 0.33], [0.14, 0.93, 0.28]]) + rng.uniform(-0.035, 0.035, (2, 3))
        return cls(
            vectors=vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
            strength=rng.uniform([0.88, 0.82], [1.12, 1.15]),
            white=rng.uniform(236, 248) + rng.uniform(-4, 4, 3),
            gamma=rng.uniform(0.92, 1.1),
            blur=rng.uniform(0.5, 0.95),
            cell=rng.uniform(25, 31),
            pleomorphism=rng.uniform(0.08, 0.2),
            vesicular=rng.uniform(0.3, 0.75),
            cytoplasm=rng.uniform([0.18, 0.54], [0.32, 0.76]),
            collagen=rng.uniform([0.12, 0.57], [0.26, 0.80]),
        )


def _noise(rng: np.random.Generator, sigma: float) -> np.ndarray:
    """Returns a smooth random field [224, 224] with mean 0 and standard deviation 1.

    Args:
      rng: the source of randomness.
      sigma: smoothness of the field in pixels.
    """
    # Gaussians of random height on a lattice finer than their width: equivalent to blurred white noise, and faster.
    pitch, reach = max(1.0, 0.8 * sigma), 4  # `reach` lattice steps are at least three sigma
    count = int(SIZE / pitch) + 2 * reach + 2
    field = rng.standard_normal((count, count))
    for _ in range(2):  # rows, then columns; sums of slices, because the threads of a matrix product would interfere
        position = np.arange(SIZE) / pitch + reach + rng.uniform()
        nearest = position.astype(int)
        blurred, weighted = np.zeros((2, SIZE, field.shape[1]))
        for step in range(-reach, reach + 1):
            weight = np.exp(-np.square((position - nearest - step) * pitch / sigma) / 2)
            np.multiply(weight[:, None], field.take(nearest + step, axis=0), out=weighted)
            blurred += weighted
        field = blurred.T
    return (field - field.mean()) / field.std()


def _slope(rng: np.random.Generator) -> np.ndarray:
    """Returns a plane [224, 224] that rises in a random direction, from about -1 to 1."""
    angle = rng.uniform(0, 2 * np.pi)
    return (np.cos(angle) * (_X - SIZE / 2) + np.sin(angle) * (_Y - SIZE / 2)) / (SIZE / 2)


def _depth(field: np.ndarray) -> np.ndarray:
    """Returns the approximate distance in pixels from the line where the field is 0, with the sign of the field."""
    down, right = np.gradient(field)
    return field / np.maximum(np.hypot(down, right), 1e-3)


def _layout(rng: np.random.Generator, shape: str, extra: str) -> tuple[np.ndarray, np.ndarray]:
    """Draws the position of the tissues.

    Returns:
      Signed depth within the tumor (pixels, [224, 224]), and the codes (uint8 [224, 224]) of the whole patch.
    """
    coarseness = _COARSENESS[shape]
    field = _noise(rng, coarseness) + 0.07 * _noise(rng, 7.0)
    if shape == "front":
        field += 1.5 * _slope(rng)
    elif shape == "cords":  # ridges of the field instead of its hills
        field = -np.abs(field + 0.08 * _noise(rng, 6.0))
    field -= np.quantile(field, 1 - rng.uniform(0.42, 0.58))
    depth = _depth(field)
    mask = np.where(field > 0, TUMOR, STROMA).astype(np.uint8)

    share = rng.uniform(0.12, 0.24)
    if extra == "necrosis":  # in the middle of the tumor, far from vessels
        inner = field + 0.15 * _noise(rng, 8.0)
        mask[(inner > np.quantile(inner, 1 - share)) & (field > 0)] = NECROSIS
    elif extra == "fat":  # beyond the stroma
        outer = field + 0.1 * _noise(rng, 10.0)
        mask[(outer < np.quantile(outer, share)) & (field < 0)] = FAT
    elif extra == "lymphocytes":  # outside the tumor and mostly near it, in patches
        cuff = _noise(rng, 30.0) + 0.3 * field + 0.1 * _noise(rng, 6.0)
        mask[(field < 0) & (cuff > np.quantile(cuff[field < 0], 0.68))] = LYMPHOCYTES
    elif extra == "glass":  # the edge of the section
        edge = 2 * _slope(rng) + 0.3 * _noise(rng, 20.0) + 0.08 * _noise(rng, 5.0)
        mask[edge > np.quantile(edge, 1 - share)] = GLASS
    return depth, mask


def _leave_roi(rng: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    """Returns the mask with 0 beyond a straight edge of the ROI and in a hole."""
    beyond = _slope(rng) > rng.uniform(0.4, 0.8)
    row, column = rng.uniform(40, SIZE - 40, 2)
    hole = np.abs(_Y - row) / rng.uniform(12, 24) + np.abs(_X - column) / rng.uniform(12, 24) < 1
    return np.where(beyond | hole, OUTSIDE, mask).astype(np.uint8)


def _reached(center: float, reach: float) -> tuple[int, int]:
    """Returns the first pixel within `reach` of a coordinate, and the one after the last; both within the patch."""
    return (
        min(max(math.floor(center - reach), 0), SIZE),
        min(max(math.ceil(center + reach), 0), SIZE),
    )


class _Tissue:
    """Draws the amounts of hematoxylin and eosin, both float64 [224, 224], tissue by tissue."""

    def __init__(self, rng: np.random.Generator, style: _PatientStyle, depth: np.ndarray, mask: np.ndarray):
        self.rng, self.style, self.mask = rng, style, mask
        self.fine, self.grain = _noise(rng, 1.1), _noise(rng, 2.2)
        # Uneven stain and section thickness, and bluish (young) or pale (loose) areas in every tissue. Because of them,
        # color alone does not separate the tissues.
        self.uneven_h, self.uneven_e = _noise(rng, 28.0), _noise(rng, 22.0)
        self.hematoxylin, self.eosin = np.zeros((SIZE, SIZE)), np.zeros((SIZE, SIZE))
        self._stroma(depth)
        self._tumor(depth)
        for code, method in ((LYMPHOCYTES, self._lymphocytes), (NECROSIS, self._necrosis), (FAT, self._fat)):
            if (mask == code).any():
                method()
        glass = mask == GLASS
        self.hematoxylin[glass], self.eosin[glass] = 0.0, 0.0

    def _fill(self, where: np.ndarray, hematoxylin: np.ndarray, eosin: np.ndarray) -> None:
        self.hematoxylin = np.where(where, hematoxylin, self.hematoxylin)
        self.eosin = np.where(where, eosin, self.eosin)

    def _lattice(self, pitch: float, jitter: float) -> np.ndarray:
        """Returns the centers [n, 2] (row, column) of a jittered hexagonal lattice over the patch and a margin."""
        step = pitch * np.sqrt(0.75)
        rows, columns = np.mgrid[-2 : SIZE / step + 2, -2 : SIZE / pitch + 2]
        centers = np.stack([rows * step, (columns + 0.5 * (rows % 2)) * pitch], -1).reshape(-1, 2)
        centers = centers + self.rng.uniform(0, pitch, 2) + self.rng.uniform(-jitter, jitter, centers.shape) * pitch
        return centers

    def _code_at(self, center: np.ndarray) -> int:
        row, column = (min(max(round(x), 0), SIZE - 1) for x in center.tolist())
        return int(self.mask[row, column])

    def _cells(self, centers: np.ndarray, pitch: float) -> tuple[np.ndarray, np.ndarray]:
        """Returns the index of the nearest center, and the distance from the border to the next cell.

        The distance is approximate, in pixels.

        Args:
          centers: [n, 2] from `_lattice`.
          pitch: of that lattice; the two nearest centers of a pixel are never farther away than twice this.
        """
        # Squares are compared, because distances take long to compute; -1: none is near.
        nearest, next_nearest = np.full((2, SIZE, SIZE), -1, np.int16)
        first, second = np.full((2, SIZE, SIZE), np.square(2.0 * pitch))
        for index, (row, column) in enumerate(centers.tolist()):
            top, bottom = _reached(row, 2 * pitch)
            left, right = _reached(column, 2 * pitch)
            window = np.s_[top:bottom, left:right]
            square = np.square(np.arange(top, bottom) - row)[:, None] + np.square(np.arange(left, right) - column)
            nearer, next_nearer = square < first[window], square < second[window]
            np.copyto(next_nearest[window], index, where=next_nearer)
            np.copyto(next_nearest[window], nearest[window], where=nearer)
            np.copyto(second[window], square, where=next_nearer)
            np.copyto(second[window], first[window], where=nearer)
            np.copyto(first[window], square, where=nearer)
            np.copyto(nearest[window], index, where=nearer)

        def distance(which):
            found = np.hypot(_Y - centers[which, 0], _X - centers[which, 1])
            return np.where(which < 0, 2.0 * pitch, found)

        return np.maximum(nearest, 0), (distance(next_nearest) - distance(nearest)) / 2

    def _nucleus(self, center, radii, angle, dark, rim=0.0, wobble=0.06, chromatin=0.15, nucleolus=0.0) -> None:
        """Draws one nucleus: an ellipse of `radii` (pixels) with an uneven outline and clumped chromatin."""
        reach = 1.5 * max(radii) + 3
        top, bottom = _reached(center[0], reach)
        left, right = _reached(center[1], reach)
        if top >= bottom or left >= right:
            return
        window = np.s_[top:bottom, left:right]
        down, across = _Y[window] - center[0], _X[window] - center[1]
        u, v = across * np.cos(angle) + down * np.sin(angle), down * np.cos(angle) - across * np.sin(angle)
        turn = np.arctan2(v / radii[1], u / radii[0])
        outline = 1 + sum(wobble * np.cos(k * turn + self.rng.uniform(0, 2 * np.pi)) for k in (2, 3, 5))
        radius = np.hypot(u / radii[0], v / radii[1]) / outline
        inside = np.clip((1 - radius) * min(radii) / 1.5 + 0.5, 0, 1)
        amount = dark * (1 + chromatin * (self.fine[window] + self.grain[window]))
        amount += rim * np.exp(-np.square((radius - 0.9) / 0.12))
        for _ in range(int(nucleolus > 0) * self.rng.integers(1, 3)):
            shift = self.rng.uniform(-0.4, 0.4, 2) * min(radii)
            amount += nucleolus * np.exp(-(np.square(u - shift[0]) + np.square(v - shift[1])) / 4.0)
        self.hematoxylin[window] += inside * (np.maximum(amount, 0.05) - self.hematoxylin[window])
        self.eosin[window] *= 1 - 0.2 * inside

    def _round_nucleus(self, center: np.ndarray) -> None:
        radii = self.rng.uniform(6.8, 8.8) * self.rng.uniform(0.92, 1.08, 2)
        self._nucleus(center, radii, 0.0, self.rng.uniform(1.05, 1.5), wobble=0.03, chromatin=0.14)

    def _stroma(self, depth: np.ndarray) -> None:
        rng, style = self.rng, self.style
        # Fibers are noise that is stretched in one direction and looked up at bent coordinates. Near a nest they bend
        # around it.
        angle = rng.uniform(0, np.pi)
        bend = 16 * _noise(rng, 30.0) + 2.5 * _noise(rng, 9.0) + 5 * np.tanh(depth / 25)
        along = _X * np.cos(angle) + _Y * np.sin(angle)
        across = _Y * np.cos(angle) - _X * np.sin(angle) + bend
        coarse = _lookup(rng, along / 45, across / 4.0)
        thin = _lookup(rng, along / 22, across / 1.6)
        bundles = _lookup(rng, along / 90, across / 15)
        loose = np.clip(bundles - 0.5, 0, 1.5)  # pale ground substance between bundles
        fiber = 0.22 * coarse + 0.18 * thin
        eosin = style.collagen[1] * (1 + fiber + 0.2 * self.uneven_e - 0.35 * loose + 0.04 * self.fine)
        hematoxylin = style.collagen[0] * (1 + 0.5 * self.uneven_h + 0.25 * coarse + 0.15 * self.grain)
        slits = np.clip((_lookup(rng, along / 60, across / 5.0) - 2.0) * 1.5, 0, 0.9)
        self._fill(np.ones_like(depth, bool), hematoxylin * (1 - slits), eosin * (1 - slits))

        down, right = np.gradient(across)
        for center in self._lattice(rng.uniform(27, 40), 0.45):
            kind = rng.uniform()
            row, column = np.clip(np.round(center), 0, SIZE - 1).astype(int)
            if self.mask[row, column] != STROMA or kind < 0.25:
                continue
            if kind > 0.9:  # a lone lymphocyte
                self._round_nucleus(center)
                continue
            radii = np.array([rng.uniform(9, 16), rng.uniform(2.6, 5.0)])
            lies = np.arctan2(-right[row, column], down[row, column]) + rng.uniform(-0.2, 0.2)
            self._nucleus(center, radii, lies, rng.uniform(0.7, 1.3), wobble=0.05)

    def _tumor(self, depth: np.ndarray) -> None:
        rng, style = self.rng, self.style
        centers = self._lattice(style.cell, 0.27)
        nearest, border = self._cells(centers, style.cell)
        shade = rng.uniform(0.75, 1.25, (2, len(centers)))
        frothy = 1 + 0.2 * self.grain + 0.12 * self.fine
        eosin = style.cytoplasm[1] * shade[1, nearest] * (frothy + 0.15 * self.uneven_e)
        hematoxylin = style.cytoplasm[0] * shade[0, nearest] * (frothy + 0.4 * self.uneven_h)
        # Cells touch along faint lines; some are separated by a white gap.
        apart = (rng.uniform(size=len(centers)) < 0.3)[nearest] * np.clip(_noise(rng, 6.0), 0, 1)
        gap = (0.2 + 0.55 * apart) * np.exp(-np.square(border / (0.9 + 0.9 * apart)))
        # Shrinkage also separates a nest from the stroma around it, in some places.
        shrunk = np.clip(_noise(rng, 18.0) - 0.4, 0, 1)
        gap = np.maximum(gap, 0.85 * shrunk * np.exp(-np.square((depth - 1.5) / 1.8)))
        self._fill(self.mask == TUMOR, hematoxylin * (1 - gap), eosin * (1 - gap))

        for center in centers:
            if self._code_at(center) != TUMOR:
                continue
            scale = np.clip(1 + style.pleomorphism * rng.standard_normal(), 0.6, 1.4)
            radii = 0.38 * style.cell * scale * np.array([rng.uniform(1.0, 1.25), rng.uniform(0.78, 1.0)])
            angle = rng.uniform(0, np.pi)
            if rng.uniform() < style.vesicular:
                dark, rim, nucleolus = rng.uniform(0.38, 0.75), rng.uniform(0.25, 0.5), rng.uniform(0.5, 1.0)
            else:
                dark, rim, nucleolus = rng.uniform(0.8, 1.3), 0.1, 0.0
            self._nucleus(center, radii, angle, dark, rim, 0.06, 0.2, nucleolus)

    def _lymphocytes(self) -> None:
        for center in self._lattice(19.5, 0.2):
            if self._code_at(center) == LYMPHOCYTES and self.rng.uniform() < 0.92:
                self._round_nucleus(center)

    def _necrosis(self) -> None:
        lumps = _noise(self.rng, 4.0)
        eosin = 0.75 * (1 + 0.25 * self.fine + 0.2 * lumps + 0.15 * self.uneven_e)
        self._fill(self.mask == NECROSIS, 0.12 * (1 + 0.4 * lumps + 0.3 * self.uneven_h), np.maximum(eosin, 0.1))
        for center in self._lattice(21.0, 0.5):
            if self._code_at(center) == NECROSIS:  # fragments of nuclei, and shadows of cells without a nucleus
                if self.rng.uniform() < 0.55:
                    self._nucleus(center, self.rng.uniform(1.8, 4.2, 2), 0.0, self.rng.uniform(0.8, 1.6))
                else:
                    self._nucleus(center, self.rng.uniform(6, 9, 2), 0.0, 0.2, wobble=0.08, chromatin=0.4)

    def _fat(self) -> None:
        centers = self._lattice(62.0, 0.25)
        _, border = self._cells(centers, 62.0)
        wall = np.exp(-np.square(border / 2.0))
        self._fill(self.mask == FAT, 0.15 * wall, (0.5 + 0.1 * self.fine) * wall)
        thin = (self.mask == FAT) & (border < 1.5)
        rows, columns = np.nonzero(thin)
        for _ in range(min(4, len(rows))):  # a few flat nuclei in the walls
            pick = self.rng.integers(len(rows))
            center = np.array([rows[pick], columns[pick]], np.float64)
            self._nucleus(center, np.array([8.0, 3.0]), self.rng.uniform(0, np.pi), 1.1)


def _lookup(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Returns a smoothly interpolated random field at the coordinates (u, v).

    It has unit grain, and about mean 0 and standard deviation 1.
    """
    table = rng.standard_normal((128, 512))
    low_u, low_v = np.floor(u), np.floor(v)
    part_u, part_v = u - low_u, v - low_v
    part_u, part_v = (part * part * (3 - 2 * part) for part in (part_u, part_v))
    low_u, low_v = low_u.astype(int), low_v.astype(int)
    (row, next_row), (column, next_column) = ((low_u % 128, (low_u + 1) % 128), (low_v % 512, (low_v + 1) % 512))
    row, next_row, rest_v = row * 512, next_row * 512, 1 - part_v
    first = table.take(row + column) * rest_v + table.take(row + next_column) * part_v
    second = table.take(next_row + column) * rest_v + table.take(next_row + next_column) * part_v
    return 1.4 * (first * (1 - part_u) + second * part_u)


def _blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Blurs [H, W, C] with a Gaussian over H and W; the edge is repeated."""
    reach = 3
    weights = np.exp(-np.square(np.arange(-reach, reach + 1) / sigma) / 2)
    weights /= weights.sum()
    for axis in (0, 1):
        length = image.shape[axis]
        padded = np.pad(image, [(reach, reach) if a == axis else (0, 0) for a in range(3)], mode="edge")
        shifted = (w * np.take(padded, np.arange(k, k + length), axis) for k, w in enumerate(weights))
        image = sum(shifted, start=np.zeros(()))
    return image


def _photograph(
    rng: np.random.Generator, style: _PatientStyle, hematoxylin: np.ndarray, eosin: np.ndarray
) -> np.ndarray:
    """Returns the image of both stains from the patient's scanner, uint8 [224, 224, 3]."""
    stains = zip((hematoxylin, eosin), style.strength, style.vectors, strict=True)
    density = sum(np.maximum(amount, 0)[..., None] * (strength * vector) for amount, strength, vector in stains)
    light = np.exp(-density)
    light = _blur(light, style.blur) ** style.gamma
    pixels = style.white * light + rng.standard_normal((SIZE, SIZE, 3)) * 2.0
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)
