"""Weights on disk: reading files of all origins, filling networks, and what must not be separated from weights."""
