"""Serves web pages that show slides with their segmentation: `python -m bcss_jax.view`."""
