"""Features of the tiles of a slide: which tiles, their features, and the file that holds them."""
