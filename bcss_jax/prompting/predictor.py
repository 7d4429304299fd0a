"""Masks of what points, boxes and masks on one image prompt."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from bcss_jax.errors import ConfigError, DataError, NumericalError
from bcss_jax.models.sam.mask_decoder import Features
from bcss_jax.models.sam.prompt_encoder import NO_TOKEN, NOT_A_POINT
from bcss_jax.models.sam.sam import Sam
from bcss_jax.models.sam.sam2 import Sam2

THRESHOLD = 0.0  # of the logits
MIN_POINTS = 8  # to which points are filled up, so that the first clicks share a compiled function
LOW_RES_LIMIT = 32.0  # of the logits that SAM 2.1's predictor returns for the next prompt


class Prediction(NamedTuple):
    """Masks of a prompt; with several prompts at once, there is one more axis of P prompts in front.

    Attributes:
      masks: bool (M, H, W), or the logits float32, in the size of the image.
      scores: float32 (M,), the expected intersection over union of each mask with what was meant.
      low_res: float32 logits (M, h, w); one of them may be the mask of the next prompt.
    """

    masks: np.ndarray
    scores: np.ndarray
    low_res: np.ndarray


class Prompts(NamedTuple):
    """P prompts in pixels of the image, as arrays; see `Predictor.predict`."""

    points: np.ndarray | None
    labels: np.ndarray | None
    boxes: np.ndarray | None
    masks: np.ndarray | None

    def __len__(self) -> int:
        """Number of prompts."""
        return next(len(array) for array in (self.points, self.boxes, self.masks) if array is not None)


class Predictor:
    """Encodes an image once, and predicts masks for prompts on it.

    Points are filled up to 8, 16, 32, ... and prompts to 1, 2, 4, ..., with tokens that no other token sees and prompts
    whose results are dropped. A function is compiled once for each of these numbers, with and without boxes and masks.
    """

    def __init__(self, model: Sam | Sam2):
        """Prepares a network, whose weights may not change afterwards."""
        self.model = model
        self._graph, self._state = nnx.split(model)
        self._features: Features | None = None

    def set_image(self, image: np.ndarray) -> None:
        """Encodes an image, RGB uint8 (H, W, 3); it stays until the next one.

        Raises:
          DataError: the array is something else.
        """
        image = np.asarray(image)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise DataError(
                f"Predictor: expected an image of RGB uint8 (H, W, 3), found {image.dtype} {image.shape}; convert it"
            )
        self._size = image.shape[:2]
        self._frame = self.model.frame(*self._size)
        self._features = _encode(self._graph, self._state, self._frame.network_input(image)[None])

    def set_features(self, features: Features, height: int, width: int) -> None:
        """Takes what was `features` of an image of `height` x `width` pixels, instead of encoding the image again."""
        self._size = (height, width)
        self._frame = self.model.frame(height, width)
        self._features = features

    @property
    def features(self) -> Features:
        """What the encoder said of the image.

        Raises:
          ConfigError: there is no image yet.
        """
        if self._features is None:
            raise ConfigError("Predictor: there is no image; call set_image first")
        return self._features

    def predict(
        self,
        points: Any = None,
        labels: Any = None,
        box: Any = None,
        mask: Any = None,
        *,
        multimask: bool = True,
        logits: bool = False,
    ) -> Prediction:
        """Returns the masks of one prompt, or of P prompts at once.

        Args:
          points: (N, 2) or (P, N, 2), x and y in pixels of the image.
          labels: (N,) or (P, N): 1 for points in what is meant, 0 for points outside, -1 for no point.
          box: (4,) or (P, 4): x and y of the upper left and the lower right corner.
          mask: logits (h, w), (1, h, w) or (P, h, w), from `low_res` of an earlier prediction.
          multimask: three masks, for prompts that may mean several things, instead of a single one.
          logits: return logits instead of masks.

        Raises:
          DataError: there is no prompt, or one that does not fit the image.
          ConfigError: there is no image yet.
          NumericalError: the network's answer is not finite.
        """
        features = self.features
        prompts, single = self._checked(points, labels, box, mask)
        prediction = self._predicted(features, prompts, multimask, 1 << (len(prompts) - 1).bit_length())
        masks = self._frame.to_image(prediction.low_res)
        low_res = prediction.low_res
        if isinstance(self.model, Sam2):
            low_res = low_res.clip(-LOW_RES_LIMIT, LOW_RES_LIMIT)
        prediction = Prediction(masks if logits else masks > THRESHOLD, prediction.scores, low_res)
        return Prediction(*(array[0] for array in prediction)) if single else prediction

    def predict_both(
        self, points: Any = None, labels: Any = None, box: Any = None, mask: Any = None
    ) -> tuple[Prediction, Prediction]:
        """Returns the logits that `predict` gives of one prompt with and without `multimask`, decoded once.

        Raises:
          DataError: as `predict`.
          ConfigError: there is no image yet.
        """
        features = self.features
        prompts, _ = self._checked(points, labels, box, mask)
        several, one = self._decoded(features, prompts, 1)
        masks = self._frame.to_image(np.concatenate([several.low_res, one.low_res], axis=1))[0]
        count, limit = several.scores.shape[1], LOW_RES_LIMIT if isinstance(self.model, Sam2) else np.inf
        return (
            Prediction(masks[:count], several.scores[0], several.low_res[0].clip(-limit, limit)),
            Prediction(masks[count:], one.scores[0], one.low_res[0].clip(-limit, limit)),
        )

    def low_resolution(self, points: np.ndarray, labels: np.ndarray, prompts: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the three masks of P points, each a prompt by itself, before they are resized to the image.

        Args:
          points: (P, 2), x and y in pixels of the image.
          labels: (P,), see `predict`.
          prompts: number to which the prompts are filled up.

        Returns:
          Logits float32 (P, 3, h, w) and scores float32 (P, 3).
        """
        given = Prompts(np.asarray(points)[:, None], np.asarray(labels)[:, None], None, None)
        prediction = self._predicted(self.features, given, True, prompts)
        return prediction.low_res, prediction.scores

    def to_image(self, low_res: np.ndarray) -> np.ndarray:
        """Returns logits (..., h, w) in the size of the image: float32 (..., H, W)."""
        return self._frame.to_image(low_res)

    def _predicted(self, features: Features, prompts: Prompts, multimask: bool, padded: int) -> Prediction:
        """Returns the prediction with its `low_res` in place of the masks too."""
        return self._decoded(features, prompts, padded)[0 if multimask else 1]

    def _decoded(self, features: Features, prompts: Prompts, padded: int) -> tuple[Prediction, Prediction]:
        """Returns the predictions for ambiguous prompts and for clear ones, as `_predicted`."""
        count = len(prompts)
        points, labels = prompts.points, prompts.labels
        boxes = None
        if prompts.boxes is not None:
            boxes = self._frame.to_network(prompts.boxes.reshape(-1, 2, 2)).reshape(-1, 4)
            if points is None:  # as many points as a click has, none of which exists
                points, labels = np.zeros((count, 1, 2)), np.full((count, 1), NO_TOKEN)
        if points is not None and labels is not None:
            fill = max(MIN_POINTS, 1 << (points.shape[1] - 1).bit_length()) - points.shape[1]
            points = np.pad(self._frame.to_network(points), ((0, 0), (0, fill), (0, 0)))
            labels = np.pad(labels.astype(np.int32), ((0, 0), (0, fill)), constant_values=NO_TOKEN)
        arrays = [
            None if array is None else np.pad(array, ((0, padded - count), *[(0, 0)] * (array.ndim - 1)), mode="edge")
            for array in (points, labels, boxes, prompts.masks)
        ]
        found = []
        for both in _decode(self._graph, self._state, features, *arrays):
            masks, scores = (np.asarray(array)[:count] for array in both)
            if not (np.isfinite(masks).all() and np.isfinite(scores).all()):
                raise NumericalError("Predictor: the network's answer is not finite; its weights may be damaged")
            found.append(Prediction(masks, scores, masks))
        return found[0], found[1]

    def _checked(self, points: Any, labels: Any, box: Any, mask: Any) -> tuple[Prompts, bool]:
        """Returns the prompts, and whether they are one without an axis for several."""
        if points is None and box is None and mask is None:
            raise DataError("Predictor: expected points, a box or a mask, found no prompt")
        if (points is None) != (labels is None):
            raise DataError("Predictor: expected a label for each point; give points and labels, or neither")
        given = [None if each is None else np.asarray(each) for each in (points, labels, box, mask)]
        axes = [None if a is None else a.ndim for a in given]
        single = axes[0] in (None, 2) and axes[2] in (None, 1) and (axes[3] in (None, 2) or len(given[3]) == 1)  # pyright: ignore
        points, labels, box, mask = (
            a[None] if a is not None and a.ndim == wanted else a for a, wanted in zip(given, (2, 1, 1, 2), strict=True)
        )
        _check_shapes(points, labels, box, mask, 4 * self.model.embedding_size)
        height, width = self._size
        if points is not None:
            unknown = sorted(set(labels.ravel().tolist()) - set(self.model.point_labels))
            if unknown:
                raise DataError(f"Predictor: labels are 1 (inside), 0 (outside) or -1 (no point), not {unknown[0]}")
            inside = ((points >= 0) & (points <= (width, height))).all(-1) | (labels == NOT_A_POINT)
            if not inside.all():
                x, y = points[~inside][0]
                raise DataError(
                    f"Predictor: the point ({x:g}, {y:g}) lies outside of the image of {width}x{height} pixels; points "
                    "are x and y in its pixels"
                )
        if box is not None:
            first, last = box[:, :2], box[:, 2:]
            fits = ((first <= last) & (last >= 0) & (first <= (width, height))).all(1)
            if not fits.all():
                raise DataError(
                    f"Predictor: the box {box[~fits][0].tolist()} does not lie in the image of {width}x{height} "
                    "pixels; a box is x and y of the upper left and of the lower right corner"
                )
        return Prompts(points, labels, box, None if mask is None else mask.astype(np.float32)), single


