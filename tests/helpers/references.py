"""Reference outputs and PyTorch twins that networks are compared with; tests are skipped if they are missing."""

import importlib.util
import json

import jax
import numpy as np
import pytest
from flax import nnx

from bcss_jax.models.weights.pretrained import to_torch_state
from helpers.paths import ROOT, SHARED

PARITY = SHARED / "parity"
FOUNDATION = SHARED / "parity_foundation"


def module_at(path, reason):
    """Returns the module in a file outside of packages; skips the test if the file is missing."""
    if not path.is_file():
        pytest.skip(f"{reason}: {path.name} is missing")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def reference_case(case, prefix=""):
    """Returns a case of the reference: its entry in the index, weights, image (N, H, W, C) and outputs by name.

    The weights are PyTorch name -> array, with `prefix` before the names.
    """
    weights = module_at(PARITY / "weights.py", "no reference outputs")
    entry = json.loads((PARITY / "index.json").read_text())[case]
    state = {prefix + name: weights.tensor(name, shape) for name, shape in entry["tensors"].items()}
    image = weights.image(entry["input_seed"], entry["input_shape"]).transpose(0, 2, 3, 1)
    return entry, state, image, dict(np.load(PARITY / "outputs" / f"{case}.npz"))


def foundation_case(case):
    """Returns a case of the vision transformers or SAM: entry, weights, images (N, H, W, C) by name, and outputs."""
    weights = module_at(FOUNDATION / "weights.py", "no reference outputs")
    entry = json.loads((FOUNDATION / "index.json").read_text())[case]
    state = {name: weights.tensor(name, shape) for name, shape in entry["tensors"].items()}
    images = {
        name: weights.image(entry["input_seed"] + i, shape).transpose(0, 2, 3, 1)
        for i, (name, (shape, _)) in enumerate(entry["inputs"].items())
        if len(shape) == 4
    }
    return entry, state, images, dict(np.load(FOUNDATION / "outputs" / f"{case}.npz"))


def torch_twin(file, network, **kwargs):
    """Returns PyTorch and a network of benchmarks/ with random weights."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    twin = getattr(module_at(ROOT / "benchmarks" / file, "no twin"), network)
    torch.manual_seed(0)
    return torch, twin(**kwargs)


def weights_of(twin):
    """Returns copies of the weights of a PyTorch module, for `load_torch_state`."""
    return {name: tensor.detach().numpy().copy() for name, tensor in twin.state_dict().items()}


def normal(seed, *shape):
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def assert_trains_like_its_twin(model, torch, twin, x, target, *, jit=jax.jit):
    """Asserts that logits, running statistics and gradients of mean(logits * target) are those of the twin.

    The twin computes in float64.

    Args:
      model: with the weights of the twin.
      torch: the PyTorch module.
      twin: PyTorch network that takes images (N, C, H, W).
      x: float32 [N, H, W, C].
      target: float32 [N, H, W, K].
      jit: function that compiles.

    Returns:
      Gradients and statistics under the names and in the layout of the twin.
    """
    graphdef, params, stats = nnx.split(model, nnx.Param, ...)

    @jit
    def gradients_and_logits(params, stats):
        def loss(params):
            copy = jax.tree.map(lambda x: x, stats)  # variables of this trace, which the model may change
            model = nnx.merge(graphdef, params, copy)
            model.train()
            logits = model(x)
            return (logits * target).mean(), (logits, nnx.state(model, nnx.Not(nnx.Param)))

        return jax.grad(loss, has_aux=True)(params)

    with jax.default_matmul_precision("highest"):
        gradients, (logits, stats) = gradients_and_logits(params, stats)
    twin.double().train()
    expected = twin(torch.from_numpy(x).double().permute(0, 3, 1, 2))
    (expected.permute(0, 2, 3, 1) * torch.from_numpy(target)).mean().backward()
    expected = expected.detach().permute(0, 2, 3, 1).numpy()
    assert np.abs(logits - expected).max() < 3e-4 * expected.std()

    actual = to_torch_state(nnx.merge(graphdef, gradients, stats))
    wanted = {name: p.grad for name, p in twin.named_parameters()} | dict(twin.named_buffers())
    for name, value in actual.items():
        value_wanted = wanted[name].numpy()
        assert np.abs(value - value_wanted).max() < 2e-3 * np.abs(value_wanted).max() + 1e-7, name
    return actual
