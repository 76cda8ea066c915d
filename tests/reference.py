"""The orders and distances straight from their definitions: slow, plain, the oracle of the tests.

Notation as in the paper: training instances i, test instances j, cosine distance
d(i, j) = -cos(x_i, y_j). Distances are rounded to 10 decimals, so that equal rows tie; a tie goes
to the lowest row number.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Unit = NDArray[np.float32]
Pair = tuple[str, str]
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


def overlap(train: Sequence[Pair], test: Sequence[Pair], at: tuple[int, int]) -> float:
    """Return the share of a test text that a training exchange holds; 0: it is no leak.

    Texts are of lower-case words and blanks; `at`: numbers of the training and the test pair.
    """
    texts = [[(a.split(), b.split()) for a, b in part] for part in (train, test)]
    distinct = [{(tuple(a), tuple(b)) for a, b in texts[0]}, {(*a, *b) for a, b in texts[1]}]
    exchanges = [(*a, *b) for a, b in distinct[0]]

    def among(gram: Sequence[str], of: Iterable[Sequence[str]]) -> int:
        return sum(any(_at(gram, text)) for text in of)

    def weight(gram: Sequence[str]) -> float:
        return 1 / max(among(gram, distinct[1]), among(gram, exchanges) / 5, 1)

    (prompt, response), (asked, answer) = texts[1][at[1]], texts[0][at[0]]
    whole, exchange = prompt + response, asked + answer
    wide = min(3, len(whole))
    weights = [
        min(weight(whole[k : k + wide]) for k in range(len(whole) - wide + 1) if k <= p < k + wide)
        for p in range(len(whole))
    ]
    covered = [False] * len(whole)
    for n in {2, 3} if len(whole) > 2 else {len(whole)}:
        for k in range(len(whole) - n + 1):
            gram = whole[k : k + n]
            proves = (
                n != 2 or len(whole) == 2 or among(gram, exchanges) <= 5 + len(exchanges) / 1000
            )
            if proves and any(_at(gram, exchange)):
                covered[k : k + n] = [True] * n
    found = [word in exchange for word in whole]
    counted = [
        c or (f and among([word], exchanges) <= 5)
        for c, f, word in zip(covered, found, whole, strict=True)
    ]
    same = exchange == whole or (not response and asked == whole)
    if sum(weights) < 1 and not same:
        return 0.0
    views = [_share(weights, covered, found, counted)]
    for end in {len(prompt)} - {0, len(whole)}:
        rare = sum(c and w >= 0.5 for c, w in zip(covered[:end], weights, strict=False))
        if rare >= 4:
            views.append(_share(weights[:end], covered[:end], found[:end], counted[:end]))
    return max(views)


def _share(
    weights: list[float], covered: list[bool], found: list[bool], counted: list[bool]
) -> float:
    """Return the weighted share that is counted, or 0 where one of the conditions is not met."""
    n = len(weights)
    share = sum(w for w, c in zip(weights, counted, strict=True) if c) / sum(weights)
    level = sorted(weights)[-min(12, n)]
    even = [min(w / level, 1) for w in weights]
    telling = [c for c, e in zip(covered, even, strict=True) if e >= 0.7]
    gap = worst = 0.0
    for c, f in zip(covered, found, strict=True):
        gap = max(0.0, gap + (-1 if c else 0.25 if f else 1))
        worst = max(worst, gap)
    rare = sum(c and w >= 0.5 for c, w in zip(covered, weights, strict=True))
    enough = 2 * sum(covered) >= n or rare >= 8
    holds = 2 * sum(telling) >= len(telling) and worst <= 0.5 + math.log(n, 4) and enough
    return round(share, 10) if holds and round(share, 10) >= 0.5 else 0.0


def _at(gram: Sequence[str], text: Sequence[str]) -> Iterable[bool]:
    n = len(gram)
    return (list(text[k : k + n]) == list(gram) for k in range(len(text) - n + 1))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _bigrams(texts: Sequence[str]) -> Counter[tuple[str, ...]]:
    listed = [_words(text) for text in texts]
    return Counter(pair for words in listed for pair in pairwise(words))
