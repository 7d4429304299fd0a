"""Finds the tissue of a slide."""
