"""Stores the labels and probabilities of a slide while it is segmented."""
