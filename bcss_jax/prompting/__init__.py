"""Segmentation of what a user points at."""

from bcss_jax.prompting.predictor import Prediction, Predictor

__all__ = ["Prediction", "Predictor"]
