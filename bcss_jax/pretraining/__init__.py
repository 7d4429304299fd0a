"""Pretraining of a vision transformer on images without labels: DINO, and DINOv2's additions to it."""
