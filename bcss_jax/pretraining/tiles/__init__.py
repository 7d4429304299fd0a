"""Tiles without labels for pretraining: where they come from, and the batches they are read in."""
