"""Training of SAM with simulated prompts."""
