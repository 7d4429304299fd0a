"""Losses equal those of torch, MONAI and nnU-Net; ignored pixels do not affect them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.loss_cases import CASES, case, report_case

from bcss_jax import losses
from bcss_jax.losses import Objective


def check(function, logits, expected):
    value, grad = jax.value_and_grad(function)(logits)
    np.testing.assert_allclose(value, expected["value"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(jnp.abs(grad).sum(), expected["grad_abs_sum"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(grad[0, 0, 0, 0], expected["grad_0"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_cross_entropy_equals_torch(shared, name):
    expected, logits, labels, ignore = case(shared, name)
    check(lambda x: losses.cross_entropy(x, labels, Objective(3, ignore)), logits, expected["torch_ce"])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("batch", (True, False))
def test_dice_without_background_equals_monai(shared, name, batch):
    expected, logits, labels, ignore = case(shared, name)
    key = f"monai_dice_bg0_batch{int(batch)}"
    check(lambda x: losses.soft_dice(x, labels, Objective(3, ignore, (1, 2), dice_batch=batch)), logits, expected[key])
    check(lambda x: losses.soft_dice(x, labels, Objective(3, ignore, dice_batch=batch)), logits, expected[key])


@pytest.mark.parametrize("name", ("plain", "ignore0", "ignore255"))
def test_dice_with_background_equals_monai(shared, name):
    expected, logits, labels, ignore = case(shared, name)
    check(
        lambda x: losses.soft_dice(x, labels, Objective(3, ignore, (0, 1, 2))),
        logits,
        expected["monai_dice_bg1_batch1"],
    )


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("batch", (True, False))
def test_sum_equals_nnunet_plus_one(shared, name, batch):
    expected, logits, labels, ignore = case(shared, name)
    expected = dict(expected[f"nnunet_dc_ce_batch{int(batch)}"])
    expected["value"] += 1.0
    check(lambda x: losses.ce_dice(x, labels, Objective(3, ignore, dice_batch=batch)), logits, expected)


@pytest.mark.parametrize("name", ("seed1", "seed2"))
def test_losses_equal_those_of_the_report(shared, name):
    expected, logits, labels = report_case(shared, name)
    objective = Objective(3, 255, (0, 1, 2), smooth=1e-6)
    np.testing.assert_allclose(losses.cross_entropy(logits, labels, objective), expected["ce"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(losses.soft_dice(logits, labels, objective), expected["dice_loss"], rtol=0, atol=1e-5)
    value, gradient = jax.value_and_grad(losses.ce_dice)(logits, labels, objective)
    np.testing.assert_allclose(value, expected["total"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(jnp.abs(gradient).sum(), expected["grad_abs_sum"], rtol=0, atol=1e-5)


def random_batch(seed=0, n=3, h=7, w=5, c=3, ignore=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(1, c, (n, h, w))
    labels[rng.random(labels.shape) < 0.4] = ignore
    return rng.normal(0, 2, (n, h, w, c)).astype(np.float32), labels


@pytest.mark.parametrize("batch", (True, False))
@pytest.mark.parametrize("suppress", (True, False))
@pytest.mark.parametrize("value_there", (1e30, np.nan, -np.inf))
def test_logits_under_ignored_pixels_change_no_bit(batch, suppress, value_there):
    logits, labels = random_batch()
    objective = Objective(3, ignore_index=0, dice_batch=batch, suppress_ignored_logit=suppress)
    function = jax.jit(jax.value_and_grad(lambda x: losses.ce_dice(x, labels, objective)))
    value, grad = function(logits)
    value2, grad2 = function(np.where((labels == 0)[..., None], np.float32(value_there), logits))
    assert np.isfinite(value) and np.abs(grad).sum() > 0
    assert np.asarray(value).tobytes() == np.asarray(value2).tobytes()
    assert np.asarray(grad).tobytes() == np.asarray(grad2).tobytes()
    assert not np.asarray(grad)[labels == 0].any()


def test_image_content_under_ignored_pixels_changes_no_bit_of_a_pixelwise_networks_gradients():
    # The network has no receptive field. One that has sees ignored pixels as the surroundings of others.
    images, labels = random_batch(c=3)
    weights = np.random.default_rng(1).normal(size=(3, 3)).astype(np.float32)
    function = jax.jit(jax.value_and_grad(lambda w, x: losses.ce_dice(x @ w, labels, Objective(3, ignore_index=0))))
    value, grad = function(weights, images)
    value2, grad2 = function(weights, np.where((labels == 0)[..., None], np.float32(7.5), images))
    assert np.asarray(value).tobytes() == np.asarray(value2).tobytes()
    assert np.asarray(grad).tobytes() == np.asarray(grad2).tobytes()


@pytest.mark.parametrize("batch", (True, False))
@pytest.mark.parametrize("smooth", (1e-5, 0.0))
@pytest.mark.parametrize("loss", (losses.cross_entropy, losses.soft_dice, losses.ce_dice))
def test_all_ignored_gives_loss_and_gradient_zero(loss, batch, smooth):
    logits, labels = random_batch()
    ignored = np.zeros_like(labels)
    objective = Objective(3, ignore_index=0, dice_batch=batch, smooth=smooth)
    value, grad = jax.value_and_grad(lambda x: loss(x, ignored, objective))(logits)
    assert float(value) == 0.0
    assert not np.asarray(grad).any()


def test_an_ignored_image_does_not_count_in_the_dice_per_image():
    logits, labels = random_batch()
    more = np.concatenate([logits, logits[:1]]), np.concatenate([labels, np.zeros_like(labels[:1])])
    objective = Objective(3, ignore_index=0, dice_batch=False)
    alone = losses.soft_dice(logits, labels, objective)
    np.testing.assert_allclose(losses.soft_dice(*more, objective), alone, rtol=1e-6)


def test_suppressed_logit_equals_a_softmax_without_it():
    logits, labels = random_batch()
    objective = Objective(3, ignore_index=0, classes=(1, 2), suppress_ignored_logit=True)
    value, grad = jax.value_and_grad(lambda x: losses.ce_dice(x, labels, objective))(logits)
    shifted = np.where(labels == 0, 255, labels - 1)
    expected = losses.ce_dice(logits[..., 1:], shifted, Objective(2, ignore_index=255, classes=(0, 1)))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert not np.asarray(grad)[..., 0].any()


@pytest.mark.parametrize("batch", (True, False))
def test_sums_of_two_halves_give_the_loss_of_the_batch(batch):
    logits, labels = random_batch(n=4)
    objective = Objective(3, ignore_index=0, dice_batch=batch)
    halves = [losses.loss_sums(logits[i : i + 2], labels[i : i + 2], objective) for i in (0, 2)]
    total = jax.tree.map(jnp.add, *halves)
    expected = losses.ce_dice(logits, labels, objective)
    np.testing.assert_allclose(losses.loss_from_sums(total, objective), expected, rtol=1e-6)


def test_shapes_and_classes_that_do_not_fit_raise():
    logits, labels = random_batch()
    with pytest.raises(ValueError, match="same pixels"):
        losses.ce_dice(logits, labels[:, :-1], Objective(3))
    with pytest.raises(ValueError, match="must name some of the 3 logits"):
        Objective(3, classes=(1, 3))
    with pytest.raises(ValueError, match="do not have the 4 classes"):
        losses.soft_dice(logits, labels, Objective(4))


def test_deep_supervision_weights_equal_nnunet():
    six = [0.53333, 0.26667, 0.13333, 0.06667, 0]  # a network with six stages has five heads
    np.testing.assert_allclose(losses.deep_supervision_weights(5), six, atol=1e-5)
    eight = [0.50794, 0.25397, 0.12698, 0.06349, 0.03175, 0.01587, 0]
    np.testing.assert_allclose(losses.deep_supervision_weights(7), eight, atol=1e-5)
    assert losses.deep_supervision_weights(1) == (1.0,)


def test_deep_supervision_sums_the_weighted_losses_of_all_heads():
    labels = np.random.RandomState(0).randint(0, 3, (2, 8, 12))
    heads = [np.random.RandomState(i).standard_normal((2, 8 >> i, 12 >> i, 3)).astype(np.float32) for i in range(3)]
    weights = losses.deep_supervision_weights(3)
    objective = Objective(3, ignore_index=0, deep_supervision=weights)
    sums = losses.deep_supervision_sums(heads, labels, objective)
    smaller = [labels, labels[:, 1::2, 1::2]]  # "nearest-exact": the pixel that holds the center, rounded up
    expected = sum(
        weight * losses.ce_dice(head, truth, objective)
        for weight, head, truth in zip(weights, heads, smaller, strict=False)
    )
    assert len(sums) == 2  # the last head has no weight
    np.testing.assert_allclose(losses.deep_supervision_loss(sums, objective), expected, rtol=1e-6)


@pytest.mark.parametrize("size", ((8, 12), (7, 9), (5, 5), (3, 2)))
def test_labels_shrink_as_nearest_exact(size):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    labels = np.random.RandomState(0).randint(0, 9, (2, 12, 21))
    expected = torch.nn.functional.interpolate(torch.from_numpy(labels)[:, None].float(), size, mode="nearest-exact")
    np.testing.assert_array_equal(losses._resized(labels, size), expected[:, 0].numpy())
