"""Scores a slide's labels against its ground truth."""
