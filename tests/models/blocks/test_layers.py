"""Layers: implementations that are optimized for speed have the values and gradients of plain ones."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bcss_jax.models.blocks import cpu_convolution, initializers, layers, norms, resampling


def normal(seed, *shape):
    return jnp.asarray(np.random.RandomState(seed).standard_normal(shape), jnp.float32)


@pytest.mark.parametrize(
    "n, h, w, inputs, outputs",
    [
        (1, 3, 3, 70, 2),  # one band, three shifts of each
        (2, 7, 5, 3, 4),  # one band, nine shifts of the input
        (3, 41, 40, 3, 5),  # loop over bands of 21 rows, one row of padding
        (3, 41, 40, 40, 48),  # the same with three shifts of each
        (1, 3, 2000, 4, 4),  # bands of one row
    ],
)
def test_kernel_gradient_on_cpu_equals_that_of_the_convolution(n, h, w, inputs, outputs):
    x, dy = normal(0, n, h, w, inputs), normal(1, n, h, w, outputs)
    kernel = normal(2, 3, 3, inputs, outputs)
    y, pullback = jax.vjp(cpu_convolution.plain_conv, x, kernel)
    fast_y, fast_pullback = jax.vjp(cpu_convolution.conv3x3, x, kernel)
    np.testing.assert_array_equal(fast_y, y)
    for fast, plain in zip(fast_pullback(dy), pullback(dy), strict=True):
        assert fast.dtype == plain.dtype
        np.testing.assert_allclose(fast, plain, atol=1e-4 * float(plain.std()))


def test_kernel_gradient_of_bfloat16_maps():
    x, dy = normal(0, 2, 9, 9, 8).astype(jnp.bfloat16), normal(1, 2, 9, 9, 8).astype(jnp.bfloat16)
    kernel = normal(2, 3, 3, 8, 8).astype(jnp.bfloat16)
    (plain,) = jax.vjp(lambda k: cpu_convolution.plain_conv(x.astype(jnp.float32), k), kernel.astype(jnp.float32))[1](
        dy.astype(jnp.float32)
    )
    fast = jax.vjp(lambda k: cpu_convolution.conv3x3(x, k), kernel)[1](dy)[0]
    assert fast.dtype == jnp.bfloat16
    np.testing.assert_allclose(fast.astype(jnp.float32), plain, atol=0.02 * float(plain.std()), rtol=0.01)


def test_max_pool_equals_reduce_window_and_the_first_of_ties_gets_the_gradient():
    x = normal(0, 2, 7, 8, 3)
    flax_pool = nnx.max_pool(x, (2, 2), strides=(2, 2))
    np.testing.assert_array_equal(resampling.max_pool_2x2(x), flax_pool)

    def gradient(pool, x):
        return jax.grad(lambda x: (pool(x) * normal(1, 2, 3, 4, 3)).sum())(x)

    np.testing.assert_allclose(
        gradient(resampling.max_pool_2x2, x), gradient(lambda x: nnx.max_pool(x, (2, 2), strides=(2, 2)), x)
    )
    tied = jax.grad(lambda x: resampling.max_pool_2x2(x).sum())(jnp.zeros((1, 2, 2, 1)))
    np.testing.assert_array_equal(tied[0, :, :, 0], [[1, 0], [0, 0]])


def test_transposed_convolution_equals_flax():
    layer = layers.ConvTranspose(6, 4, dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = normal(0, 2, 5, 3, 6)
    expected = jax.lax.conv_transpose(
        x, layer.kernel[...].swapaxes(2, 3), (2, 2), "VALID", transpose_kernel=True, precision="highest"
    )
    np.testing.assert_allclose(layer(x), expected + layer.bias[...], atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_bilinear_upsampling_keeps_the_corners_and_straight_lines(size):
    x = jnp.arange(size, dtype=jnp.float32)[None, :, None, None] * jnp.ones((1, size, 3, 1))
    y = resampling.upsample_bilinear_2x(x)
    np.testing.assert_allclose(y[0, :, 0, 0], np.linspace(0, size - 1, 2 * size), atol=1e-6)
    assert y.shape == (1, 2 * size, 6, 1)


def test_padding_adds_the_smaller_half_before_the_map():
    y = resampling.pad_to(jnp.ones((1, 2, 2, 1)), (1, 5, 3, 9))[0, :, :, 0]
    np.testing.assert_array_equal(y, [[0, 0, 0], [1, 1, 0], [1, 1, 0], [0, 0, 0], [0, 0, 0]])


def test_batch_norm_statistics_are_float32_and_the_running_variance_unbiased():
    layer = norms.BatchNorm(3, relu=False)
    x = 100 + normal(0, 2, 3, 4, 3).astype(jnp.bfloat16) * 4
    y = layer(x)
    values = np.asarray(x, np.float64).reshape(-1, 3)
    assert y.dtype == jnp.bfloat16 and layer.mean.dtype == layer.var.dtype == jnp.float32
    np.testing.assert_allclose(layer.mean[...], 0.1 * values.mean(0), rtol=1e-5)
    np.testing.assert_allclose(layer.var[...], 0.9 + 0.1 * values.var(0, ddof=1), rtol=1e-3)
    np.testing.assert_allclose(np.asarray(y, np.float64).std((0, 1, 2)), 1, atol=0.02)
    before = np.asarray(layer.mean[...])
    layer.eval()
    layer(x)
    np.testing.assert_array_equal(layer.mean[...], before)


@pytest.mark.parametrize("mean", (10, 100, 1000))
def test_batch_norm_of_maps_far_from_zero(mean):
    x = mean + normal(0, 4, 16, 16, 5)
    values = np.asarray(x, np.float64)
    expected = (values - values.mean((0, 1, 2))) / np.sqrt(values.var((0, 1, 2)) + 1e-5)
    np.testing.assert_allclose(norms.BatchNorm(5, relu=False)(x), expected, atol=2e-6 * mean)


def plainly(x, scale, bias, shape, axes):
    """Normalization as defined in the papers, for automatic differentiation."""
    parts = x.reshape(shape)
    parts = (parts - parts.mean(axes, keepdims=True)) / jnp.sqrt(parts.var(axes, keepdims=True) + 1e-5)
    return parts.reshape(x.shape) * scale + bias


@pytest.mark.parametrize("negative_slope", [1.0, 0.0, 0.01])
@pytest.mark.parametrize("groups", [6, 2, 1])
def test_the_gradient_of_group_norm_matches_its_definition(groups, negative_slope):
    x, dy = 3 + normal(0, 2, 5, 4, 6), normal(1, 2, 5, 4, 6)
    scale, bias = 1 + 0.3 * normal(2, 6), normal(3, 6)
    shape, axes = (2, 20, groups, 6 // groups), (1, 3)

    def ours(x, scale, bias):
        layer = norms.GroupNorm(6, groups, negative_slope=negative_slope)
        layer.scale, layer.bias = nnx.Param(scale), nnx.Param(bias)
        return layer(x)

    def theirs(x, scale, bias):
        y = plainly(x, scale, bias, shape, axes)
        return jnp.where(y > 0, y, negative_slope * y)

    for a, b in zip(jax.vjp(ours, x, scale, bias)[1](dy), jax.vjp(theirs, x, scale, bias)[1](dy), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_the_gradient_of_layer_norm_matches_its_definition():
    x, dy = 3 + normal(0, 2, 5, 6), normal(1, 2, 5, 6)
    scale, bias = 1 + 0.3 * normal(2, 6), normal(3, 6)

    def layer_norm(x, scale, bias):
        layer = norms.LayerNorm(6, eps=1e-5)
        layer.scale[...], layer.bias[...] = scale, bias
        return layer(x)

    def definition(x, scale, bias):
        mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) / jnp.sqrt(var + 1e-5) * scale + bias

    y, pullback = jax.vjp(layer_norm, x, scale, bias)
    expected, expected_pullback = jax.vjp(definition, x, scale, bias)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    for actual, wanted in zip(pullback(dy), expected_pullback(dy), strict=True):
        np.testing.assert_allclose(actual, wanted, atol=1e-5)
    half = x.astype(jnp.bfloat16)
    y, pullback = jax.vjp(layer_norm, half, scale, bias)
    assert [y.dtype, *(g.dtype for g in pullback(y))] == [jnp.bfloat16, jnp.bfloat16, jnp.float32, jnp.float32]


def test_the_gradient_of_batch_norms_that_share_statistics_matches_their_definition():
    x, more = 2 + normal(0, 4, 5, 6, 3), normal(1, 4, 5, 6, 2)
    cotangents = normal(2, 4, 5, 6, 3), normal(3, 4, 5, 6, 5)

    def ours(x, more):
        measured = norms.with_statistics(x)
        return norms.BatchNorm(3, relu=True)(measured), norms.BatchNorm(5, relu=False)(measured, more)

    def theirs(x, more):
        both = jnp.concatenate([x, more], axis=-1)
        y, z = (plainly(m, 1.0, 0.0, m.shape, (0, 1, 2)) for m in (x, both))
        return jax.nn.relu(y), z

    for a, b in zip(jax.vjp(ours, x, more)[1](cotangents), jax.vjp(theirs, x, more)[1](cotangents), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_initial_values_are_the_same_when_they_are_traced():
    shape = (3, 3, 90, 100)  # more than one block, the last one not full
    drawn = initializers.uniform(nnx.Rngs(3), shape, 0.5)[...]
    np.testing.assert_array_equal(nnx.jit(lambda: initializers.uniform(nnx.Rngs(3), shape, 0.5))()[...], drawn)
    assert len(np.unique(drawn)) > 0.99 * drawn.size
    huge = nnx.eval_shape(lambda: initializers.normal(nnx.Rngs(3), (3, 3, 10**7, 10**7), 1.0))
    assert huge.shape == (3, 3, 10**7, 10**7)  # no time and no memory


@pytest.mark.parametrize("stride", [1, 2])
def test_the_form_of_a_convolution_depends_on_the_platform_that_it_is_lowered_for(stride):
    conv = layers.Conv(4, 4, 3, stride=stride, use_bias=False, dtype=jnp.float32, rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(conv)

    def loss(params, x):
        return jnp.square(nnx.merge(graphdef, params)(x)).sum()

    traced = jax.jit(jax.grad(loss, argnums=(0, 1))).trace(params, jnp.zeros((2, 96, 96, 4)))
    text = {platform: traced.lower(lowering_platforms=(platform,)).as_text() for platform in ("cpu", "cuda", "tpu")}
    # Forward, and the gradients of input and kernel.
    assert {p: len(re.findall(r"stablehlo\.convolution", text[p])) for p in ("cuda", "tpu")} == {"cuda": 3, "tpu": 3}
    assert "dot_general" not in text["cuda"] and "dot_general" in text["cpu"]


@pytest.mark.parametrize("outputs", [2, 3])
def test_products_of_pixels_are_right_for_every_number_of_pixels(outputs):
    """jax 0.10.2 computes wrong sums on CPUs if a small matrix comes first (jax-ml/jax, issue 39103)."""
    rng = np.random.default_rng(0)
    kernel, x = rng.standard_normal((3, outputs)).astype(np.float32), rng.standard_normal((32_769, 3), np.float32)
    summed = jax.jit(lambda x: layers.dense(x, kernel, None, jnp.float32).sum(-1))(x)
    np.testing.assert_allclose(summed, (x.astype(np.float64) @ kernel).sum(-1), atol=1e-5)
