"""Exact diffusion of class scores over images: the random-walk cascade of DifNet without N x N matrices."""
