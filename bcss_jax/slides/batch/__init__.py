"""Segments the slides of a list, each into its own folder."""
