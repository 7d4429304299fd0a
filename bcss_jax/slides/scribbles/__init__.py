"""Segmentation from a few strokes: features that stay as they are, and a small classifier of them."""
