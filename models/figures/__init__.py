"""Panels of the paper's figures."""
