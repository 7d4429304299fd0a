"""Scores of networks that take prompts: how many clicks an object needs."""
