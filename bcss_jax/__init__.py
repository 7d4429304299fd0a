"""Segment breast-cancer tissue (tumor, stroma) in H&E images with JAX.

    import bcss_jax

    run = bcss_jax.train(bcss_jax.load_config("unet"))
    report = bcss_jax.evaluate(run.folder, output="results")
    slides = bcss_jax.segment(run.folder, "case.svs", output="out")

The names below are imported when they are first used, so that `import bcss_jax` takes no time.
"""

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bcss_jax.api.click_evaluation import evaluate_clicks
    from bcss_jax.api.evaluation import evaluate
    from bcss_jax.api.evaluation_report import EvaluationReport
    from bcss_jax.api.pretraining import pretrain
    from bcss_jax.api.prompting import prompt_slide
    from bcss_jax.api.run import Run
    from bcss_jax.api.segmentation import segment
    from bcss_jax.api.slide_results import SlideResult, SlideResults
    from bcss_jax.api.training import train
    from bcss_jax.config_file import load_config

__version__ = "0.1.0"
__all__ = [
    "EvaluationReport",
    "Run",
    "SlideResult",
    "SlideResults",
    "evaluate",
    "evaluate_clicks",
    "load_config",
    "pretrain",
    "prompt_slide",
    "segment",
    "train",
]

_MODULES = {
    "EvaluationReport": "bcss_jax.api.evaluation_report",
    "Run": "bcss_jax.api.run",
    "SlideResult": "bcss_jax.api.slide_results",
    "SlideResults": "bcss_jax.api.slide_results",
    "evaluate": "bcss_jax.api.evaluation",
    "evaluate_clicks": "bcss_jax.api.click_evaluation",
    "load_config": "bcss_jax.config_file",
    "pretrain": "bcss_jax.api.pretraining",
    "prompt_slide": "bcss_jax.api.prompting",
    "segment": "bcss_jax.api.segmentation",
    "train": "bcss_jax.api.training",
}

# Libraries in C++ (XLA, TensorFlow, gRPC) would write lines between ours; what matters they raise as errors too. Their
# lines are shown with TF_CPP_MIN_LOG_LEVEL=0.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

# So it is while Python looks for the module of `python -m bcss_jax.COMMAND`. What a command imports takes seconds, and
# a signal that arrives meanwhile is a request to stop too.
if sys.argv[:1] == ["-m"]:
    from bcss_jax.common import interruption

    interruption.install()


def __getattr__(name: str) -> Any:
    """Imports one of the names of `__all__` when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
