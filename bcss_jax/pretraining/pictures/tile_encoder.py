"""An encoder as compiled functions of uint8 tiles: features of the patches, and where the class token looks."""

import jax
import numpy as np
from flax import nnx

from bcss_jax.models.apply import normalize
from bcss_jax.models.encoders.vision_transformer.network import VisionTransformer
from bcss_jax.models.image_normalization import ImageStatistics


class TileEncoder:
    """An encoder that is asked about tiles, a batch after the other.

    Attributes:
      patch: pixels of a patch on each side.
    """

    def __init__(self, encoder: VisionTransformer, statistics: ImageStatistics, batch_size: int = 16):
        """Compiles nothing yet.

        Args:
          encoder: the network; is set to evaluation mode.
          statistics: that tiles are normalized with.
          batch_size: tiles that are computed at once. The last batch is filled up, so that one size is compiled.
        """
        encoder.eval()
        graphdef, state = nnx.split(encoder)
        self.patch, self._batch_size, self._state = encoder.architecture.patch, batch_size, state

        @jax.jit
        def patches(state, images):
            return nnx.merge(graphdef, state)(normalize(images, statistics)).patches.astype(np.float32)

        @jax.jit
        def attention(state, images):
            return nnx.merge(graphdef, state).class_attention(normalize(images, statistics))

        self._patches, self._attention, self._prefix = patches, attention, encoder.architecture.prefix

    def whole_patches(self, images: np.ndarray) -> np.ndarray:
        """Returns images [N, H, W, 3] without the rows and columns at the end that are no whole patch."""
        height, width = (side // self.patch * self.patch for side in images.shape[1:3])
        return images[:, :height, :width]

    def patches(self, images: np.ndarray) -> np.ndarray:
        """Returns the features of the patches of tiles: uint8 [N, H, W, 3] -> float32 [N, rows, columns, C]."""
        return self._in_batches(self._patches, self.whole_patches(images))

    def attention(self, images: np.ndarray) -> np.ndarray:
        """Returns where the class token looks in the last block.

        Args:
          images: uint8 [N, H, W, 3].

        Returns:
          float32 [N, heads, rows, columns]: the attention to a patch, relative to that of a class token that looks at
          all patches equally.
        """
        images = self.whole_patches(images)
        rows, columns = (side // self.patch for side in images.shape[1:3])
        found = self._in_batches(self._attention, images)[:, :, self._prefix :]
        return found.reshape(*found.shape[:2], rows, columns) * (rows * columns)

    def _in_batches(self, function, images: np.ndarray) -> np.ndarray:
        found = []
        for start in range(0, len(images), self._batch_size):
            part = images[start : start + self._batch_size]
            filled = np.concatenate([part, np.repeat(part[:1], self._batch_size - len(part), axis=0)])
            found.append(np.asarray(function(self._state, filled))[: len(part)])
        return np.concatenate(found)
