"""Dense block: every layer sees the maps of all layers before it.

Source: Huang et al. 2016 (arXiv:1608.06993). The maps are handed on one by one with their statistics, so that each is
measured once for all the norms that read it.
"""

from collections.abc import Callable

from flax import nnx
from flax.typing import Dtype

from bcss_jax.models.blocks import norms
from bcss_jax.models.weights.torch_layout import TorchEntries, entries_of


class DenseBlock(nnx.Module):
    """Layers that each add `growth` channels.

    Attributes:
      outputs: channels of all the resulting maps together.
    """

    def __init__(
        self,
        inputs: int,
        growth: int,
        num_layers: int,
        layer: Callable[..., nnx.Module],
        *,
        joined: bool,
        dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        """Builds the layers.

        Args:
          inputs: channels in, all maps together.
          growth: channels that each layer adds.
          num_layers: their number.
          layer: `layer(inputs, growth, dtype=dtype, rngs=rngs)` gives a module that takes all maps and gives a new one.
          joined: concatenate the maps after each layer. What has to be compiled grows with the square of the number
            of layers else; but separate maps take two thirds of the memory in training, and are somewhat quicker.
          dtype: type of the arithmetic.
          rngs: random keys.
        """
        self.num_layers, self.joined = num_layers, joined
        for i in range(num_layers):
            made = layer(inputs + i * growth, growth, dtype=dtype, rngs=rngs)
            setattr(self, f"layer{i + 1}", made)
        self.outputs = inputs + num_layers * growth

    def __call__(self, *maps: norms.MapWithStatistics) -> tuple[norms.MapWithStatistics, ...]:
        """Maps (N, H, W, C1), (N, H, W, C2), ... -> these, and one (N, H, W, growth) per layer behind them; or one of all."""
        for i in range(self.num_layers):
            new = norms.with_statistics(getattr(self, f"layer{i + 1}")(*maps))
            maps = (norms.concatenate(*maps, new),) if self.joined else (*maps, new)
        return maps

    def torch_entries(self) -> TorchEntries:
        """Names as in torchvision's `_DenseBlock`."""
        return entries_of({f"denselayer{i}": getattr(self, f"layer{i}") for i in range(1, self.num_layers + 1)})
