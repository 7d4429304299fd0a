"""The size of pixels: what files say about it, and whether it can be true."""
