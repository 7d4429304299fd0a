"""Writes the result files of a slide."""
