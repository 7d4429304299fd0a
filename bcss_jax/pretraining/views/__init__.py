"""Random views of tiles for pretraining, made on the device."""
