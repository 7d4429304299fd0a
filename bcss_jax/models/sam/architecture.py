"""The settings in which the networks of Segment Anything differ."""

import dataclasses

from bcss_jax.errors import ConfigError
from bcss_jax.models.arguments import MOST_LAYERS, check_counts, check_counts_in


@dataclasses.dataclass(frozen=True)
class ViTForm:
    """Form of SAM's image encoder, a vision transformer with attention in windows.

    Attributes:
      width: features of a token.
      depth: number of blocks.
      heads: of the attention; must divide `width`.
      global_blocks: numbers of the blocks whose tokens see all others; the others see those of their window.
      patch: pixels of a token on each side.
      window: rows (and columns) of tokens in a window.
      hidden: features between the two dense layers of a block.
      table: rows (and columns) of the table of position embeddings.
    """

    width: int
    depth: int
    heads: int
    global_blocks: tuple[int, ...]
    patch: int = 16
    window: int = 14
    hidden: int = 0
    table: int = 64

    @property
    def stride(self) -> int:
        """Pixels of the image that one pixel of the embedding stands for, on each side."""
        return self.patch

    def check(self) -> None:
        """Raises ConfigError if no network has such settings."""
        name = "SAM's encoder"
        check_counts(name, width=self.width, heads=self.heads, patch=self.patch, window=self.window, table=self.table)
        check_counts(name, hidden=self.hidden)
        check_counts(name, most=MOST_LAYERS, depth=self.depth)
        _check_heads(name, self.width, self.heads)
        _check_blocks(name, self.global_blocks, self.depth)


@dataclasses.dataclass(frozen=True)
class HieraForm:
    """Form of SAM 2.1's image encoder, Hiera.

    Attributes:
      width: features of a token in the first stage; they double from stage to stage, as the heads do.
      heads: of the attention in the first stage.
      stages: number of blocks of each of the four stages.
      global_blocks: numbers of the blocks whose tokens see all others.
      windows: rows (and columns) of tokens in a window, by stage.
      table: rows (and columns) of the table of position embeddings.
    """

    width: int
    heads: int
    stages: tuple[int, int, int, int]
    global_blocks: tuple[int, ...]
    windows: tuple[int, int, int, int] = (8, 4, 14, 7)
    table: int = 7

    @property
    def stride(self) -> int:
        """Pixels of the image that one pixel of the embedding stands for, on each side."""
        return 16

    def check(self) -> None:
        """Raises ConfigError if no network has such settings."""
        name = "SAM 2.1's encoder"
        check_counts(name, width=self.width, heads=self.heads, table=self.table)
        check_counts_in(name, 4, most=MOST_LAYERS, stages=self.stages)
        check_counts_in(name, 4, windows=self.windows)
        _check_heads(name, self.width, self.heads)
        _check_blocks(name, self.global_blocks, sum(self.stages))


@dataclasses.dataclass(frozen=True)
class DecoderForm:
    """Form of prompt encoder and mask decoder; all published networks have the default one.

    Attributes:
      channels: of the image's embedding, and features of a token.
      mask_channels: of the mask prompt between its two strided convolutions and the last one.
      masks: number of masks: one for clear prompts, and the others for ambiguous ones.
      depth: number of layers of the transformer.
      heads: of its attention.
      hidden: features between the two dense layers of a layer.
      score_hidden: features of the layers that predict the scores.
    """

    channels: int = 256
    mask_channels: int = 16
    masks: int = 4
    depth: int = 2
    heads: int = 8
    hidden: int = 2048
    score_hidden: int = 256

    def check(self) -> None:
        """Raises ConfigError if no network has such settings."""
        name = "SAM's decoder"
        check_counts(name, **{key: getattr(self, key) for key in ("channels", "mask_channels", "heads", "hidden")})
        check_counts(name, score_hidden=self.score_hidden, masks=self.masks)
        check_counts(name, most=MOST_LAYERS, depth=self.depth)
        if self.channels % 8 or self.mask_channels % 4:
            raise ConfigError(
                f"{name}: channels must be a multiple of 8 and mask_channels of 4, not {self.channels} and "
                f"{self.mask_channels}"
            )
        _check_heads(name, self.channels // 2, self.heads)


def _check_heads(name: str, width: int, heads: int) -> None:
    if width % heads:
        raise ConfigError(f"{name}: a width of {width} is not a multiple of {heads} heads")


def _check_blocks(name: str, blocks: tuple[int, ...], depth: int) -> None:
    if any(not 0 <= block < depth for block in blocks):
        raise ConfigError(f"{name}: global_blocks must be between 0 and {depth - 1}, not {blocks}")
