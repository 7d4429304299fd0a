"""TensorFlow for reading data on the host. The GPUs are hidden from it, because it would take their memory from JAX."""

import tensorflow as tf

tf.config.set_visible_devices([], "GPU")

__all__ = ["tf"]
