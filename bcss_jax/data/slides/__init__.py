"""Annotated slides as a data set: which slides there are, and the patches that are cut from them."""
