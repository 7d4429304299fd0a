"""nnU-Net's augmentations, compared with batchgeneratorsv2 as nnU-Net configures it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bcss_jax.nnunet import augment_intensity as intensity
from bcss_jax.nnunet import augment_spatial as spatial
from bcss_jax.nnunet.augment import augment, center_crop, draw_changes, zero_outside
from bcss_jax.nnunet.patches import rotation_range

PATCH, CUT = (24, 20), (31, 27)
STEPS = (  # of nnU-Net's training transforms for data that is masked for its normalization
    "spatial",
    "noise",
    "blur",
    "brightness",
    "contrast",
    "resolution",
    "inverted_gamma",
    "gamma",
    "mirror",
    "mask",
    "outside",
)


@functools.cache
def theirs(patch_size=PATCH):
    """Returns nnU-Net's transforms: ({name: transform}, {name: probability for an example})."""
    trainer = pytest.importorskip("nnunetv2.training.nnUNetTrainer.nnUNetTrainer", reason="compares with nnU-Net")
    transforms = trainer.nnUNetTrainer.get_training_transforms(
        patch_size, rotation_range(patch_size), None, (0, 1), False, use_mask_for_norm=[True, False, True]
    ).transforms
    assert len(transforms) == len(STEPS)
    probabilities = {
        name: getattr(each, "apply_probability", 1.0) for name, each in zip(STEPS, transforms, strict=True)
    }
    return {name: getattr(each, "transform", each) for name, each in zip(STEPS, transforms, strict=True)}, probabilities


