"""Segment breast-cancer tissue (tumor, stroma) in H&E images with JAX."""

import sys

__version__ = "0.1.0"

# So it is while Python looks for the module of `python -m bcss_jax.COMMAND`. What a command imports takes seconds, and
# a signal that arrives meanwhile is a request to stop too.
if sys.argv[:1] == ["-m"]:
    from bcss_jax.common import interruption

    interruption.install()
