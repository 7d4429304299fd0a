"""Segment breast-cancer tissue (tumour, stroma) in H&E images with JAX."""

__version__ = "0.1.0"
