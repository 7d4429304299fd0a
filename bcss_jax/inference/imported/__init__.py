"""Runs made from weights that other programs trained: one reader for each kind of file, and the writer of the run."""
