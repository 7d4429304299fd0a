"""Pictures of a pretraining: its curves, what the encoder looks at, and the main directions of its features."""