def example(seed=0, size=CUT):
    """Returns a smooth random image with noise, and blobs of labels -1 to 3."""
    rng = np.random.default_rng(seed)
    coarse = rng.standard_normal((4, 4, 3))
    image = np.kron(coarse, np.ones((-(-size[0] // 4), -(-size[1] // 4), 1)))[: size[0], : size[1]]
    label = np.kron(rng.integers(-1, 4, (8, 8)), np.ones((-(-size[0] // 8), -(-size[1] // 8))))[: size[0], : size[1]]
    return (image + 0.3 * rng.standard_normal(image.shape)).astype(np.float32), label.astype(np.int16)


def to_torch(image):
    torch = pytest.importorskip("torch", reason="compares with nnU-Net, which PyTorch runs")

    return torch.from_numpy(np.moveaxis(np.array(image), -1, 0).copy())


def from_torch(image):
    return np.moveaxis(image.numpy(), 0, -1)


def applied(name, image, **parameters):
    """Applies one of nnU-Net's transforms to the image, with given parameters."""
    return from_torch(theirs()[0][name]._apply_to_image(to_torch(image), **parameters))


def batch(count, size=CUT):
    images, labels = zip(*(example(seed, size) for seed in range(count)), strict=True)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(3), i))(jnp.arange(count))
    return jnp.asarray(images), jnp.asarray(labels), keys


def spatially(image, label, angle, scale, patch_size=PATCH):
    """Applies nnU-Net's spatial transform with an angle and a scale."""
    torch = pytest.importorskip("torch", reason="compares with nnU-Net, which PyTorch runs")

    transform = theirs(patch_size)[0]["spatial"]
    transform.p_rotation, transform.rotation = float(angle != 0), (float(angle), float(angle))
    transform.p_scaling, transform.scaling = float(scale != 1), (float(scale), float(scale))
    result = transform(image=to_torch(image), segmentation=torch.from_numpy(np.array(label))[None])
    return from_torch(result["image"]), result["segmentation"][0].numpy()


@pytest.mark.parametrize("angle, scale", [(0.4, 1), (-2.9, 1), (0, 0.7013), (0, 1.37), (1.1, 1.4), (np.pi / 2, 0.83)])
@pytest.mark.parametrize("cut, patch", [(CUT, PATCH), ((40, 57), (31, 40)), ((161, 161), (137, 137))])
def test_rotation_and_scaling_equal_nnunet(angle, scale, cut, patch):
    image, label = example(1, cut)
    expected, expected_label = spatially(image, label, angle, scale, patch)
    ours = jax.jit(spatial.rotate_and_scale, static_argnums=4)
    found, found_label = ours(image, label, np.float32(angle), np.float32(scale), patch)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert found_label.dtype == label.dtype
    assert np.sum(found_label != expected_label) <= 1e-4 * expected_label.size
    assert (expected_label == -1).any() and (expected_label == 3).any()


@pytest.mark.parametrize("cut, patch", [(CUT, PATCH), ((32, 26), (25, 21)), ((24, 20), (24, 20))])
def test_without_rotation_and_scaling_the_result_is_a_crop(cut, patch):
    image, label = example(2, cut)
    expected, expected_label = spatially(image, label, 0, 1, patch)
    found, found_label = spatial.rotate_and_scale(image, label, 0.0, 1.0, patch)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found_label, expected_label)
    found, found_label = center_crop(image[None], label[None], patch)
    np.testing.assert_array_equal(found[0], expected)
    np.testing.assert_array_equal(found_label[0], np.maximum(expected_label, 0))


def test_equal_shares_go_to_the_nearest_pixel():
    def share(labels, weights):
        return spatial._largest_share(*map(jnp.float32, (labels, weights)), jnp.argmax(jnp.array(weights)))

    assert share((2, 2, 1, 1), (0.1, 0.4, 0.3, 0.2)) == 2
    assert share((2, 2, 1, 1), (0.4, 0.1, 0.45, 0.05)) == 1  # equal shares; the third pixel is the nearest
    assert share((2, 2, 1, 1), (0.4, 0.1001, 0.45, 0.0499)) == 1  # equal for float16
    assert share((2, 2, 1, 1), (0.4, 0.11, 0.45, 0.04)) == 2
    assert share((3, 2, 1, 2), (0.4, 0.3, 0.0, 0.3)) == 2  # the nearest label has lost
    assert share((-1, 2, 1, 0), (0.4, 0.3, 0.0, 0.3)) == -1


@pytest.mark.parametrize("patch", [PATCH, (37, 64)])
def test_blur_equals_nnunet(patch):
    torch = pytest.importorskip("torch", reason="compares with nnU-Net, which PyTorch runs")

    image = example(3, patch)[0]
    for sigma in ([[0.5, 0.0, 0.6], [0.59, 0.0, 1.0]], [[0.92, 0.75, 0.99], [0.58, 0.5, 0.91]]):
        sigma = np.asarray(sigma, np.float32)
        chosen = sigma[0] > 0
        expected = applied("blur", image, apply_to_channel=torch.from_numpy(chosen), sigmas=sigma.T[chosen].tolist())
        np.testing.assert_allclose(jax.jit(intensity.blur)(image, sigma), expected, atol=2e-6)


def test_brightness_and_contrast_equal_nnunet():
    torch = pytest.importorskip("torch", reason="compares with nnU-Net, which PyTorch runs")

    image = example(4)[0] + 2
    factor = np.asarray([0.76, 1.0, 1.24], np.float32)
    given = {"apply_to_channel": torch.arange(3), "multipliers": torch.from_numpy(factor)}
    expected = applied("brightness", image, **given)
    np.testing.assert_allclose(intensity.brightness(image, factor), expected, rtol=1e-6)
    expected = applied("contrast", image, **given)
    np.testing.assert_allclose(intensity.contrast(image, factor), expected, atol=2e-6)
    assert (expected[..., 2] == image[..., 2].max()).sum() > 1  # cut off


@pytest.mark.parametrize("patch", [PATCH, (35, 64), (33, 81)])
def test_low_resolution_equals_nnunet(patch):
    torch = pytest.importorskip("torch", reason="compares with nnU-Net, which PyTorch runs")

    image = example(5, patch)[0]
    ours = jax.jit(intensity.low_resolution)
    for factor in np.linspace(0.5017, 0.9983, 41, dtype=np.float32):
        factors = np.asarray([factor, 1.0, 1.5 - factor], np.float32)
        scales = torch.from_numpy(np.repeat(factors[[0, 2], None], 2, axis=1))
        expected = applied("resolution", image, apply_to_channel=torch.tensor([0, 2]), scales=scales)
        np.testing.assert_allclose(ours(image, factors), expected, atol=2e-5, err_msg=f"{factors}")


@pytest.mark.parametrize("inverted", [False, True])
def test_gamma_equals_nnunet(inverted):
    torch = pytest.importorskip("torch", reason="compares with nnU-Net, which PyTorch runs")

    image = example(6)[0]
    image[..., 1] = 0.25  # nothing to stretch
    factor = np.asarray([0.71, 1.3, 1.49], np.float32)
    expected = applied(
        "inverted_gamma" if inverted else "gamma",
        image,
        apply_to_channel=torch.arange(3),
        retain_stats=torch.ones(3),
        invert_image=torch.full((3,), inverted),
        gamma=torch.from_numpy(factor),
    )
    np.testing.assert_allclose(intensity.gamma(image, factor, inverted), expected, atol=1e-5)


def test_neutral_values_change_nothing():
    image = example(7)[0]
    one, none = jnp.ones(3), jnp.zeros((2, 3))
    for changed in (
        intensity.gaussian_noise(image, jax.random.key(0), 0.0),
        intensity.blur(image, none),
        intensity.brightness(image, one),
        intensity.contrast(image, one),
        intensity.low_resolution(image, one),
        intensity.gamma(image, one),
        intensity.gamma(image, one, inverted=True),
        spatial.mirror(image, image[..., 0], jnp.zeros(2, bool))[0],
        zero_outside(image, image[..., 0], ()),
    ):
        np.testing.assert_array_equal(changed, image)


def test_noise():
    noise = np.asarray(intensity.gaussian_noise(jnp.zeros((120, 110, 3)), jax.random.key(1), 0.07)).reshape(-1, 3)
    np.testing.assert_allclose(noise.std(0), 0.07, rtol=0.03)
    np.testing.assert_allclose(noise.mean(0), 0, atol=0.003)
    assert np.abs(np.corrcoef(noise.T) - np.eye(3)).max() < 0.03  # each channel has its own


def test_masked_channels_are_zero_outside_the_image():
    image, label = example(8)
    changed = np.asarray(zero_outside(image, label, (0, 2)))
    np.testing.assert_array_equal(changed[label < 0], image[label < 0] * [0, 1, 0])
    np.testing.assert_array_equal(changed[label >= 0], image[label >= 0])


def nnunet_chain(image, label, changes, noise):
    """Applies all of nnU-Net's transforms in its order, with drawn parameters."""
    torch = pytest.importorskip("torch", reason="compares with nnU-Net, which PyTorch runs")

    transforms, _ = theirs()
    image, label = spatially(image, label, changes.angle, changes.scale)
    image = image + noise
    chosen = changes.blur[0] > 0
    sigmas = changes.blur.T[chosen].tolist()
    image = applied("blur", image, apply_to_channel=torch.from_numpy(chosen), sigmas=sigmas)
    for name in ("brightness", "contrast", "resolution", "inverted_gamma", "gamma"):
        values = torch.from_numpy(getattr(changes, name).copy())
        channels = torch.where(values != 1)[0]
        values = values[channels]
        image = applied(
            name,
            image,
            apply_to_channel=channels,
            multipliers=values,
            scales=values[:, None].repeat(1, 2),
            gamma=values,
            retain_stats=torch.ones(3),
            invert_image=torch.full((3,), name == "inverted_gamma"),
        )
    axes = np.flatnonzero(changes.mirror).tolist()
    result = {"image": to_torch(image), "segmentation": torch.from_numpy(label.copy())[None]}
    result = transforms["mirror"].apply(result, axes=axes)
    result = transforms["outside"](**transforms["mask"](**result))
    return from_torch(result["image"]), result["segmentation"][0].numpy()


def test_the_whole_chain_equals_nnunet():
    theirs()
    images, labels, keys = batch(48)
    found, found_labels = augment(images, labels, keys, patch_size=PATCH, masked_channels=(0, 2))

    split = jax.vmap(jax.random.split)(keys)
    changes = jax.vmap(lambda key: draw_changes(key, 3, rotation_range(PATCH)))(split[:, 0])
    noises = jax.vmap(intensity.gaussian_noise)(jnp.zeros((48, *PATCH, 3)), split[:, 1], changes.noise)
    happened = {name: np.any(np.asarray(value) % 1, axis=None) for name, value in changes._asdict().items()}
    assert all(happened[name] for name in happened if name != "mirror"), "every transform has its turn"
    differing = 0
    for i in range(48):
        one = jax.tree.map(lambda value, i=i: np.asarray(value[i]), changes)
        expected, expected_label = nnunet_chain(images[i], labels[i], one, np.asarray(noises[i]))
        np.testing.assert_allclose(found[i], expected, atol=1e-4, err_msg=f"example {i}: {one}")
        differing += np.sum(found_labels[i] != expected_label)
    assert differing <= 1e-4 * found_labels.size
    assert found.dtype == jnp.float32 and found_labels.dtype == labels.dtype and found_labels.min() == 0


def test_an_example_depends_only_on_its_key():
    images, labels, keys = batch(8)
    ours = functools.partial(augment, patch_size=PATCH, masked_channels=(1,))
    whole = ours(images, labels, keys)
    order = np.asarray([4, 0, 5])
    for some in (order, order[:1], order[::-1]):
        for expected, found in zip(whole, ours(images[some], labels[some], keys[some]), strict=True):
            np.testing.assert_array_equal(found, expected[some])
    other = ours(images, labels, jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys))
    assert all((one != two).any() for one, two in zip(whole, other, strict=True))

    split = NamedSharding(Mesh(np.array(jax.devices("cpu")[:8]), ("data",)), PartitionSpec("data"))
    compiled = jax.jit(ours, in_shardings=split, out_shardings=split).lower(images, labels, keys).compile()
    text = compiled.as_text()
    assert not any(word in text for word in ("all-gather", "all-reduce", "all-to-all", "collective-permute"))
    for expected, found in zip(whole, compiled(*jax.device_put((images, labels, keys), split)), strict=True):
        np.testing.assert_array_equal(found, expected)


@functools.cache
def draws(count=20000, rotation=(-np.pi, np.pi)):
    keys = jax.random.split(jax.random.key(11), count)
    return jax.tree.map(np.asarray, jax.vmap(lambda key: draw_changes(key, 3, rotation))(keys))


@pytest.mark.parametrize(
    "name, none, probability, per_channel, ranges",
    [
        ("angle", 0, 0.2, 1, [(-np.pi, np.pi)]),
        ("scale", 1, 0.2, 1, [(0.7, 1.4)]),
        ("noise", 0, 0.1, 1, [(0, 0.1)]),
        ("blur", 0, 0.2, 0.5, [(0.5, 1)]),
        ("brightness", 1, 0.15, 1, [(0.75, 1), (1, 1.25)]),
        ("contrast", 1, 0.15, 1, [(0.75, 1), (1, 1.25)]),
        ("resolution", 1, 0.25, 0.5, [(0.5, 1)]),
        ("inverted_gamma", 1, 0.1, 1, [(0.7, 1), (1, 1.5)]),
        ("gamma", 1, 0.3, 1, [(0.7, 1), (1, 1.5)]),
    ],
)
def test_probabilities_and_ranges(name, none, probability, per_channel, ranges):
    values = getattr(draws(), name)
    happened = values != none
    by_example = happened.reshape(len(values), -1)
    given = by_example[:, :3].any(1)
    tolerance = 4 * np.sqrt(0.25 / len(values))
    assert abs(by_example.mean() - probability * per_channel) < tolerance
    if values.ndim > 1:  # the channels of an example change together, except for the random choice per channel
        expected = probability * (1 - (1 - per_channel) ** 3)
        assert abs(given.mean() - expected) < tolerance
    if name == "blur":
        np.testing.assert_array_equal(happened[:, 0], happened[:, 1])
    drawn = values[happened]
    for low, high in ranges:  # uniform in each range, each as likely
        inside = drawn[(drawn >= low) & (drawn <= high)]
        assert abs(len(inside) / len(drawn) - 1 / len(ranges)) < 4 * np.sqrt(0.25 / len(drawn))
        deciles = np.quantile(inside, np.linspace(0, 1, 11))
        np.testing.assert_allclose(deciles, np.linspace(low, high, 11), atol=0.05 * (high - low))
    if name in ("blur", "brightness", "gamma"):  # each channel and axis has its own value
        rows = values.reshape(len(values), -1)[happened.reshape(len(values), -1).all(1)]
        assert np.abs(np.corrcoef(rows.T) - np.eye(rows.shape[1])).max() < 0.2


def test_changes_are_independent_and_mirroring_has_probability_one_half():
    changes = draws()
    mirrors = changes.mirror.astype(float)
    np.testing.assert_allclose(mirrors.mean(0), 0.5, atol=0.015)
    happened = [np.any(np.reshape(value % 1, (len(value), -1)), axis=1) for value in changes[:-1]]
    together = np.corrcoef(np.stack([*happened, *mirrors.T]))
    assert np.abs(together - np.eye(len(together))).max() < 0.035


def test_the_probabilities_equal_nnunet():
    transforms, probabilities = theirs()
    given = {name: probabilities[name] for name in STEPS[1:8]}
    assert given == {
        "noise": 0.1,
        "blur": 0.2,
        "brightness": 0.15,
        "contrast": 0.15,
        "resolution": 0.25,
        "inverted_gamma": 0.1,
        "gamma": 0.3,
    }
    assert transforms["noise"].noise_variance == (0, 0.1) and transforms["noise"].synchronize_channels
    assert transforms["blur"].blur_sigma == (0.5, 1.0) and transforms["blur"].p_per_channel == 0.5
    assert transforms["resolution"].scale == (0.5, 1) and transforms["resolution"].p_per_channel == 0.5
    for name, around in (("brightness", (0.75, 1.25)), ("contrast", (0.75, 1.25)), ("gamma", (0.7, 1.5))):
        transform = transforms[name]
        drawn = getattr(transform, {"brightness": "multiplier_range", "contrast": "contrast_range"}.get(name, "gamma"))
        assert drawn.contrast_range == around and transform.p_per_channel == 1
    assert transforms["mirror"].allowed_axes == (0, 1)
