"""Convolutions, dense layers and dropout that the networks share. Maps are (N, H, W, C)."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.typing import Dtype
from jax.ad_checkpoint import checkpoint_name

from bcss_jax.models.blocks import cpu_convolution, initializers
from bcss_jax.models.weights.torch_layout import CONV, CONV_TRANSPOSE, LINEAR, SAME, TorchEntries

Size = int | Sequence[int]
FEW_OUTPUTS = 8
PRODUCT = "product"  # name of what convolutions and dense layers compute, for rematerialization


def _pair(size: Size) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def spread(bias: jax.Array, y: jax.Array) -> jax.Array:
    """Returns a bias in the shape and the type of `y`, so that its gradient, a sum over `y`, is added in float32."""
    return jnp.broadcast_to(bias, y.shape).astype(y.dtype)


class Conv(nnx.Module):
    """Convolution with zero padding: PyTorch's `Conv2d(inputs, outputs, size, stride, padding=size // 2)`.

    With an odd kernel and stride one the result has the size of the input.
    """

    padding: cpu_convolution.Padding

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: Size,
        *,
        stride: Size = 1,
        same: bool = False,
        use_bias: bool,
        zero_bias: bool = False,
        init: initializers.Initializer = initializers.torch_default,
        dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        """Builds the layer.

        Args:
          inputs: channels of the input.
          outputs: channels of the result.
          size: height and width of the kernel, odd.
          stride: along height and width.
          same: pad as "SAME" of TensorFlow and flax, which places strided kernels differently on even sizes.
          use_bias: whether there is a bias.
          zero_bias: initialize the bias with zeros; otherwise as PyTorch, uniformly in +-1/sqrt(fan_in).
          init: initializer of the kernel.
          dtype: type of the computation.
          rngs: random keys.
        """
        kh, kw = _pair(size)
        self.kernel = init(rngs, (kh, kw, inputs, outputs))
        bias = nnx.Param(jnp.zeros(outputs)) if zero_bias else _torch_bias(rngs, outputs, kh * kw * inputs)
        self.bias = bias if use_bias else None
        self.stride, self.dtype = _pair(stride), dtype
        self.padding = "SAME" if same else ((kh // 2, kh // 2), (kw // 2, kw // 2))

    def weights(self) -> jax.Array:
        """Returns the kernel that is applied."""
        return self.kernel[...]

    def __call__(self, *maps: jax.Array) -> jax.Array:
        """Maps (N, H, W, C1), (N, H, W, C2), ..., which count as concatenated over channels -> (N, H', W', outputs)."""
        kernel = self.weights().astype(self.dtype)
        converted = [m.astype(self.dtype) for m in maps]
        if kernel.shape[:2] == (1, 1):
            sh, sw = self.stride
            x = jnp.concatenate([m[:, ::sh, ::sw] for m in converted], axis=-1)
            product = _product_with_few_outputs if kernel.shape[-1] <= FEW_OUTPUTS else _product
            y = product(x.reshape(-1, x.shape[-1]), kernel[0, 0]).reshape(*x.shape[:3], -1)  # faster gradients on CPUs
            return self._finished(y)
        x = jnp.concatenate(converted, axis=-1)
        if self.stride != (1, 1):
            y = cpu_convolution.strided_conv(x, kernel, self.stride, self.padding)
        elif kernel.shape[:2] == (3, 3):
            y = cpu_convolution.conv3x3(x, kernel)
        else:
            y = cpu_convolution.plain_conv(x, kernel)
        return self._finished(y)

    def _finished(self, y: Any) -> jax.Array:
        return checkpoint_name(y if self.bias is None else y + spread(self.bias[...], y), PRODUCT)

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of `torch.nn.Conv2d`."""
        entries: TorchEntries = {"weight": (self.kernel, CONV)}
        if self.bias is not None:
            entries["bias"] = (self.bias, SAME)
        return entries


