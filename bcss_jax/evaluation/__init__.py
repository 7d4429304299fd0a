"""What a trained model is worth: scores of a set of images, with intervals, and tables of several models.

`surface_distance`, `calibration` and `bootstrap` compute; `scores` puts everything together as JSON; `per_image` and
`tables` write files. Nothing here runs a model.
"""
