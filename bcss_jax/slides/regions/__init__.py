"""Traces exact polygons of a slide's labels."""
