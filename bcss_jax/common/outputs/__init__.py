"""Keeps the outputs of commands apart from their inputs and from the files of others."""
