"""Random changes of training images and their labels, on the host or on the device."""
