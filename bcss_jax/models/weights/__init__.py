"""Weights of other programs: reading, conversion and writing."""
