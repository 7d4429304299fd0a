"""Decoders on the tokens of a vision transformer."""
