"""Statistics of an evaluation: surface distances, calibration, bootstrap intervals."""
