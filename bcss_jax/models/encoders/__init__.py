"""Classification networks and transformers used as encoders."""
