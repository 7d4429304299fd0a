import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.references import FOUNDATION, module_at

from bcss_jax.common.json_files import read_json
from bcss_jax.models.weights.pretrained import load_torch_state
from bcss_jax.pretraining.distillation.distillation_losses import class_loss, kde, koleo, patch_loss
from bcss_jax.pretraining.distillation.projection_head import ProjectionHead
from bcss_jax.pretraining.distillation.targets import centered, moved_center, sinkhorn


@pytest.fixture(scope="module")
def values():
    return read_json(FOUNDATION / "values.json", "reference values", "") if FOUNDATION.exists() else pytest.skip()


@pytest.fixture(scope="module")
def weights():
    return module_at(FOUNDATION / "weights.py", "no reference values")


@pytest.mark.parametrize("case", ["two_local", "eight_local_warm"])
def test_loss_gradient_and_center_of_the_first_version(values, weights, case):
    expected = values["dino_loss"][case]
    batch, dim, views = expected["batch"], expected["out_dim"], expected["ncrops"]
    center = 0.1 * weights.image(81, (1, dim))[0]
    student = 0.3 * weights.image(82, (views * batch, dim)).reshape(views, batch, dim)
    teacher = 0.2 * weights.image(83, (2 * batch, dim)).reshape(2, batch, dim)
    targets = centered(teacher, center, expected["teacher_temp"])
    loss, gradient = jax.value_and_grad(class_loss)(jnp.asarray(student), targets, 0.1)
    new = moved_center(center, teacher.mean((0, 1)), 0.9)
    gradient = np.asarray(gradient)
    assert loss == pytest.approx(expected["loss"], rel=1e-5)
    assert np.abs(gradient).sum() == pytest.approx(expected["grad_abs_sum"], rel=1e-5)
    assert gradient[0, 0, 0] == pytest.approx(expected["grad_0"], rel=1e-5)
    assert gradient[-1, -1, -1] == pytest.approx(expected["grad_last"], rel=1e-5)
    assert new.sum() == pytest.approx(expected["new_center_sum"], rel=1e-5)
    assert np.abs(new).sum() == pytest.approx(expected["new_center_abs_sum"], rel=1e-5)
    assert new[0] == pytest.approx(expected["new_center_0"], rel=1e-5)


def test_targets_of_the_second_version(values, weights):
    expected = values["dinov2_dino_loss"]
    student = jnp.asarray(0.3 * weights.image(84, (12, 30)).reshape(3, 4, 30))
    teacher = jnp.asarray(0.2 * weights.image(85, (8, 30)))
    center = 0.1 * weights.image(81, (1, 30))[0]
    targets = sinkhorn(teacher, 0.07)
    assert (centered(teacher, center, 0.07) ** 2).sum() == pytest.approx(
        expected["centred_abs_sum_of_squares"], rel=1e-5
    )
    new = moved_center(center, teacher.mean(0), 0.9)
    assert np.abs(new).sum() == pytest.approx(expected["new_center_abs_sum"], rel=1e-5)
    assert (targets**2).sum() == pytest.approx(expected["sinkhorn_sum_of_squares"], rel=1e-5)
    np.testing.assert_allclose(targets[0, :5], expected["sinkhorn_0"], rtol=1e-5)
    np.testing.assert_allclose(targets.sum(1), expected["sinkhorn_row_sums"], rtol=1e-6)

    # The reference compares all pairs; all views here count as local, so that ours does too.
    def all_pairs(student):
        views = jnp.concatenate([jnp.zeros((2, 4, 30)), student])
        zeros = class_loss(jnp.zeros((2, 4, 30)), targets.reshape(2, 4, 30), 0.1) * 2
        return class_loss(views, targets.reshape(2, 4, 30), 0.1) * (2 * 5 - 2) - zeros

    loss, gradient = jax.value_and_grad(all_pairs)(student)
    assert loss == pytest.approx(expected["loss_list"], rel=1e-5)
    assert np.abs(gradient).sum() == pytest.approx(expected["grad_abs_sum"], rel=1e-5)


def test_loss_of_masked_patches(values, weights):
    expected = values["ibot_loss"]
    student, teacher = (jnp.asarray(scale * weights.image(seed, (10, 20))) for scale, seed in ((0.3, 86), (0.2, 87)))
    counts = np.array([4] * 4 + [6] * 6)  # masked patches of images 0 and 2
    padded = jnp.pad(teacher, ((0, 3), (0, 0)), constant_values=50)
    targets = sinkhorn(padded, 0.07, jnp.arange(13) < 10)
    assert (targets[10:] == 0).all()
    np.testing.assert_allclose(targets[:10], sinkhorn(teacher, 0.07), rtol=1e-5, atol=1e-9)
    assert (targets**2).sum() == pytest.approx(expected["sinkhorn_sum_of_squares"], rel=1e-5)
    center = 0.1 * weights.image(88, (1, 1, 20))[0, 0]
    assert (centered(teacher, center, 0.07) ** 2).sum() == pytest.approx(expected["centred_sum_of_squares"], rel=1e-5)
    moved = moved_center(center, teacher.mean(0), 0.9)
    assert np.abs(moved).sum() == pytest.approx(expected["new_center_abs_sum"], rel=1e-5)
    loss, gradient = jax.value_and_grad(patch_loss)(student, targets[:10], jnp.asarray(1 / counts / 4), 0.1)
    assert loss == pytest.approx(expected["loss"], rel=1e-5)
    assert np.abs(gradient).sum() == pytest.approx(expected["grad_abs_sum"], rel=1e-5)


def test_koleo(values, weights):
    loss, gradient = jax.value_and_grad(koleo)(jnp.asarray(weights.image(89, (6, 16))))
    assert loss == pytest.approx(values["koleo_loss"]["loss"], rel=1e-5)
    assert np.abs(gradient).sum() == pytest.approx(values["koleo_loss"]["grad_abs_sum"], rel=1e-5)


def test_kernel_density_is_lower_for_spread_features():
    spread, together = jnp.eye(8), jnp.ones((8, 8)) + 0.01 * jnp.eye(8)
    assert kde(spread) == pytest.approx(0, abs=1e-5)
    assert kde(together) == pytest.approx(5, abs=1e-2)
    assert np.isfinite(jax.grad(kde)(jnp.ones((4, 3)))).all()


def test_targets_do_not_overflow():
    scores = jnp.asarray([[1000.0, 0, -1000], [0, 1000, 0]])
    targets = sinkhorn(scores, 0.04)
    assert np.isfinite(targets).all()
    np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_head(values, weights, version):
    expected = values["dino_head"][version]
    head = ProjectionHead(12, 40, hidden=32, bottleneck=8, free_lengths=version == "v2", rngs=nnx.Rngs(0))
    state = {name: weights.tensor(name, shape) for name, shape in expected["tensors"].items()}
    if version == "v1":
        assert (state.pop("last_layer.weight_g") == 1).all()
    load_torch_state(head, state)
    out = np.asarray(head(weights.image(92, (3, 12))))
    np.testing.assert_allclose(out[0, :6], expected["out_0"], rtol=2e-5)
    assert np.abs(out).sum() == pytest.approx(expected["out_abs_sum"], rel=1e-5)
