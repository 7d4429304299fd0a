"""The optimizer and the plateau rule against PyTorch's."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bcss_jax import optimizer

LOSSES = (3.0, 2.0, 2.5, 2.4, 2.3, 1.99995, 2.2, 2.1, 1.5, 1.6, 1.7, 1.8, 1.9, 1.9, 1.9, 1.9, 1.9, 1.9)


def scales(patience, factor=0.1, min_scale=0.0):
    plateau = optimizer.Plateau(factor, patience, min_scale)
    state, values = plateau.init(), []
    for loss in LOSSES:
        state = plateau.update(state, loss)
        values.append(float(state.scale))
    return values


@pytest.mark.parametrize("patience", (0, 1, 2, 3))
def test_plateau_is_pytorchs(patience):
    torch = pytest.importorskip("torch")
    parameter = torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.SGD([parameter], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, factor=0.1, patience=patience)
    expected = []
    for loss in LOSSES:
        scheduler.step(loss)
        expected.append(optimiser.param_groups[0]["lr"])
    np.testing.assert_allclose(scales(patience), expected, rtol=1e-5, atol=1e-8)


def test_plateau_bears_as_many_epochs_as_patience_says():
    assert scales(2)[:5] == pytest.approx([1, 1, 1, 1, 0.1])  # epochs 3 and 4 are borne, epoch 5 reduces


def test_plateau_stops_at_the_least_scale():
    assert min(scales(0, min_scale=0.05)) == pytest.approx(0.05)


def test_adamw_is_pytorchs():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    start, grads = rng.normal(size=(4, 3)).astype(np.float32), rng.normal(size=(10, 4, 3)).astype(np.float32)
    parameter = torch.tensor(start, requires_grad=True)
    optimiser = torch.optim.AdamW([parameter], lr=5e-3, weight_decay=1e-2)
    tx = optimizer.clipped(optimizer.adamw(5e-3, 1e-2), 1.5)
    params, state = jnp.asarray(start), tx.init(jnp.asarray(start))
    for grad in grads:
        parameter.grad = torch.tensor(grad)
        torch.nn.utils.clip_grad_norm_([parameter], 1.5)
        optimiser.step()
        updates, state = tx.update(jnp.asarray(grad), state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params, parameter.detach().numpy(), rtol=1e-5, atol=1e-6)
