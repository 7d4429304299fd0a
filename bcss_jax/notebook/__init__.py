"""What notebooks/quickstart.ipynb needs beside `bcss_jax` itself: its host, with data and time limit, and a slide."""

import logging

from bcss_jax.notebook.host import Host, describe_devices, find_bcss, find_host
from bcss_jax.notebook.publication import gather
from bcss_jax.notebook.sample_slide import write_sample_slide
from bcss_jax.notebook.session import published_recipe, train_in_sessions

__all__ = [
    "Host",
    "describe_devices",
    "find_bcss",
    "find_host",
    "gather",
    "published_recipe",
    "train_in_sessions",
    "write_sample_slide",
]

logging.getLogger("absl").setLevel(logging.CRITICAL)  # the libraries of JAX raise what they log as errors
