"""Annotations of slides: read from files, and drawn as labels of a label scheme."""
