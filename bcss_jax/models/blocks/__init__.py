"""Layers and blocks that the networks share."""
