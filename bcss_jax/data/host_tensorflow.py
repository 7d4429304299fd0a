"""TensorFlow for reading data on the host. It is kept off the GPUs, whose memory it would take from JAX."""

import tensorflow as tf

tf.config.set_visible_devices([], "GPU")

__all__ = ["tf"]
