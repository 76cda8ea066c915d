"""The orders and distances straight from their definitions: slow, plain, the oracle of the tests.

Notation as in the paper: training instances i, test instances j, cosine distance
d(i, j) = -cos(x_i, y_j). Distances are rounded to 10 decimals, so that equal rows tie; a tie goes
to the lowest row number.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Unit = NDArray[np.float32]
SMOOTHING = 0.5


def cosine_distances(X: Unit, Y: Unit, decimals: int | None = 10) -> NDArray[np.float64]:
    """Return out[i, j] = -cos(x_i, y_j) for unit rows, (n, m), in float64, rounded or not."""
    out = np.empty((len(X), len(Y)))
    for i, x in enumerate(X.tolist()):
        for j, y in enumerate(Y.tolist()):
            # Products of float32 numbers, to multiples of 2⁻⁵²: what `exact_knn.exact_keys` adds.
            cosine = math.fsum((a * b + 3) - 3 for a, b in zip(x, y, strict=True))
            out[i, j] = -cosine if decimals is None else -round(cosine, decimals)
    return out


def euclidean_distances(X: Unit, Y: Unit) -> NDArray[np.float64]:
    """Return out[i, j] = |x_i - y_j|, (n, m), in float64."""
    return np.array([[math.dist(x, y) for y in Y.tolist()] for x in X.tolist()])


def test_centric_rounds(
    X: Unit,
    Y: Unit,
    limit: int | None = None,
    farthest: bool = False,
    *,
    collision: str = "set",
    within: str = "row",
) -> list[list[int]]:
    """Return the rounds of Test-centric Multi-turn Arrangement, one scan of all pairs a round.

    Source: the paper's section on TMA, where two test instances may take the same row (`set`) and
    a round stands in ascending row order (`row`). Variants of this package: under `each` the test
    instances choose in turn; under `similarity` a round stands by the pairs' distance.
    """
    D = cosine_distances(X, Y) * (-1 if farthest else 1)
    left, rounds, taken = set(range(len(X))), [], 0
    while left and (limit is None or taken < limit):
        nearest: dict[int, float] = {}
        for j in range(len(Y)):
            free = sorted(left - nearest.keys() if collision == "each" else left)
            if free:
                i = min(free, key=lambda i: (D[i, j], i))
                nearest[i] = min(nearest.get(i, math.inf), D[i, j])
        by = {i: (D_i if within == "similarity" else 0.0, i) for i, D_i in nearest.items()}
        rounds.append(sorted(by, key=by.__getitem__))
        left -= nearest.keys()
        taken += len(nearest)
    return rounds


def weighted_similarity_distance(
    X: Unit, Y: Unit, weight: float | None = None
) -> tuple[list[float], float]:
    """Return WSD_i = MD_i + w·AD_i, and w (default mean(MD)/mean(AD)).

    Only what decides between rows is rounded: MD, not the average AD.
    """
    MD = [min(row) for row in cosine_distances(X, Y).tolist()]
    AD = [math.fsum(row) / len(row) for row in cosine_distances(X, Y, None).tolist()]
    w = math.fsum(MD) / math.fsum(AD) if weight is None else weight
    return [md + w * ad for md, ad in zip(MD, AD, strict=True)], w


def sequence(values: Sequence[float]) -> list[int]:
    """Return the positions in ascending order of value; neighbours within 1e-10 are equal."""
    by_value = sorted(range(len(values)), key=lambda i: (values[i], i))
    groups: list[list[int]] = []
    for at, i in enumerate(by_value):
        if at and values[i] - values[by_value[at - 1]] <= 1e-10:
            groups[-1].append(i)
        else:
            groups.append([i])
    return [i for group in groups for i in sorted(group)]


def coarse_sequence(X: Unit, Y: Unit, tasks: Sequence[str], farthest: bool = False) -> list[int]:
    """Return rows task by task, the tasks by the WSD of their mean embedding of length 1."""
    names = list(dict.fromkeys(tasks))
    rows = [[i for i, task in enumerate(tasks) if task == name] for name in names]
    means = [np.mean(X[numbers].astype(np.float64), axis=0) for numbers in rows]
    unit = np.array([mean / math.hypot(*mean) for mean in means])
    wsd, _ = weighted_similarity_distance(unit, Y)
    return [i for t in sequence([-v if farthest else v for v in wsd]) for i in rows[t]]


def distance(X: Unit, Y: Unit, measure: str) -> float:
    """Return a cosine or Euclidean distance between the sets S = X and T = Y.

    Source: the paper's section on similarity distances.
    """
    kind, _, statistic = measure.partition("_")
    if statistic == "centroid":
        x, y = (np.mean(rows.astype(np.float64), axis=0) for rows in (X, Y))
        if kind == "euclidean":
            return math.dist(x, y)
        return -float(x @ y) / (math.hypot(*x) * math.hypot(*y))
    D = cosine_distances(X, Y) if kind == "cosine" else euclidean_distances(X, Y)
    pairs = D.ravel().tolist()
    return {"avg": math.fsum(pairs) / len(pairs), "min": min(pairs), "max": max(pairs)}[statistic]


def bigram_divergence(
    train: Sequence[str], test: Sequence[str], known: Sequence[str] = ()
) -> float:
    """Return KL(T ‖ S) of two sets' bigram distributions, in nats.

    Every bigram of the train, test or other known texts counts 0.5 more than it occurs.
    """
    S, T, V = _bigrams(train), _bigrams(test), _bigrams([*train, *test, *known])
    kinds, seen, tested = len(V), sum(S.values()), sum(T.values())
    p = {b: (T[b] + SMOOTHING) / (tested + SMOOTHING * kinds) for b in V}
    q = {b: (S[b] + SMOOTHING) / (seen + SMOOTHING * kinds) for b in V}
    return math.fsum(p[b] * math.log(p[b] / q[b]) for b in V)


def ngram_overlap(train: str, test: Sequence[str], n: int) -> float:
    """Return the largest share of a test text's word n-grams that a training text holds."""
    shares = [len(_grams(train, n) & g) / len(g) for g in (_grams(t, n) for t in test) if g]
    return max(shares, default=0.0)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _bigrams(texts: Sequence[str]) -> Counter[tuple[str, ...]]:
    listed = [_words(text) for text in texts]
    return Counter(pair for words in listed for pair in pairwise(words))


def _grams(text: str, n: int) -> set[tuple[str, ...]]:
    words = _words(text)
    starts = range(max(1, len(words) - n + 1)) if words else range(0)
    return {tuple(words[k : k + n]) for k in starts}
