"""Convolution of patches that do not overlap."""

import jax
from flax import nnx
from flax.typing import Dtype

from bcss_jax.models.blocks import initializers, layers
from bcss_jax.models.weights.torch_layout import CONV, SAME, TorchEntries


class PatchConv(nnx.Module):
    """PyTorch's `Conv2d(inputs, outputs, size, stride=size)`, as one matrix product."""

    def __init__(self, inputs: int, outputs: int, size: int, *, dtype: Dtype, rngs: nnx.Rngs):
        """Builds the layer for patches of `size` pixels on each side."""
        self.kernel = initializers.torch_default(rngs, (size, size, inputs, outputs))
        self.bias = initializers.uniform(rngs, (outputs,), (size * size * inputs) ** -0.5)
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, H, W, inputs) -> (N, H / size, W / size, outputs); H and W are multiples of the size."""
        n, height, width, channels = x.shape
        size, _, _, outputs = self.kernel.shape
        rows, columns = height // size, width // size
        x = x.reshape(n, rows, size, columns, size, channels).swapaxes(2, 3).reshape(n, rows, columns, -1)
        return layers.dense(x, self.kernel[...].reshape(-1, outputs), self.bias[...], self.dtype)

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of `torch.nn.Conv2d`."""
        return {"weight": (self.kernel, CONV), "bias": (self.bias, SAME)}
