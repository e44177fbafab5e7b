"""Metrics on arrays: pure functions, usable inside training and trials."""
