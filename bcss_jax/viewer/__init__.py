"""A web page on this machine that shows a slide with its segmentation over it: `python -m bcss_jax.view`."""
