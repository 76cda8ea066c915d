"""The orders straight from their definitions: slow, plain, and the oracle of the tests.

Notation as in the paper: training instances i, test instances j, cosine distance
d(i, j) = -cos(x_i, y_j). Distances are rounded to 10 decimals, so that equal rows tie; a tie goes
to the lowest row number.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def cosine_distances(X: NDArray[np.float32], Y: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return out[i, j] = -cos(x_i, y_j) for unit rows, (n, m), in float64."""
    out = np.empty((len(X), len(Y)))
    for i, x in enumerate(X.astype(np.float64)):
        for j, y in enumerate(Y.astype(np.float64)):
            out[i, j] = -round(float(np.dot(x, y)), 10)
    return out


def test_centric_rounds(
    X: NDArray[np.float32],
    Y: NDArray[np.float32],
    limit: int | None = None,
    farthest: bool = False,
) -> list[list[int]]:
    """Return the rounds of Test-centric Multi-turn Arrangement, one scan of all pairs a round.

    Source: the paper's section on TMA; rounds come whole and each is in ascending row order.
    """
    D = cosine_distances(X, Y) * (-1 if farthest else 1)
    left, rounds, taken = set(range(len(X))), [], 0
    while left and (limit is None or taken < limit):
        ascending = sorted(left)
        chosen = {min(ascending, key=lambda i: D[i, j]) for j in range(len(Y))}
        rounds.append(sorted(chosen))
        left -= chosen
        taken += len(chosen)
    return rounds
