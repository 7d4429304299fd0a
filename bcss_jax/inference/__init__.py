"""Trained models ready to predict: what evaluation and slide segmentation share."""