class ConvTranspose(nnx.Module):
    """Learned upsampling by the factors `stride`: PyTorch's `ConvTranspose2d(inputs, outputs, stride, stride)`."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: Size = 2,
        *,
        use_bias: bool = True,
        zero_bias: bool = False,
        init: initializers.Initializer | None = None,
        dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        """Builds the layer.

        Args:
          inputs: channels of the input.
          outputs: channels of the result.
          stride: factors of height and width.
          use_bias: see `Conv`.
          zero_bias: see `Conv`.
          init: initializer of the kernel; None: PyTorch's default.
          dtype: type of the computation.
          rngs: random keys.
        """
        kh, kw = _pair(stride)
        fan_in = outputs * kh * kw  # PyTorch counts the second axis of (I, O, kh, kw) as inputs
        # Inputs and outputs are exchanged here, so that each initializer sees the same fans as in PyTorch.
        drawn = (init or initializers.torch_default)(rngs, (kh, kw, outputs, inputs))
        self.kernel = nnx.Param(drawn[...].swapaxes(2, 3))
        bias = nnx.Param(jnp.zeros(outputs)) if zero_bias else _torch_bias(rngs, outputs, fan_in)
        self.bias = bias if use_bias else None
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, H, W, inputs) -> (N, stride * H, stride * W, outputs)."""
        n, h, w, inputs = x.shape
        kh, kw = self.kernel.shape[:2]
        kernel = self.kernel[...].astype(self.dtype).transpose(2, 0, 1, 3)
        # Stride and kernel size are equal, so the kernel's positions do not overlap. One matrix product gives all (a,
        # b, o), and its gradients are matrix products too. On CPUs, the gradients of XLA's transposed convolution take
        # more than ten times as long.
        y = checkpoint_name(x.astype(self.dtype).reshape(-1, inputs) @ kernel.reshape(inputs, -1), PRODUCT)
        y = y.reshape(n * h, w, kh, -1)
        if self.bias is not None:
            y = y + spread(jnp.tile(self.bias[...], kw), y)
        # Stacked slices, as the gradient of a transposition would be a pass of its own on GPUs.
        return jnp.stack([y[:, :, a] for a in range(kh)], axis=1).reshape(n, kh * h, kw * w, -1)

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of `torch.nn.ConvTranspose2d`."""
        bias: TorchEntries = {} if self.bias is None else {"bias": (self.bias, SAME)}
        return {"weight": (self.kernel, CONV_TRANSPOSE), **bias}


class ConvTranspose3x3(nnx.Module):
    """Learned upsampling by two with a 3x3 kernel and no bias.

    PyTorch's `ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=1, bias=False)`.
    """

    def __init__(self, inputs: int, outputs: int, *, dtype: Dtype, rngs: nnx.Rngs):
        """Builds the layer for `inputs` and `outputs` channels, initialized with PyTorch's default."""
        # Inputs and outputs are exchanged, as in `ConvTranspose`.
        self.kernel = nnx.Param(initializers.torch_default(rngs, (3, 3, outputs, inputs))[...].swapaxes(2, 3))
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, H, W, inputs) -> (N, 2H, 2W, outputs)."""
        n, h, w, inputs = x.shape
        # An even row of the result sees one row of the map through the middle of the kernel; an odd row sees that row
        # and the next one through the kernel's ends. Columns are the same. One matrix product gives the four pixels of
        # each block, as in `ConvTranspose`; entry 3 is a row of zeros.
        ends = np.array([[1, 3], [2, 0]])  # (row of the block, row of the map) -> row of the kernel
        kernel = jnp.pad(self.kernel[...].astype(self.dtype), ((0, 1), (0, 1), (0, 0), (0, 0)))
        kernel = kernel[ends][:, :, ends].transpose(1, 3, 4, 0, 2, 5)  # row, column, I, row and column of the block, O
        padded = jnp.pad(x.astype(self.dtype), ((0, 0), (0, 1), (0, 1), (0, 0)))
        near = jnp.concatenate([padded[:, a : a + h, b : b + w] for a in range(2) for b in range(2)], axis=-1)
        y = _product(near.reshape(-1, 4 * inputs), kernel.reshape(4 * inputs, -1))
        y = checkpoint_name(y, PRODUCT).reshape(n * h, w, 2, -1)
        return jnp.stack([y[:, :, a] for a in range(2)], axis=1).reshape(n, 2 * h, 2 * w, -1)

    def torch_entries(self) -> TorchEntries:
        """Returns the entry under the name of `torch.nn.ConvTranspose2d`."""
        return {"weight": (self.kernel, CONV_TRANSPOSE)}


class Linear(nnx.Module):
    """Product with a matrix plus a bias: PyTorch's `Linear`."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        init: initializers.Initializer = initializers.torch_default,
        bias_std: float | None = None,
        dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        """Builds the layer.

        Args:
          inputs: features of the input.
          outputs: features of the result.
          init: initializer of the matrix.
          bias_std: standard deviation of the initial bias; None: PyTorch's default.
          dtype: type of the computation.
          rngs: random keys.
        """
        self.kernel = init(rngs, (inputs, outputs))
        if bias_std is None:
            self.bias = _torch_bias(rngs, outputs, inputs)
        else:
            self.bias = initializers.normal(rngs, (outputs,), bias_std)
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., inputs) -> (..., outputs)."""
        return dense(x, self.kernel[...], self.bias[...], self.dtype)

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of `torch.nn.Linear`."""
        return {"weight": (self.kernel, LINEAR), "bias": (self.bias, SAME)}


