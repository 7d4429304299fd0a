"""The stain of training sets and slides: how it is measured, stored, and changed into another."""
