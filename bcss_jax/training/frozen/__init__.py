"""Encoders that are not trained."""
