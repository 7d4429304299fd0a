"""Segments whole slides in bounded memory.

The rooms, in the order of the work: `reading` opens a slide and reads blocks of it in separate processes, `tissue`
finds where to look, `stitching` predicts and blends overlapping windows, `store` keeps labels and probabilities,
`regions` traces polygons, `outputs` writes the results, `scoring` compares them with masks, and `batch` runs all of
this over a list of slides. The command is `python -m bcss_jax.segment`.
"""
