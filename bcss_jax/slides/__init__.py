"""Whole slides: read at a model's resolution, cut into windows, segmented, stitched and written, in bounded memory.

The way through it: `reader` in processes of their own (`reader_pool`) -> `tissue` -> `windows` -> `blend` -> `tile_store`
-> `label_pyramid`, `polygons`, `geojson`, `overlay`, `summary`. `python -m bcss_jax.segment` is the command.
"""
