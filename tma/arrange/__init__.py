"""Embeddings → a permutation; no language model in sight."""
