"""Traces exact polygons of the regions in a slide's labels."""
