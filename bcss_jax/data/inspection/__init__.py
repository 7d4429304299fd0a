"""What `python -m bcss_jax.data inspect` and `verify` do with a data set."""
