"""Summaries of slides as segmenting writes them, for tests that read them."""

from bcss_jax.slides.slide_summary import ClassArea, SegmentedSlide, SlideSummary

COLORS = {"tumor": (230, 159, 0), "stroma": (0, 114, 178)}


def slide_summary(slide, width, height, grid, *, model="unet", pixels=(1000, 2000), names=tuple(COLORS), **more):
    """The summary of a slide of two classes; `more` replaces fields, for example `scores`."""
    classes = [
        ClassArea(value, name, color, count, count * grid.pixel_mm2)
        for value, (name, color, count) in enumerate(zip(names, COLORS.values(), pixels, strict=True), 1)
    ]
    fields = {
        "slide": SegmentedSlide(
            str(slide), slide.name, "png", width, height, (grid.mpp / grid.scale[0],) * 2, "slide", None
        ),
        "model": {"name": model, "label_scheme": {}, "mpp": grid.mpp, "window": 224, "params_sha256": "0" * 64},
        "grid": grid,
        "classes": tuple(classes),
        "tissue_area_mm2": sum(pixels) * grid.pixel_mm2,
        "unreadable_area_mm2": 0.0,
        "tumor_stroma_ratio": pixels[0] / pixels[1] if pixels[1] else None,
        "windows": {"computed": 1, "of": 1},
        "seams": {"score": None},
        "files": {"labels": "labels.ome.tif", "regions": None, "overlay": None, "probabilities": None},
        "resumed": False,
        "seconds": {"total": 1.0},
        "peak_memory_mb": 100,
        "versions": {},
        "device": {},
        "scores": None,
        "scores_of_region": None,
        "identity": {"files": {"slide": {"bytes": 1, "sha256_of_ends": "0" * 64}}},
    }
    return SlideSummary(**fields | more)
