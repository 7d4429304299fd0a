"""The page: a template, and what its scripts need to know of the slide."""

from typing import Any

from bcss_jax.annotator.drawing.geojson_file import SlideFacts
from bcss_jax.annotator.drawing.palette import Palette
from bcss_jax.annotator.next_region.next_regions import NextRegions
from bcss_jax.common.html import html_environment
from bcss_jax.errors import printable
from bcss_jax.viewer.deep_zoom import DeepZoom


def view_of(
    slide: SlideFacts,
    bounds: tuple[int, int, int, int] | None,
    geometry: DeepZoom,
    palette: Palette,
    *,
    file: str,
    model: str,
    digest: str,
    regions: NextRegions | None = None,
) -> dict[str, Any]:
    """Returns what the page shows and its scripts need, as JSON.

    Args:
      slide: the slide.
      bounds: of the scanned area in pixels of level 0, if the slide states it.
      geometry: of its tiles.
      palette: the classes.
      file: path of the file that is saved.
      model: name of the network.
      digest: what the slide is recognized by.
      regions: that are worth annotating, if that was asked for.
    """
    return {
        "title": printable(slide.name),
        "size": list(slide.size),
        "mpp": slide.mpp[0],
        "bounds": list(bounds) if bounds and bounds[2] > 0 and bounds[3] > 0 else None,
        "slide": {"width": geometry.width, "height": geometry.height, "maxLevel": geometry.max_level},
        "classes": [{"name": each.name, "color": "#" + bytes(each.color).hex()} for each in palette.classes],
        "file": printable(file),
        "model": printable(model),
        "digest": digest,
        "regions": None if regions is None else {"members": regions.members, "of": len(regions)},
    }


def html(view: dict[str, Any]) -> str:
    """Returns the page."""
    return html_environment("bcss_jax.annotator").get_template("annotator.html").render(view=view)
