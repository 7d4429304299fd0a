"""Classification networks and transformers that serve as encoders."""
