"""Layers that the networks share: convolution, upsampling, pooling, normalisation. Maps are (N, H, W, C)."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.typing import Dtype
from jax import lax

from bcss_jax.models.torch_layout import CONV, CONV_TRANSPOSE, SAME, TorchEntries

_BLOCK = 2**16


@jax.jit
def _uniform_block(key: jax.Array, index: int) -> jax.Array:
    return jax.random.uniform(jax.random.fold_in(key, index), (_BLOCK,), jnp.float32, -1.0, 1.0)


def uniform_fan_in(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int) -> nnx.Param:
    """Float32 parameter uniform in +-1/sqrt(fan_in): PyTorch's default, `kaiming_uniform_(a=sqrt(5))`."""
    # Drawn in blocks of one size: a network has dozens of shapes, and XLA would compile a generator for each of them.
    key, size = rngs.params(), math.prod(shape)
    blocks = [_uniform_block(key, index) for index in range(-(-size // _BLOCK))]
    if not isinstance(key, jax.core.Tracer):
        blocks = jax.device_get(blocks)  # NumPy joins them without compiling either
    xp = jnp if isinstance(key, jax.core.Tracer) else np
    return nnx.Param(jnp.asarray(xp.concatenate(blocks)[:size].reshape(shape) * np.float32(fan_in**-0.5)))


class Conv(nnx.Module):
    """Convolution of stride one whose result has the size of its input (odd kernels, zero padding)."""

    def __init__(self, inputs: int, outputs: int, size: int, *, use_bias: bool, dtype: Dtype, rngs: nnx.Rngs):
        """Channels in and out, side of the kernel, whether there is a bias, type of the arithmetic, random keys."""
        fan_in = inputs * size * size
        self.kernel = uniform_fan_in(rngs, (size, size, inputs, outputs), fan_in)
        self.bias = uniform_fan_in(rngs, (outputs,), fan_in) if use_bias else None
        self.dtype = dtype

    def __call__(self, *maps: jax.Array) -> jax.Array:
        """Maps (N, H, W, C1), (N, H, W, C2), ..., read as if concatenated over channels -> (N, H, W, outputs)."""
        kernel = self.kernel[...].astype(self.dtype)
        x = jnp.concatenate([m.astype(self.dtype) for m in maps], axis=-1)
        if kernel.shape[0] == 1:
            y = (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:3], -1)  # quicker gradients on CPUs
        elif kernel.shape[0] == 3 and jax.default_backend() == "cpu":
            y = _conv3x3_for_cpu(x, kernel)
        else:
            y = plain_conv(x, kernel)
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)

    def torch_entries(self) -> TorchEntries:
        """Names as in `torch.nn.Conv2d`."""
        entries = {"weight": (self.kernel, CONV)}
        return entries if self.bias is None else entries | {"bias": (self.bias, SAME)}


def plain_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """(N, H, W, I) and (kh, kw, I, O), odd kh and kw -> (N, H, W, O); zeros around the map."""
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


# On CPUs XLA (jaxlib 0.10 to 0.12) runs the convolution and its input gradient well, but the kernel's gradient, a
# convolution with a window as large as the map, at half of that speed down to a fifth; inside a loop 30 times slower still.
@jax.custom_vjp
def _conv3x3_for_cpu(x, kernel):
    return plain_conv(x, kernel)


def _conv3x3_forward(x, kernel):
    return plain_conv(x, kernel), (x, kernel)


def _conv3x3_backward(saved, dy):
    x, kernel = saved
    (dx,) = jax.linear_transpose(lambda x: plain_conv(x, kernel), x)(dy)
    return dx, conv3x3_kernel_gradient(x, dy).astype(kernel.dtype)


_conv3x3_for_cpu.defvjp(_conv3x3_forward, _conv3x3_backward)


def conv3x3_kernel_gradient(x: jax.Array, dy: jax.Array) -> jax.Array:
    """Gradient of a 3x3 `plain_conv` with respect to its kernel, as products of matrices over bands of rows.

    Args:
      x: the convolution's input (N, H, W, I).
      dy: the cotangent of its output (N, H, W, O).

    Returns:
      float32 (3, 3, I, O).
    """
    n, h, w, inputs = x.shape
    outputs = dy.shape[-1]
    # A band of about 900 pixels, shifted copies included, stays in the cache; small maps are one band.
    rows_at_most = h if n * h * w <= 4096 else max(1, min(h, 896 // w))
    bands = -(-h // rows_at_most)
    rows = -(-h // bands)
    below = bands * rows - h
    # dK[a, b] = sum over i, j of x[i + a - 1, j + b - 1] dy[i, j]. With few channels all nine shifts are made of x;
    # with more, three of x along the columns and three of dy along the rows: fewer copies and a squarer product.
    nine_of_x = inputs + outputs <= 64
    x = jnp.pad(x, ((0, 0), (1, 1 + below) if nine_of_x else (0, below), (1, 1), (0, 0)))
    dy = jnp.pad(dy, ((0, 0), (0, below) if nine_of_x else (1, 1 + below), (0, 0), (0, 0)))
    down_x, down_dy = (range(3), [0]) if nine_of_x else ([0], (2, 1, 0))

    def product(images, top, x, dy):
        """Sum over a band of rows from `top` of `images` images."""

        def shifted(array, image, down, along):
            height = rows + max(down)
            band = lax.dynamic_slice(array, (image, top, 0, 0), (images, height, *array.shape[2:]))
            parts = [band[:, a : a + rows, b : b + w] for a in down for b in along]
            return jnp.concatenate(parts, axis=-1).reshape(images * rows * w, -1)

        return lambda image: lax.dot_general(
            shifted(x, image, down_x, range(3)),
            shifted(dy, image, down_dy, [0]),
            (((0,), (0,)), ((), ())),
            preferred_element_type=jnp.float32,
        )

    if n * h * w <= 4096:
        total = product(n, 0, x, dy)(0)
    else:
        shape = (len(down_x) * 3 * inputs, len(down_dy) * outputs)
        # Cutting single images out of a batch that is split over devices would gather it on each of them.
        at_once = 1 if jax.device_count() == 1 else n
        total = lax.fori_loop(
            0,
            n // at_once * bands,
            lambda i, total: total + product(at_once, i % bands * rows, x, dy)(i // bands * at_once),
            jnp.zeros(shape, jnp.float32),
        )
    if nine_of_x:
        return total.reshape(3, 3, inputs, outputs)
    return total.reshape(3, inputs, 3, outputs).transpose(2, 0, 1, 3)


class ConvTranspose2x2(nnx.Module):
    """Learned upsampling by two: PyTorch's `ConvTranspose2d(inputs, outputs, 2, 2)`."""

    def __init__(self, inputs: int, outputs: int, *, dtype: Dtype, rngs: nnx.Rngs):
        """Channels in and out, type of the arithmetic, random keys."""
        fan_in = outputs * 4  # PyTorch takes the second axis of (I, O, kh, kw) for the inputs
        self.kernel = uniform_fan_in(rngs, (2, 2, inputs, outputs), fan_in)
        self.bias = uniform_fan_in(rngs, (outputs,), fan_in)
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, H, W, inputs) -> (N, 2H, 2W, outputs)."""
        n, h, w, inputs = x.shape
        kernel = self.kernel[...].astype(self.dtype).transpose(2, 0, 1, 3)
        # Stride and kernel agree, so no two terms meet: one product of matrices gives all (a, b, o), and its gradients
        # are such products too. XLA's transposed convolution takes over ten times as long for its gradients on CPUs.
        y = x.astype(self.dtype).reshape(-1, inputs) @ kernel.reshape(inputs, -1)
        y = y.reshape(n * h, w, 2, -1) + jnp.tile(self.bias[...].astype(self.dtype), 2)
        return y.swapaxes(1, 2).reshape(n, 2 * h, 2 * w, -1)

    def torch_entries(self) -> TorchEntries:
        """Names as in `torch.nn.ConvTranspose2d`."""
        return {"weight": (self.kernel, CONV_TRANSPOSE), "bias": (self.bias, SAME)}


class BatchNorm(nnx.Module):
    """Batch normalisation over N, H and W, then ReLU if asked for.

    As PyTorch's `BatchNorm2d` (eps 1e-5, momentum 0.1): the batch is normalised by its biased variance, the running
    variance gathers the unbiased one. Statistics are float32 whatever the type of the maps. Under jit over a sharded
    batch they are those of the whole batch.
    """

    def __init__(self, features: int, *, relu: bool):
        """Number of channels, and whether ReLU follows."""
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))
        self.mean = nnx.BatchStat(jnp.zeros(features))
        self.var = nnx.BatchStat(jnp.ones(features))
        self.relu = relu
        self.use_running_average = False

    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, H, W, C) -> the same shape and type; in training the running statistics are updated."""
        if self.use_running_average:
            mean, var = self.mean[...], self.var[...]
        else:
            xf = x.astype(jnp.float32)
            mean = xf.mean((0, 1, 2))
            var = jnp.maximum((xf * xf).mean((0, 1, 2)) - mean * mean, 0)
            count = x.size // x.shape[-1]
            self.mean[...] = 0.9 * self.mean[...] + 0.1 * mean
            self.var[...] = 0.9 * self.var[...] + 0.1 * var * (count / max(count - 1, 1))
        a = self.scale[...] * lax.rsqrt(var + 1e-5)
        y = ((x.astype(jnp.float32) - mean) * a + self.bias[...]).astype(x.dtype)
        return jax.nn.relu(y) if self.relu else y

    def torch_entries(self) -> TorchEntries:
        """Names as in `torch.nn.BatchNorm2d`."""
        return {
            "weight": (self.scale, SAME),
            "bias": (self.bias, SAME),
            "running_mean": (self.mean, SAME),
            "running_var": (self.var, SAME),
        }


def max_pool_2x2(x: jax.Array) -> jax.Array:
    """(N, H, W, C) -> (N, H // 2, W // 2, C), the maximum of each 2x2 block; an odd last row or column is left out.

    Where several pixels of a block are the largest they share the gradient; PyTorch gives it to the first. After a
    ReLU that makes no difference: such ties are zeros, through which nothing flows back.
    """
    # Not `nnx.max_pool`: XLA's gradient of a windowed maximum is seven times slower on CPUs.
    h, w = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    x = x[:, :h, :w]
    rows = jnp.maximum(x[:, 0::2], x[:, 1::2])
    return jnp.maximum(rows[:, :, 0::2], rows[:, :, 1::2])


def upsample_bilinear_2x(x: jax.Array) -> jax.Array:
    """(N, H, W, C) -> (N, 2H, 2W, C), bilinear with the corners aligned: PyTorch's `UpsamplingBilinear2d(2)`."""

    def interpolation_matrix(size: int) -> jax.Array:
        source = np.arange(2 * size) * (size - 1) / (2 * size - 1)
        weights = np.maximum(0, 1 - np.abs(source[:, None] - np.arange(size)[None]))
        return jnp.asarray(weights, x.dtype)

    x = jnp.einsum("ph,nhwc->npwc", interpolation_matrix(x.shape[1]), x)
    return jnp.einsum("qw,npwc->npqc", interpolation_matrix(x.shape[2]), x)


def pad_to(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Zero-pads height and width to those of `shape` (N, H, W, C), the smaller half of the difference before."""
    height, width = shape[1] - x.shape[1], shape[2] - x.shape[2]
    if height == width == 0:
        return x
    return jnp.pad(x, ((0, 0), (height // 2, height - height // 2), (width // 2, width - width // 2), (0, 0)))
