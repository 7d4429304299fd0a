"""Prompts that a user would give, made from ground truth: at random for training, by rules for evaluation."""
