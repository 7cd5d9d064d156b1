"""Tiny models and exact checks for tests, shipped for the authors of plugins."""
