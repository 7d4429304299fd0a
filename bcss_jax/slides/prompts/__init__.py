"""Prompts on slides: what is pointed at is seen in a view, and a mask of the view becomes outlines on the slide."""
