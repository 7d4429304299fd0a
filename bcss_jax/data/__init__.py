"""Looks at a data set before anything is trained on it: `python -m bcss_jax.data inspect` and `verify`."""