def dense(x: jax.Array, kernel: jax.Array, bias: jax.Array | None, dtype: Dtype) -> jax.Array:
    """(..., inputs), kernel (inputs, outputs), bias (outputs,) -> (..., outputs) of type `dtype`."""
    y = _product(x.astype(dtype).reshape(-1, x.shape[-1]), kernel.astype(dtype)).reshape(*x.shape[:-1], -1)
    return checkpoint_name(y if bias is None else y + spread(bias, y), PRODUCT)


def gelu(x: jax.Array) -> jax.Array:
    """Returns x times the normal distribution function at x, as PyTorch's GELU computes it.

    `jax.nn.gelu` uses the complementary error function, which is exact far below zero, where the result is next to
    nothing, and takes several passes on CPUs.
    """
    return 0.5 * x * (1 + jax.lax.erf(x * np.float32(math.sqrt(0.5)).astype(x.dtype)))


class Dropout(nnx.Module):
    """Sets features to zero with probability `rate` in training and scales up the others.

    Which features of an example are dropped depends only on its key and the number of the layer, not on the batch.
    """

    def __init__(self, rate: float, number: int, *, whole_channels: bool = False, whole_examples: bool = False):
        """Builds the layer.

        Args:
          rate: probability.
          number: number of the layer, which no other dropout of the network may have.
          whole_channels: drop all pixels of a channel together, as PyTorch's `Dropout2d`.
          whole_examples: drop all features of an example together ("drop path", "stochastic depth").
        """
        self.rate, self.number = rate, number
        self.whole_channels, self.whole_examples = whole_channels, whole_examples
        self.deterministic = False

    def __call__(self, x: jax.Array, keys: jax.Array | None) -> jax.Array:
        """(N, ...) and one key per example (N,) -> the same shape; has no effect in evaluation mode.

        Raises:
          ValueError: there are no keys in training mode.
        """
        if self.deterministic or self.rate == 0:
            return x
        if keys is None:
            raise ValueError("training with dropout needs dropout_keys, one random key per example")

        shape = x.shape[1:]
        if self.whole_channels or self.whole_examples:
            shape = (*(1 for _ in shape[:-1]), 1 if self.whole_examples else shape[-1])

        def kept(key):
            bits = jax.random.bits(jax.random.fold_in(key, self.number), shape, jnp.uint16)
            return bits >= round(self.rate * 2**16)

        return jnp.where(jax.vmap(kept)(keys), x / (1 - self.rate), 0).astype(x.dtype)


def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Returns the matrix product of pixels or tokens (M, inputs) and a kernel (inputs, outputs).

    XLA for GPUs (jaxlib 0.10.2 and 0.11.2) fuses what comes before a matrix product into it. If that looks at rows and
    columns of a map, as normalization and strided slices do, and these are not multiples of the product's tiles, as 14
    is not, the compiler fails or ends the process. The barriers, which have no effect on values, keep the product and
    those of its gradient by themselves. `ConvTranspose`, whose results are moved apart, compiles without them.
    """
    return jax.lax.optimization_barrier(jax.lax.optimization_barrier(x) @ kernel)


@jax.custom_vjp
def _product_with_few_outputs(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Returns `_product` of the same arguments, whose result is small beside `x`, as logits are.

    The gradient of `x` is not a product, so that GPUs compute it in the passes that need it. It is never stored.
    """
    return _product(x, kernel)


def _few_outputs_backward(saved, dy):
    x, kernel = saved
    terms = dy.astype(jnp.float32)[:, None] * kernel.astype(jnp.float32)  # (M, inputs, outputs)
    return terms.sum(-1).astype(x.dtype), _product(x.T, dy)


_product_with_few_outputs.defvjp(lambda x, kernel: (_product(x, kernel), (x, kernel)), _few_outputs_backward)


def _torch_bias(rngs: nnx.Rngs, outputs: int, fan_in: int) -> nnx.Param:
    return initializers.uniform(rngs, (outputs,), math.sqrt(1 / fan_in))
