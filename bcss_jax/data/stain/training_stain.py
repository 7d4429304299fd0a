"""Measures the stain of the images that a network is trained on."""

import collections
import math

import numpy as np

from bcss_jax.common.interruption import safe_point
from bcss_jax.data.host_tensorflow import tf
from bcss_jax.data.stain.measured_stain import MeasuredStain, NotMeasurable, measure, typical
from bcss_jax.data.tfrecords import PreparedData
from bcss_jax.slides.tissue.tissue_by_color import glass_of

IMAGES = 2048  # of the training set that are decoded; more are divided evenly
PIXELS = 4096  # of an image
PIXELS_OF_SLIDE = 1 << 18


def stain_of_training(data: PreparedData) -> MeasuredStain | None:
    """Returns the typical stain of the slides of a training set; None if none of them shows hematoxylin and eosin.

    Each slide counts once, however many images it has. Images that state no slide count as a slide each.

    Args:
      data: its split "train" is measured.
    """
    slides = _pixels_by_slide(data)
    glass = {slide: glass_of(pixels[:, None], np.ones((len(pixels), 1), bool)) for slide, pixels in slides.items()}
    known = [each for each in glass.values() if each is not None]
    usual = np.median(known, axis=0) if known else None
    found = []
    for slide, pixels in slides.items():
        safe_point()
        own = glass[slide]
        try:
            found.append(measure(pixels, usual if own is None else own))
        except NotMeasurable:
            continue
    return typical(found) if found else None


def _pixels_by_slide(data: PreparedData) -> dict[str, np.ndarray]:
    """Returns pixels of each slide of the training set, uint8 [N, 3], from a sample that is always the same."""
    rows = data.table("train")
    every = math.ceil(len(rows) / IMAGES)

    def sampled(example):
        image = tf.io.decode_png(example["image"], channels=3)
        pixels = tf.cast(tf.shape(image)[0] * tf.shape(image)[1], tf.float32)
        step = tf.cast(tf.math.ceil(tf.math.sqrt(pixels / PIXELS)), tf.int32)
        return example["index"], tf.reshape(image[::step, ::step], [-1, 3])

    chosen = data.load("train").filter(lambda example: example["index"] % every == 0)
    found = {}
    for index, pixels in chosen.map(sampled, num_parallel_calls=tf.data.AUTOTUNE).as_numpy_iterator():
        safe_point()
        found[int(index)] = pixels
    by_slide = collections.defaultdict(list)
    for index in sorted(found):
        by_slide[rows[index]["barcode"]].append(found[index])
    slides = {slide: np.concatenate(parts) for slide, parts in by_slide.items()}
    return {slide: pixels[:: math.ceil(len(pixels) / PIXELS_OF_SLIDE)] for slide, pixels in slides.items()}
