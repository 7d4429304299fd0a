"""Stores the labels and probabilities of a slide, during segmentation and afterward."""
