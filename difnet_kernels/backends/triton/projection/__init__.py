"""Ψ, features to embeddings (Ψ1-Ψ4): the two directions, what they share, their schedule and their launch rows."""
