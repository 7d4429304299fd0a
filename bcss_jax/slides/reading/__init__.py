"""Reads slides and masks: file formats, resolution, and reader processes that survive damaged files."""
