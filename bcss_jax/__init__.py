"""Segment breast-cancer tissue (tumor, stroma) in H&E images with JAX."""

__version__ = "0.1.0"
