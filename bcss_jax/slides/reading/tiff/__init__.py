"""TIFF files as containers: what pictures they hold, which one is the slide, and how its pixels are stored."""
