"""The settings of views: sizes, number, and how strongly each kind of view is changed."""

import dataclasses

from bcss_jax.errors import ConfigError

Range = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Changes:
    """Probability and strength of each change of one kind of view, in the order in which they are made.

    Attributes:
      scale: smallest and largest share of a tile's area that a view shows; None: a window of the view's size.
      flip: probability of a left-right flip.
      turns: all eight flips and quarter turns are equally likely; replaces `flip`.
      stain: probability of a change of the strengths of hematoxylin, eosin and what neither explains.
      stain_strength: factor on each stain's density drawn from [1 - stain_strength, 1 + stain_strength].
      jitter: probability of a change of colors: the next four changes in random order.
      brightness: factor drawn from [1 - brightness, 1 + brightness].
      contrast: like `brightness`, for contrast.
      saturation: like `brightness`, for saturation.
      hue: shift drawn from [-hue, hue], as a fraction of the color circle.
      gray: probability of a view in shades of gray.
      blur: probability of a Gaussian blur.
      blur_radius: smallest and largest standard deviation of the blur in pixels.
      blur_pillow: blur as Pillow does (boxes that approximate a Gaussian, borders continued); otherwise as torchvision
        with a kernel of 9 pixels (borders mirrored).
      solarize: probability that values of 128 and more are inverted.
    """

    scale: Range | None
    flip: float = 0.5
    turns: bool = False
    stain: float = 0.0
    stain_strength: float = 0.0
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    gray: float = 0.2
    blur: float = 0.0
    blur_radius: Range = (0.1, 2.0)
    blur_pillow: bool = True
    solarize: float = 0.0


@dataclasses.dataclass(frozen=True)
class Style:
    """A recipe of views.

    Attributes:
      first: the first global view.
      second: the second global view.
      local: all local views.
    """

    first: Changes
    second: Changes
    local: Changes


def _pathology(scale: Range, blur: float) -> Changes:
    return Changes(
        scale,
        turns=True,
        stain=0.8,
        stain_strength=0.3,
        brightness=0.15,
        contrast=0.15,
        saturation=0.0,
        hue=0.0,
        gray=0.0,
        blur=blur,
        blur_radius=(0.1, 1.0),
    )


def _dino(scale: Range, **changes) -> Changes:
    return Changes(scale, **changes)


def _dinov2(scale: Range, **changes) -> Changes:
    return Changes(scale, blur_pillow=False, **changes)


STYLES = {
    # What papers on pathology change: turns and stain; no solarization, no gray, because both destroy the stains
    # (Kang et al., "Benchmarking Self-Supervised Learning on Diverse Pathology Datasets", 2023). Strengths are our own.
    "pathology": Style(
        first=_pathology((0.4, 1.0), blur=0.5),
        second=_pathology((0.4, 1.0), blur=0.1),
        local=_pathology((0.05, 0.4), blur=0.5),
    ),
    # github.com/facebookresearch/dino, main_dino.py: DataAugmentationDINO.
    "dino": Style(
        first=_dino((0.4, 1.0), blur=1.0),
        second=_dino((0.4, 1.0), blur=0.1, solarize=0.2),
        local=_dino((0.05, 0.4), blur=0.5),
    ),
    # github.com/facebookresearch/dinov2, data/augmentations.py. Its blur hands 1 - p to RandomApply; these are the
    # probabilities that result, with which the published weights were trained.
    "dinov2": Style(
        first=_dinov2((0.32, 1.0), blur=0.0),
        second=_dinov2((0.32, 1.0), blur=0.9, solarize=0.2),
        local=_dinov2((0.05, 0.32), blur=0.5),
    ),
}


@dataclasses.dataclass(frozen=True)
class ViewSettings:
    """How views are made of a tile.

    Attributes:
      global_size: pixels of a global view on each side.
      local_size: pixels of a local view on each side.
      local_views: number of local views; 0 is allowed.
      global_scale: smallest and largest share of the tile's area that a global view shows; None: that of the style.
      local_scale: the same for local views.
      style: "pathology", "dino" or "dinov2".
      resize: False: views are windows of their own size, at the resolution of the tiles, and no scale counts.

    Raises:
      ConfigError: a setting is out of range.
    """

    global_size: int = 224
    local_size: int = 96
    local_views: int = 8
    global_scale: Range | None = None
    local_scale: Range | None = None
    style: str = "pathology"
    resize: bool = True

    def __post_init__(self):
        """Checks the settings."""
        if self.style not in STYLES:
            raise ConfigError(f"views: expected a style of {', '.join(STYLES)}, found {self.style!r}; choose one")
        for name, least in (("global_size", 2), ("local_size", 2), ("local_views", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"views: expected {name} of at least {least}, found {getattr(self, name)}; raise it")
        for name in ("global_scale", "local_scale"):
            scale = getattr(self, name)
            if scale is not None and not (len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1):
                raise ConfigError(
                    f"views: expected {name} as two rising shares of the area above 0 and up to 1, found {scale}; "
                    "correct it"
                )

    @property
    def changes(self) -> Style:
        """The changes of the style, with the scales of the settings."""
        style = STYLES[self.style]
        if not self.resize:
            return Style(*(dataclasses.replace(each, scale=None) for each in (style.first, style.second, style.local)))
        wide = {} if self.global_scale is None else {"scale": tuple(self.global_scale)}
        small = {} if self.local_scale is None else {"scale": tuple(self.local_scale)}
        return Style(
            dataclasses.replace(style.first, **wide),
            dataclasses.replace(style.second, **wide),
            dataclasses.replace(style.local, **small),
        )

    def check_tiles(self, size: int) -> None:
        """Raises ConfigError if views are larger than tiles of `size` pixels; local ones may be if they are resized."""
        if not self.resize and self.local_views and self.local_size > size:
            raise ConfigError(
                f"views: expected local views no larger than the tiles, as they are not resized, found views of "
                f"{self.local_size} and tiles of {size} pixels; raise --config.data.tile_size, lower "
                "--config.views.local_size, or set --config.views.resize=True"
            )
        if self.global_size > size:
            raise ConfigError(
                f"views: expected global views no larger than the tiles, found views of {self.global_size} and tiles "
                f"of {size} pixels; raise --config.data.tile_size or lower --config.views.global_size"
            )
