"""Layers that the networks share: convolution, upsampling, pooling, normalisation. Maps are (N, H, W, C)."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.typing import Dtype
from jax import lax

from bcss_jax.models.torch_layout import CONV, CONV_TRANSPOSE, SAME, TorchEntries


def uniform_fan_in(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int) -> nnx.Param:
    """Float32 parameter uniform in +-1/sqrt(fan_in): PyTorch's default, `kaiming_uniform_(a=sqrt(5))`."""
    bound = fan_in**-0.5
    return nnx.Param(jax.random.uniform(rngs.params(), shape, jnp.float32, -bound, bound))


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
        y = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)

    def torch_entries(self) -> TorchEntries:
        """Names as in `torch.nn.Conv2d`."""
        entries = {"weight": (self.kernel, CONV)}
        return entries if self.bias is None else entries | {"bias": (self.bias, SAME)}


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
        n, h, w, _ = x.shape
        # Stride and kernel agree, so no two terms meet: one matrix product, and its gradients are matrix products too.
        y = jnp.einsum("nhwi,abio->nhawbo", x.astype(self.dtype), self.kernel[...].astype(self.dtype))
        return y.reshape(n, 2 * h, 2 * w, -1) + self.bias[...].astype(self.dtype)

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
    """(N, H, W, C) -> (N, H // 2, W // 2, C), the maximum of each 2x2 block; an odd last row or column is left out."""
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
