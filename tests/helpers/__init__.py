"""Fixtures and small data that several test files share."""
