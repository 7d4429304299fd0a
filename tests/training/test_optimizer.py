"""Optimizers and schedules equal those of PyTorch and nnU-Net."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bcss_jax.training import optimizer

LOSSES = (3.0, 2.0, 2.5, 2.4, 2.3, 1.99995, 2.2, 2.1, 1.5, 1.6, 1.7, 1.8, 1.9, 1.9, 1.9, 1.9, 1.9, 1.9)


def scales(patience, factor=0.1, min_scale=0.0):
    plateau = optimizer.Plateau(factor, patience, min_scale)
    state, values = plateau.init(), []
    for loss in LOSSES:
        state = plateau.update(state, loss)
        values.append(float(state.scale))
    return values


@pytest.mark.parametrize("patience", (0, 1, 2, 3))
def test_plateau_equals_pytorch(patience):
    torch = pytest.importorskip("torch")
    parameter = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=patience)
    expected = []
    for loss in LOSSES:
        scheduler.step(loss)
        expected.append(optimizer.param_groups[0]["lr"])
    np.testing.assert_allclose(scales(patience), expected, rtol=1e-5, atol=1e-8)


def test_plateau_reduces_after_more_than_patience_epochs():
    assert scales(2)[:5] == pytest.approx([1, 1, 1, 1, 0.1])  # epochs 3 and 4 do not improve, epoch 5 reduces


def test_plateau_stops_at_the_minimum_scale():
    assert min(scales(0, min_scale=0.05)) == pytest.approx(0.05)


def test_adamw_equals_pytorch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    start, grads = rng.normal(size=(4, 3)).astype(np.float32), rng.normal(size=(10, 4, 3)).astype(np.float32)
    parameter = torch.tensor(start, requires_grad=True)
    reference = torch.optim.AdamW([parameter], lr=5e-3, weight_decay=1e-2)
    tx = optimizer.clipped(optimizer.adamw(5e-3, 1e-2), 1.5)
    params, state = jnp.asarray(start), tx.init(jnp.asarray(start))
    for grad in grads:
        parameter.grad = torch.tensor(grad)
        torch.nn.utils.clip_grad_norm_([parameter], 1.5)
        reference.step()
        updates, state = tx.update(jnp.asarray(grad), state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params, parameter.detach().numpy(), rtol=1e-5, atol=1e-6)


def trained(torch_optimizer, tx, steps=20, scales=None):
    """Returns a parameter after some steps with random gradients, in PyTorch and here."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    start = np.random.RandomState(0).standard_normal(5).astype(np.float32)
    parameter = torch.nn.Parameter(torch.from_numpy(start.copy()))
    theirs = torch_optimizer(torch, [parameter])
    ours = {"w": jnp.asarray(start)}
    state = tx.init(ours)
    for step in range(steps):
        gradient = np.random.RandomState(step + 1).standard_normal(5).astype(np.float32)
        parameter.grad = torch.from_numpy(gradient.copy())
        for group in theirs.param_groups:
            group["lr"] = 0.01 * (1 if scales is None else scales[step])
        theirs.step()
        updates, state = tx.update({"w": jnp.asarray(gradient)}, state, ours)
        scale = 1 if scales is None else scales[step]
        ours = {"w": ours["w"] + scale * updates["w"]}
    return parameter.detach().numpy(), np.asarray(ours["w"])


@pytest.mark.parametrize("scales", (None, np.linspace(1, 0.1, 20)), ids=("constant rate", "falling rate"))
def test_sgd_equals_pytorch(scales):
    theirs, ours = trained(
        lambda torch, p: torch.optim.SGD(p, lr=0.01, momentum=0.99, nesterov=True, weight_decay=3e-5),
        optimizer.sgd(0.01, 3e-5, momentum=0.99),
        scales=scales,
    )
    np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=1e-6)


def test_poly_equals_nnunet():
    schedule = optimizer.Poly(epochs=10)
    state, scales = schedule.init(), []
    for _ in range(10):
        scales.append(float(state.scale))
        state = schedule.update(state, value=1.0)
    np.testing.assert_allclose(scales, [(1 - epoch / 10) ** 0.9 for epoch in range(10)], rtol=1e-6)
    assert float(state.scale) == 0 and float(schedule.update(state, 1.0).scale) == 0


def test_the_encoder_may_have_its_own_learning_rate():
    params = {"encoder": {"w": jnp.ones(2)}, "head": {"w": jnp.ones(2)}}
    tx = optimizer.separate_encoder_optimizer(optimizer.sgd(0.1, 0.0, 0.0), optimizer.sgd(1.0, 0.0, 0.0))
    updates, _ = tx.update(params, tx.init(params), params)
    np.testing.assert_allclose(updates["encoder"]["w"], -0.1)
    np.testing.assert_allclose(updates["head"]["w"], -1.0)
