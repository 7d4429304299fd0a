"""Segment breast-cancer tissue (tumor, stroma) in H&E images with JAX."""

import os
import sys

__version__ = "0.1.0"

# Libraries in C++ (XLA, TensorFlow, gRPC) would write lines between ours; what matters they raise as errors too. Their
# lines are shown with TF_CPP_MIN_LOG_LEVEL=0.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

# So it is while Python looks for the module of `python -m bcss_jax.COMMAND`. What a command imports takes seconds, and
# a signal that arrives meanwhile is a request to stop too.
if sys.argv[:1] == ["-m"]:
    from bcss_jax.common import interruption

    interruption.install()
