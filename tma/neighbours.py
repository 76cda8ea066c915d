"""For every test row, the training rows from nearest to farthest, with ties settled exactly.

Similarities are taken in float64 and rounded to 10 decimals: float32 unit rows carry about seven,
so equal rows tie whatever the summation order of the matrix product, and a tie goes to the lowest
row number. The test rows are handled in blocks, which bounds the memory beside the result; the
result itself is the whole (m, n) ranking.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

DECIMALS = 10
"""Decimals of a cosine similarity that count."""
_BLOCK_BYTES = 64 * 2**20


def similarities(train: NDArray[np.float32], test: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return cosine similarities of unit rows, (m, n): out[j, i] = test[j] · train[i], rounded."""
    product = test.astype(np.float64) @ train.astype(np.float64).T
    return np.round(product, DECIMALS)


def ranking(
    train: NDArray[np.float32], test: NDArray[np.float32], *, farthest: bool = False
) -> NDArray[np.int64]:
    """Rank all training rows for every test row.

    Args:
        train: (n, d) unit rows.
        test: (m, d) unit rows.
        farthest: rank from the farthest instead of the nearest.

    Returns:
        (m, n) row numbers: out[j, 0] is the nearest training row of test row j; among rows of
        equal similarity the lowest number comes first, for `farthest` too.
    """
    out = np.empty((len(test), len(train)), dtype=np.int64)
    block = max(1, _BLOCK_BYTES // (8 * max(1, len(train))))
    for start in range(0, len(test), block):
        part = similarities(train, test[start : start + block])
        out[start : start + block] = np.argsort(part if farthest else -part, axis=1, kind="stable")
    return out
