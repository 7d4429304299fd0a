"""Compares logits and gradients of small networks on this device with those of float32 on the CPU."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bcss_jax.models.apply import ModelFunction, split_model
from benchmarks.gpu import networks
from benchmarks.gpu.child import Report

SIDE, BATCH = 32, 4
# Name, type of the computation, precision of products, and how much may differ: logits in standard deviations,
# gradients relative to the norm of all of them.
CASES = (
    ("float32, full precision", "float32", "highest", 1e-3, 1e-3),
    ("float32, default precision", "float32", "default", 5e-2, 1e-1),
    ("bfloat16", "bfloat16", "default", 3e-1, 3e-1),
    ("float16", "float16", "default", 5e-2, 1e-1),
)


def run(report: Report, *, names: list[str]) -> None:
    """Compares the networks of these names.

    Gradients are those of sum(logits * random numbers) in training mode, by all parameters.
    """
    host, device = jax.local_devices(backend="cpu")[0], jax.local_devices()[0]
    for network in names:
        expected = _logits_and_gradients(network, "float32", "highest", host)
        for name, dtype, precision, most_logits, most_gradients in CASES:
            actual = _logits_and_gradients(network, dtype, precision, device)
            logits = _largest(actual[0], expected[0]) / float(np.std(expected[0]))
            gradients, worst, where = _gradient_differences(actual[1], expected[1])
            fine = logits <= most_logits and gradients <= most_gradients
            report.add(
                network=network, case=name, logits=logits, logits_may=most_logits, gradients=gradients,
                gradients_may=most_gradients, worst_tensor=worst, of=where, fine=fine,
            )  # fmt: skip


def _logits_and_gradients(network: str, dtype: str, precision: str, device: Any) -> tuple[np.ndarray, Any]:
    model = networks.create(network, dtype, small=True)
    run, (_, params, model_state) = ModelFunction(model, None), split_model(model)
    draws = np.random.default_rng(0)
    images = draws.standard_normal((BATCH, SIDE, SIDE, 3)).astype(np.float32)
    target = draws.standard_normal((BATCH, SIDE, SIDE, networks.NUM_CLASSES)).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), BATCH)

    def loss(params, model_state, images, target, keys):
        logits, _ = run(params, model_state, images, train=True, dropout_keys=keys)
        return jnp.sum(logits * target), logits  # a mean would underflow in float16

    arguments = jax.device_put((params, model_state, images, target, keys), device)
    with jax.default_matmul_precision(precision):
        gradients, logits = jax.jit(jax.grad(loss, has_aux=True))(*arguments)
    return np.asarray(logits), jax.device_get(gradients)


def _largest(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(actual - expected).max())


def _gradient_differences(actual: Any, expected: Any) -> tuple[float, float, str]:
    """Returns the norm of the difference relative to that of the gradient, and the same of the worst tensor by name.

    The norm of a tensor counts as at least a thousandth of the whole, because some gradients are zero but for rounding.
    """
    paired = list(zip(jax.tree.leaves_with_path(expected), jax.tree.leaves(actual), strict=True))
    norms = [(path, np.linalg.norm(a - e), np.linalg.norm(e)) for (path, e), a in paired]
    whole = float(np.linalg.norm([norm for *_, norm in norms]))
    difference = float(np.linalg.norm([each for _, each, _ in norms])) / whole
    path, worst, norm = max(norms, key=lambda each: each[1] / (each[2] + 1e-3 * whole))
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return difference, float(worst / (norm + 1e-3 * whole)), name
