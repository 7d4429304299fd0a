"""Compares networks of full size with stored values of the reference implementations, at two precisions."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from bcss_jax import models
from bcss_jax.models.weights.pretrained import load_torch_state
from benchmarks.gpu.child import Report, Skipped

# Case of the reference -> network and its arguments.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "unet_milesial_64": ("unet", {}),
    "smp_unet_resnet101": ("unet_resnet101", {}),
    "nnunet_plain_224plan": ("nnunet", {}),
    "transunet_r50_vitb16_224": ("transunet", {}),
    "nnunet_resencM_224plan": ("nnunet_resenc", {}),
}
MAY_DIFFER = {"highest": 1e-3, "default": 5e-2}  # in standard deviations of the reference's logits


def run(report: Report, *, folder: str | None) -> None:
    """Computes the logits of each case.

    Args:
      report: gets a row for each case and precision.
      folder: has weights.py, index.json and outputs/; None: there is none.

    Raises:
      Skipped: there is no such folder.
    """
    if folder is None or not (Path(folder) / "index.json").is_file():
        raise Skipped("no folder of reference values; name it with --reference=FOLDER")
    root = Path(folder)
    weights, index = _module(root / "weights.py"), json.loads((root / "index.json").read_text())
    for case, (network, arguments) in CASES.items():
        entry = index[case]
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            model = models.create(network, num_classes=entry["outputs"]["out0"]["shape"][1], **arguments)
        state = {name: weights.tensor(name, shape) for name, shape in entry["tensors"].items()}
        load_torch_state(model, state)
        image = weights.image(entry["input_seed"], entry["input_shape"]).transpose(0, 2, 3, 1)
        expected = np.load(root / "outputs" / f"{case}.npz")["out0"].transpose(0, 2, 3, 1)
        model = jax.device_put(model, jax.local_devices()[0])
        for precision, may in MAY_DIFFER.items():
            with jax.default_matmul_precision(precision):
                actual = np.asarray(nnx.jit(lambda model, image: model(image))(model, image))
            differ = float(np.abs(actual - expected).max() / expected.std())
            report.add(case=case, precision=precision, logits_differ=differ, may=may, fine=differ <= may)


def _module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("weights", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
