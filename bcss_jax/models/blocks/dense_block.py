"""Dense block: each layer reads the maps of all layers before it.

Source: Huang et al. 2016 (arXiv:1608.06993). Maps are passed on together with their statistics, which are therefore
computed once for all norms that read the map.
"""

from collections.abc import Callable

from flax import nnx
from flax.typing import Dtype

from bcss_jax.models.blocks import norms
from bcss_jax.models.weights.torch_layout import TorchEntries, entries_of


class DenseBlock(nnx.Module):
    """A sequence of layers, each of which adds `growth` channels.

    Attributes:
      outputs: channels of all resulting maps together.
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
          inputs: channels of the input, all maps together.
          growth: channels that each layer adds.
          num_layers: number of layers.
          layer: `layer(inputs, growth, dtype=dtype, rngs=rngs)` returns a module that maps all maps to a new one.
          joined: concatenate the maps after each layer. Otherwise the size of the compiled program grows with the
            square of the number of layers, but training takes two thirds of the memory and is somewhat faster.
          dtype: type of the computation.
          rngs: random keys.
        """
        self.num_layers, self.joined = num_layers, joined
        for i in range(num_layers):
            setattr(self, f"layer{i + 1}", layer(inputs + i * growth, growth, dtype=dtype, rngs=rngs))
        self.outputs = inputs + num_layers * growth

    def __call__(self, *maps: norms.MapWithStatistics) -> tuple[norms.MapWithStatistics, ...]:
        """Runs the layers.

        Args:
          *maps: (N, H, W, C1), (N, H, W, C2), ...

        Returns:
          The same maps followed by one (N, H, W, growth) per layer; if `joined`, a single map of all channels.
        """
        for i in range(self.num_layers):
            new = norms.with_batch_statistics(getattr(self, f"layer{i + 1}")(*maps))
            maps = (norms.concatenate(*maps, new),) if self.joined else (*maps, new)
        return maps

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of torchvision's `_DenseBlock`."""
        return entries_of({f"denselayer{i}": getattr(self, f"layer{i}") for i in range(1, self.num_layers + 1)})
