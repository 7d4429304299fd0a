"""Files of SAM: the names in them, the form of network that they belong to, and loading."""