def _check_shapes(points: Any, labels: Any, box: Any, mask: Any, side: int) -> None:
    """Raises DataError unless the arrays have the shapes of P prompts."""
    wanted = {
        "points": (points, "(N, 2) or (P, N, 2)", lambda a: a.ndim == 3 and a.shape[2] == 2 and a.shape[1] > 0),
        "labels": (labels, "those of the points", lambda a: a.shape == points.shape[:2]),
        "box": (box, "(4,) or (P, 4)", lambda a: a.ndim == 2 and a.shape[1] == 4),
        "mask": (mask, f"({side}, {side}) or (P, {side}, {side})", lambda a: a.shape[1:] == (side, side)),
    }
    given = {name: each for name, each in wanted.items() if each[0] is not None}
    for name, (array, shape, fits) in given.items():
        if array.dtype.kind not in "iufb" or not fits(array) or not len(array):
            raise DataError(f"Predictor: expected {name} {shape}, found {array.dtype} {array.shape}")
        if not np.isfinite(array).all():
            raise DataError(f"Predictor: {name} holds values that are not finite")
    if len({len(array) for array, _, _ in given.values()}) > 1:
        counts = ", ".join(f"{len(array)} of {name}" for name, (array, _, _) in given.items())
        raise DataError(f"Predictor: expected as many prompts of each kind, found {counts}")


@functools.partial(jax.jit, static_argnums=0)
def _encode(graph: nnx.GraphDef, state: nnx.State, images: jax.Array) -> Features:
    return nnx.merge(graph, state).encode(images)


@functools.partial(jax.jit, static_argnums=0)
def _decode(graph: nnx.GraphDef, state: nnx.State, features: Features, points, labels, boxes, masks):
    """Returns masks and scores for ambiguous prompts, and for clear ones."""
    model = nnx.merge(graph, state)
    predictions = model.decode(features, model.tokens(points, labels, boxes), masks)
    return tuple(model.select(predictions, multimask)[:2] for multimask in (True, False))
