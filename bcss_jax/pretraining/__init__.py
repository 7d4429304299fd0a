"""Pretraining of vision transformers on tiles without labels."""
