"""Segment Anything (SAM) and the image path of SAM 2.1: networks that segment what points, boxes and masks prompt."""
