"""What the package offers in Python; the commands call it too, and `bcss_jax` itself has the names."""
