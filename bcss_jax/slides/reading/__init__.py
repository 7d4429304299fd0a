"""Reads slides and masks: backends, resolution, reader processes."""
