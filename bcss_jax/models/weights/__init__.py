"""Reading and writing weights of other programs."""
