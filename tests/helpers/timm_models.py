"""Imports timm, also where its dependency torchvision cannot be loaded, as beside a PyTorch for CPUs alone."""

import sys
import unittest.mock

import pytest


def import_timm():
    """Returns timm; skips the tests of the module without it.

    Its networks need nothing of torchvision, which only its data loaders use.
    """
    pytest.importorskip("torch")
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError, OSError):
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        names = ("", ".datasets", ".transforms", ".transforms.functional", ".utils", ".ops", ".ops.misc")
        stubs = {f"torchvision{name}": unittest.mock.MagicMock() for name in names}
        sys.modules.update(stubs)
        timm = pytest.importorskip("timm")
        for name in stubs:
            del sys.modules[name]
        return timm
    return pytest.importorskip("timm")
