"""Sliding windows: comparison with nnU-Net's predictor, and simple functions with known results."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import nnunet_small as small

from bcss_jax.errors import DataError, NumericalError
from bcss_jax.models import nnunet
from bcss_jax.models.apply import split_model
from bcss_jax.nnunet import predict, windows
from bcss_jax.training import sharding

TINY = {"num_classes": 3, "n_stages": 2, "features_per_stage": (4, 6), "strides": (1, 2)}


def image_of(height, width, channels=3, seed=0):
    return np.random.RandomState(seed).standard_normal((height, width, channels)).astype(np.float32)


def pixelwise(params, model_state, images):
    """A pixelwise function: for any windows, the result is that of the whole image."""
    return images @ params["w"] + model_state["b"]


def by_place(params, model_state, images):
    """Returns the image plus numbers that depend on the position in the window."""
    return images + params["place"]


WEIGHTS = ({"w": image_of(1, 3, 4)[0]}, {"b": np.float32([0, 1, 2, 3])})


@pytest.mark.parametrize("mirror", [True, False, (0,), (1,)])
@pytest.mark.parametrize("shape, batch, devices", [((150, 170), 4, 1), ((9, 100), 1, 8), ((16, 16), 20, 3)])
def test_a_pixelwise_function_is_not_changed_by_windows(shape, batch, devices, mirror):
    image, mesh = image_of(*shape), sharding.make_mesh(jax.devices()[:devices])
    logits = predict.predict_logits(pixelwise, WEIGHTS, image, (16, 24), mirror=mirror, batch=batch, mesh=mesh)
    assert logits.dtype == np.float32 and logits.shape == (*shape, 4)
    np.testing.assert_allclose(logits, image @ WEIGHTS[0]["w"] + WEIGHTS[1]["b"], atol=1e-5)


@pytest.mark.parametrize("mirror, axes", [(True, [(), (0,), (1,), (0, 1)]), (False, [()]), ((1,), [(), (1,)])])
def test_weights_and_mirrorings_by_hand(mirror, axes):
    image, place = image_of(21, 16, 1), image_of(8, 12, 1, seed=1)
    logits = predict.predict_logits(by_place, ({"place": place}, {}), image, (8, 12), mirror=mirror, batch=3)
    seen = np.mean([np.flip(place, axis) for axis in axes], axis=0)  # the image is mirrored there and back
    total, count = np.zeros((21, 16)), np.zeros((21, 16))
    for y in (0, 3, 6, 10, 13):
        for x in (0, 4):
            weight = windows.window_weights((8, 12)).astype(float)
            total[y : y + 8, x : x + 12] += weight * seen[..., 0]
            count[y : y + 8, x : x + 12] += weight
    np.testing.assert_allclose(logits, image + (total / count)[..., None], atol=1e-5)


def test_folds_share_one_compiled_function():
    image = image_of(20, 20)
    one, two, other = (
        nnunet.PlainConvUNet(**TINY | changes) for changes in ({}, {"seed": 1}, {"features_per_stage": (4, 8)})
    )
    assert predict.inference_function(one) == predict.inference_function(two) != predict.inference_function(other)
    before = predict.make_predictor([one], (16, 16))(image)
    compiled = predict._mirrored._cache_size()
    assert not np.array_equal(predict.make_predictor([two], (16, 16))(image), before)
    assert predict._mirrored._cache_size() == compiled
    predict.make_predictor([other], (16, 16))(image)
    assert predict._mirrored._cache_size() == compiled + 1


def test_step_sets_the_distance_between_windows():
    calls = []

    def counted(params, model_state, images):
        jax.debug.callback(lambda n: calls.append(n), images.shape[0])
        return images

    predict.predict_logits(counted, ({}, {}), image_of(16, 64), (16, 16), step=1.0, mirror=False, batch=1,
                           mesh=sharding.make_mesh(jax.devices()[:1]))  # fmt: skip
    jax.effects_barrier()
    assert len(calls) == 4


def test_images_of_all_sizes_are_compiled_once():
    traced = []

    def run(params, model_state, images):
        traced.append(images.shape)
        return images

    for shape in ((16, 16), (5, 40), (33, 61), (100, 16)):
        predict.predict_logits(run, ({}, {}), image_of(*shape), (16, 16), batch=2)
    assert traced == [(8 * 4, 16, 16, 3)]  # two rounded up to the eight devices, four mirrorings of each


def test_a_model_on_one_device_and_on_eight():
    model, image = nnunet.PlainConvUNet(**TINY), image_of(40, 30)
    run, weights = predict.inference_function(model), split_model(model)[1:]
    one, eight = (
        predict.predict_logits(run, weights, image, (16, 16), mesh=sharding.make_mesh(jax.devices()[:n]))
        for n in (1, 8)
    )
    np.testing.assert_allclose(one, eight, atol=1e-4)
    np.testing.assert_array_equal(run(*weights, image[None, :16, :16]), model(image[None, :16, :16]))


def test_a_predictor_of_several_models_gives_their_mean():
    models, image = [nnunet.PlainConvUNet(**TINY, seed=seed) for seed in range(2)], image_of(20, 20)
    each = [predict.make_predictor([model], (16, 16))(image) for model in models]
    np.testing.assert_allclose(predict.make_predictor(models, (16, 16))(image), np.mean(each, axis=0), atol=1e-5)
    with pytest.raises(ValueError, match="at least one"):
        predict.make_predictor([], (16, 16))


@pytest.mark.parametrize("size", [(150, 170), (40, 100)], ids=["larger", "smaller than the patch"])
def test_logits_equal_nnunet(tmp_path, size):
    pytest.importorskip("nnunetv2", reason="nnunetv2 is not installed")
    from bcss_jax.nnunet import result_folder

    folder = small.nnunets_folder(tmp_path)
    image = small.preprocessed(small.case()[0])[: size[0], : size[1]]
    with jax.default_matmul_precision("highest"):
        logits = predict.make_predictor([result_folder.read_result_folder(folder).model(0)], small.PATCH)(image)

    exact = small.reference_logits(folder, image, single=True)
    assert np.abs(logits - exact).max() < 1e-4 * exact.std()

    half = small.reference_logits(folder, image)
    assert (logits.argmax(-1) == half.argmax(-1)).mean() >= 0.9999
    error = np.abs(logits - half) / half.std()
    assert np.sqrt((error**2).mean()) < 2e-3
    # At the image's corners the weights are so small that nnU-Net's half precision has four bits left of them.
    assert error[4:-4, 4:-4].max() < 1e-2


def test_labels_are_put_back_where_the_crop_was():
    scores = np.zeros((2, 3, 4), np.float32)
    scores[0, 1, 3] = scores[1, :, 2] = 1
    properties = {"shape_before_cropping": (4, 5), "bbox_used_for_cropping": ((1, 3), (2, 5))}
    labels = predict.predicted_labels(scores, properties)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, [[0] * 5, [0, 0, 0, 3, 0], [0, 0, 2, 2, 2], [0] * 5])
    np.testing.assert_array_equal(predict.predicted_labels(scores), [[0, 3, 0], [2, 2, 2]])


@pytest.mark.parametrize(
    "image, said",
    [(image_of(4, 4)[0], "height, width, channels"), (image_of(4, 4) * np.float32("nan"), "not finite"),
     (np.zeros((0, 4, 3)), "height, width, channels")],
)  # fmt: skip
def test_arrays_that_are_not_images_are_refused(image, said):
    with pytest.raises(DataError, match=said):
        predict.predict_logits(pixelwise, WEIGHTS, image, (16, 16))


@pytest.mark.parametrize("value", (np.nan, np.inf, -np.inf))
def test_output_that_is_not_finite_is_never_a_label(value):
    image = image_of(16, 64)
    image[3, 60] = -1e6

    def run(params, model_state, images):
        return jnp.where(images < -1e5, value, images)

    with pytest.raises(NumericalError, match="window at x=48, y=0: the output of the network is not finite"):
        predict.predict_logits(run, ({}, {}), image, (16, 16))


def test_invalid_axes_are_refused():
    with pytest.raises(ValueError, match="axes among 0 and 1"):
        predict.predict_logits(pixelwise, WEIGHTS, image_of(4, 4), (16, 16), mirror=(2,))


def test_images_reach_the_model_unchanged():
    model = nnunet.PlainConvUNet(**TINY)
    images = jnp.full((1, 16, 16, 3), 300.5).at[:, ::3].set(-2)
    np.testing.assert_array_equal(predict.inference_function(model)(*split_model(model)[1:], images), model(images))
