"""Layers with weights that the networks share, and dropout. Maps are (N, H, W, C)."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype

from bcss_jax.models.blocks import cpu_convolution, initializers
from bcss_jax.models.weights.torch_layout import CONV, CONV_TRANSPOSE, LINEAR, SAME, TorchEntries

Size = int | tuple[int, int]


def _pair(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


class Conv(nnx.Module):
    """Convolution with zeros around the map: PyTorch's `Conv2d(inputs, outputs, size, stride, padding=size // 2)`.

    With an odd kernel and stride one the result has the size of the input.
    """

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
          inputs: channels in.
          outputs: channels out.
          size: height and width of the kernel, odd.
          stride: distance of the kernel's positions.
          same: pad as TensorFlow's and flax's "SAME", whose strided kernels stand differently on even sizes.
          use_bias: whether there is one.
          zero_bias: it starts at zero, else as in PyTorch, uniform in +-1/sqrt(fan_in).
          init: of the kernel.
          dtype: type of the arithmetic.
          rngs: random keys.
        """
        kh, kw = _pair(size)
        self.kernel = init(rngs, (kh, kw, inputs, outputs))
        bias = nnx.Param(jnp.zeros(outputs)) if zero_bias else _torch_bias(rngs, outputs, kh * kw * inputs)
        self.bias = bias if use_bias else None
        self.stride, self.dtype = _pair(stride), dtype
        self.padding = "SAME" if same else ((kh // 2, kh // 2), (kw // 2, kw // 2))

    def weights(self) -> jax.Array:
        """The kernel that is applied."""
        return self.kernel[...]

    def __call__(self, *maps: jax.Array) -> jax.Array:
        """Maps (N, H, W, C1), (N, H, W, C2), ..., read as if concatenated over channels -> (N, H', W', outputs)."""
        kernel = self.weights().astype(self.dtype)
        maps = [m.astype(self.dtype) for m in maps]
        if kernel.shape[:2] == (1, 1):
            sh, sw = self.stride
            x = jnp.concatenate([m[:, ::sh, ::sw] for m in maps], axis=-1)
            y = (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:3], -1)  # quicker gradients on CPUs
            return self._with_bias(y)
        x = jnp.concatenate(maps, axis=-1)
        if jax.default_backend() != "cpu":
            y = cpu_convolution.plain_conv(x, kernel, self.stride, self.padding)
        elif self.stride != (1, 1):
            y = cpu_convolution.strided_conv(x, kernel, self.stride, self.padding)
        elif kernel.shape[:2] == (3, 3):
            y = cpu_convolution.conv3x3(x, kernel)
        else:
            y = cpu_convolution.plain_conv(x, kernel)
        return self._with_bias(y)

    def _with_bias(self, y):
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)

    def torch_entries(self) -> TorchEntries:
        """Names as in `torch.nn.Conv2d`."""
        entries = {"weight": (self.kernel, CONV)}
        return entries if self.bias is None else entries | {"bias": (self.bias, SAME)}


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
        """Channels in and out, factors, bias and whether it starts at zero, initial kernel (None: PyTorch's), as `Conv`."""
        kh, kw = _pair(stride)
        fan_in = outputs * kh * kw  # PyTorch takes the second axis of (I, O, kh, kw) for the inputs
        # Drawn with inputs and outputs exchanged, so that every initial counts the same fans as PyTorch does.
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
        # Stride and kernel agree, so no two terms meet: one product of matrices gives all (a, b, o), and its gradients
        # are such products too. XLA's transposed convolution takes over ten times as long for its gradients on CPUs.
        y = x.astype(self.dtype).reshape(-1, inputs) @ kernel.reshape(inputs, -1)
        y = y.reshape(n * h, w, kh, -1)
        if self.bias is not None:
            y = y + jnp.tile(self.bias[...].astype(self.dtype), kw)
        return y.swapaxes(1, 2).reshape(n, kh * h, kw * w, -1)

    def torch_entries(self) -> TorchEntries:
        """Names as in `torch.nn.ConvTranspose2d`."""
        entries = {"weight": (self.kernel, CONV_TRANSPOSE)}
        return entries if self.bias is None else entries | {"bias": (self.bias, SAME)}


class Linear(nnx.Module):
    """Product with a matrix, and a bias: PyTorch's `Linear`."""

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
        """Features in and out, initial matrix, standard deviation of the initial bias (None: PyTorch's), as `Conv`."""
        self.kernel = init(rngs, (inputs, outputs))
        normal = bias_std is not None
        self.bias = initializers.normal(rngs, (outputs,), bias_std) if normal else _torch_bias(rngs, outputs, inputs)
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., inputs) -> (..., outputs)."""
        y = x.astype(self.dtype).reshape(-1, x.shape[-1]) @ self.kernel[...].astype(self.dtype)
        return y.reshape(*x.shape[:-1], -1) + self.bias[...].astype(self.dtype)

    def torch_entries(self) -> TorchEntries:
        """Names as in `torch.nn.Linear`."""
        return {"weight": (self.kernel, LINEAR), "bias": (self.bias, SAME)}


class Dropout(nnx.Module):
    """Sets features to zero with probability `rate` in training, and scales the others up.

    What is dropped of an example depends on nothing but its key and the layer's number, not on the batch around it.
    """

    def __init__(self, rate: float, number: int):
        """Probability, and a number that no other dropout of the network has."""
        self.rate, self.number = rate, number
        self.deterministic = False

    def __call__(self, x: jax.Array, keys: jax.Array | None) -> jax.Array:
        """(N, ...) and one key per example (N,) -> the same shape; without effect in evaluation mode.

        Raises:
          ValueError: there are no keys in training mode.
        """
        if self.deterministic or self.rate == 0:
            return x
        if keys is None:
            raise ValueError("training with dropout needs dropout_keys, one random key per example")

        def kept(key):
            bits = jax.random.bits(jax.random.fold_in(key, self.number), x.shape[1:], jnp.uint16)
            return bits >= round(self.rate * 2**16)

        return jnp.where(jax.vmap(kept)(keys), x / (1 - self.rate), 0).astype(x.dtype)


def _torch_bias(rngs: nnx.Rngs, outputs: int, fan_in: int) -> nnx.Param:
    return initializers.uniform(rngs, (outputs,), math.sqrt(1 / fan_in))
