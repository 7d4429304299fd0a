"""Published vision transformers by name: their form, what their images are normalized with, and their license.

None of the files is shipped; all are on the Hugging Face hub or on the pages of their authors.
"""

import dataclasses
import difflib

from bcss_jax.errors import ConfigError
from bcss_jax.models.encoders.vision_transformer.architecture import Architecture
from bcss_jax.models.encoders.vision_transformer.positions import Resizing
from bcss_jax.models.image_normalization import IMAGENET, ImageStatistics

HALF = ImageStatistics((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_OPTIMUS = ImageStatistics((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
_HIBOU = ImageStatistics((0.7068, 0.5755, 0.722), (0.195, 0.2316, 0.1816))
_LUNIT = ImageStatistics((0.7032, 0.5361, 0.6610), (0.2172, 0.2608, 0.2072))


@dataclasses.dataclass(frozen=True)
class Preset:
    """A published vision transformer.

    Attributes:
      architecture: its form.
      statistics: of the images that it was trained with.
      license: of its weights, or who says what it is; empty: none are published under this name.
      mpp: um/px of the tiles that it was trained with; None: photographs, or many resolutions.
      feature: what its publisher describes a tile with: "class" for the class token, "class+mean" for the class token
        followed by the mean over the patches.
    """

    architecture: Architecture
    statistics: ImageStatistics
    license: str
    mpp: float | None = None
    feature: str = "class"


_TINY = Architecture(192, 12, 3, 16, 768)
_SMALL = Architecture(384, 12, 6, 16, 1536)
_BASE = Architecture(768, 12, 12, 16, 3072)
_LARGE = Architecture(1024, 24, 16, 16, 4096)
_HUGE = Architecture(1280, 32, 16, 14, 3416, gated=True, layer_scale=True, table=16)
_GIANT = Architecture(1536, 40, 24, 14, 4096, gated=True, layer_scale=True, table=37)


def _of(base: Architecture, **changes) -> Architecture:
    return dataclasses.replace(base, **changes)


def _patch8(base: Architecture, **changes) -> Architecture:
    return _of(base, patch=8, table=28, **changes)


def _dinov2(base: Architecture, registers: int = 0, **changes) -> Architecture:
    resizing = Resizing.ANTIALIAS if registers else Resizing.OFFSET
    form = dict(patch=14, layer_scale=True, table=37, registers=registers, resizing=resizing)
    return _of(base, **(form | changes))


def _dinov3(base: Architecture, **changes) -> Architecture:
    form = dict(layer_scale=True, registers=4, table=None, key_bias=False, eps=1e-5)
    return _of(base, **(form | changes))


_DINO_V1: dict[str, Resizing] = dict(resizing=Resizing.OFFSET)
_NON_COMMERCIAL = "CC-BY-NC-ND-4.0: not for commercial use"
_META = "Apache-2.0"
_META_V3 = "DINOv3 License of Meta: own terms, also for what is derived from it"

PRESETS: dict[str, Preset] = {
    "gigapath_flash": Preset(_of(_SMALL, hidden=1024, gated=True, layer_scale=True), IMAGENET, "Apache-2.0", 0.5),
    "kaiko_vits8": Preset(_patch8(_SMALL), HALF, "MIT", 0.5),
    "kaiko_vits16": Preset(_SMALL, HALF, "MIT", 0.5),
    "kaiko_vitb8": Preset(_patch8(_BASE), HALF, "MIT", 0.5),
    "kaiko_vitb16": Preset(_BASE, HALF, "MIT", 0.5),
    "kaiko_vitl14": Preset(_dinov2(_LARGE, 4, prefix_rows=0), HALF, "MIT", 0.5),
    "openmidnight": Preset(_dinov2(_GIANT, 4), IMAGENET, "Apache-2.0", 0.5),
    "midnight": Preset(_dinov2(_GIANT, resizing=Resizing.PLAIN), HALF, "MIT", 0.5, "class+mean"),
    "h_optimus_0": Preset(_dinov2(_GIANT, 4, prefix_rows=0), _OPTIMUS, "Apache-2.0", 0.5),
    "h_optimus_1": Preset(_dinov2(_GIANT, 4, prefix_rows=0), _OPTIMUS, _NON_COMMERCIAL, 0.5),
    "h0_mini": Preset(_dinov2(_BASE, 4, prefix_rows=0, hidden=2048, gated=True), _OPTIMUS, _NON_COMMERCIAL, 0.5),
    "hibou_b": Preset(_dinov2(_BASE, 4, table=16), _HIBOU, "Apache-2.0", 0.5),
    "hibou_l": Preset(_dinov2(_LARGE, 4, table=16), _HIBOU, "Apache-2.0", 0.5),
    "virchow": Preset(_HUGE, IMAGENET, "Apache-2.0, behind a form", 0.5, "class+mean"),
    "virchow2": Preset(_of(_HUGE, registers=4, prefix_rows=5), IMAGENET, _NON_COMMERCIAL, 0.5, "class+mean"),
    "uni": Preset(_of(_LARGE, layer_scale=True), IMAGENET, _NON_COMMERCIAL, 0.5),
    "uni2_h": Preset(_of(_GIANT, depth=24, table=16, registers=8, prefix_rows=0), IMAGENET, _NON_COMMERCIAL, 0.5),
    "prov_gigapath": Preset(_of(_GIANT, patch=16, table=14), IMAGENET, "Apache-2.0 with conditions", 0.5),
    "gpfm": Preset(_dinov2(_LARGE, table=16, resizing=Resizing.ANTIALIAS), IMAGENET, _NON_COMMERCIAL, 0.5),
    "phikon": Preset(_of(_BASE, eps=1e-12, resizing=Resizing.PLAIN), IMAGENET, "Owkin non-commercial license", 0.5),
    "phikon_v2": Preset(
        _of(_LARGE, layer_scale=True, resizing=Resizing.PLAIN), IMAGENET, "Owkin non-commercial license", 0.5
    ),
    "lunit_vits8": Preset(_patch8(_SMALL, **_DINO_V1), _LUNIT, "non-commercial license of Lunit", 0.5),
    "lunit_vits16": Preset(_of(_SMALL, **_DINO_V1), _LUNIT, "non-commercial license of Lunit", 0.5),
    "vit_tiny16": Preset(_TINY, IMAGENET, ""),
    "vit_small16": Preset(_SMALL, IMAGENET, ""),
    "dino_vits8": Preset(_patch8(_SMALL, **_DINO_V1), IMAGENET, _META),
    "dino_vits16": Preset(_of(_SMALL, **_DINO_V1), IMAGENET, _META),
    "dino_vitb8": Preset(_patch8(_BASE, **_DINO_V1), IMAGENET, _META),
    "dino_vitb16": Preset(_of(_BASE, **_DINO_V1), IMAGENET, _META),
    "dinov2_vits14": Preset(_dinov2(_SMALL), IMAGENET, _META),
    "dinov2_vitb14": Preset(_dinov2(_BASE), IMAGENET, _META),
    "dinov2_vitl14": Preset(_dinov2(_LARGE), IMAGENET, _META),
    "dinov2_vitg14": Preset(_dinov2(_GIANT), IMAGENET, _META),
    "dinov2_vits14_reg": Preset(_dinov2(_SMALL, 4), IMAGENET, _META),
    "dinov2_vitb14_reg": Preset(_dinov2(_BASE, 4), IMAGENET, _META),
    "dinov2_vitl14_reg": Preset(_dinov2(_LARGE, 4), IMAGENET, _META),
    "dinov2_vitg14_reg": Preset(_dinov2(_GIANT, 4), IMAGENET, _META),
    "dinov3_vits16": Preset(_dinov3(_SMALL), IMAGENET, _META_V3),
    "dinov3_vits16plus": Preset(_dinov3(_SMALL, hidden=1536, gated=True), IMAGENET, _META_V3),
    "dinov3_vitb16": Preset(_dinov3(_BASE), IMAGENET, _META_V3),
    "dinov3_vitl16": Preset(_dinov3(_LARGE), IMAGENET, _META_V3),
    "dinov3_vith16plus": Preset(_dinov3(_of(_HUGE, heads=20, patch=16), hidden=5120), IMAGENET, _META_V3),
}


def preset_of(name: str) -> Preset:
    """Returns a published vision transformer.

    Raises:
      ConfigError: there is none of this name; the message has the nearest ones.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(str(name), PRESETS, n=3, cutoff=0.3)
        raise ConfigError(
            f"there is no encoder {name!r}; "
            + (f"did you mean {' or '.join(near)}? " if near else "")
            + f"The encoders are {', '.join(PRESETS)}"
        )
    return PRESETS[name]
