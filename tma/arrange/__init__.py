"""Embeddings → a permutation; no language model in sight."""

from tma.arrange import orders  # registers the orders under their names

__all__ = ["orders"]
