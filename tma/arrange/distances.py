"""How far training data is from test data: the nine distances, and WSD.

Cosine distance is minus the cosine similarity, as in the paper. A distance between a training set S
and a test set T is, over all pairs of S×T, their average (`avg`), smallest (`min`) or largest
(`max`), or that between the two mean embeddings (`centroid`); the ninth compares the bigrams of the
texts. Each takes one pass over the training rows, block by block, and comes from float64.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain, pairwise
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from tma.arrange.exact_knn import (
    BLOCK,
    DECIMALS,
    PAIRS,
    UNIT,
    Embeddings,
    UnitRows,
    close_pairs,
    nearest_blocks,
    slices,
    unit_pair,
)
from tma.arrange.spec import MEASURES, Floats, Numbers
from tma.errors import check_choice, wrong

Rows = NDArray[np.floating]
Data = Embeddings | Sequence[str]

SMALL = 1e-4
"""Squared Euclidean distances below this are computed from the difference of the two rows."""
SMOOTHING = 0.5
"""Added to the count of every bigram (Krichevsky and Trofimov 1981)."""


def weighted_similarity_distance(
    X: Embeddings, Y: Embeddings, weight: float | None = None, *, device: str | None = None
) -> Floats:
    """Return WSD_i = MD_i + w·AD_i of each training row.

    AD_i is the average and MD_i the minimum of row i's cosine distances to all test rows.

    Args:
        X: (n, d) unit embeddings of the training rows.
        Y: (m, d) unit embeddings of the test rows.
        weight: w; None: mean(MD)/mean(AD), so that both terms weigh the same.
        device: where products are computed; None: a GPU if there is one.

    Returns:
        (n,) float64, smaller is nearer.

    Raises:
        ValueError: embeddings that cannot be used, or a mean AD of 0 without an explicit weight.

    Source: the paper's section on weighted similarity distance.
    """
    train, test = unit_pair(X, Y)
    MD, AD = wsd_terms(train, test.float32, device)
    return weighted(MD, AD, weight)


def wsd_terms(X: UnitRows, Y: NDArray[np.float32], device: str | None = None) -> Floats:
    """Return MD and AD of each training row, (2, n)."""
    mean = Y.astype(np.float64).mean(axis=0)
    parts = [
        (-key / UNIT, -_products(block.numpy(), mean))
        for block, _, key in nearest_blocks(X, Y, device=device)
    ]
    return np.concatenate(parts, axis=1)


def task_distances(
    X: UnitRows, Y: Embeddings, groups: Sequence[Numbers], weight: float | None = None
) -> Floats:
    """Return the WSD of the mean embedding of each task's rows, divided by its length, (tasks,)."""
    train, test = unit_pair(X, Y)
    rows = test.float32.astype(np.float64)
    sums = np.array([_total(train, numbers) for numbers in groups])
    means = sums / _lengths(sums)[:, None]
    similarity = np.array([_products(rows, mean) for mean in means])
    MD, AD = -np.round(similarity.max(axis=1), DECIMALS), -similarity.mean(axis=1)
    return weighted(MD, AD, weight)


def weighted(MD: Floats, AD: Floats, weight: float | None) -> Floats:
    """Return MD + w·AD, (n,); weight None: w = mean(MD)/mean(AD)."""
    if weight is not None and not np.isfinite(weight):
        raise wrong("weight", weight, "a finite number, or None for mean(MD)/mean(AD)")
    if weight is None and abs(AD.mean()) < 1e-12:
        raise ValueError(
            f"mean(AD) is {AD.mean():.3g}, so that w = mean(MD)/mean(AD) has no value; give weight."
        )
    return MD + (MD.mean() / AD.mean() if weight is None else weight) * AD


def _total(X: UnitRows, numbers: Numbers) -> Floats:
    """Return the sum of some rows, (d,)."""
    total = np.zeros(X.width)
    for _, block in X.blocks(max(1, BLOCK // X.width), numbers):
        total += block.numpy().sum(axis=0, dtype=np.float64)
    return total


def prefix_distances(
    X: Data, Y: Data, steps: Sequence[int] | Numbers, measure: str = "cosine_avg"
) -> Floats:
    """Return the distance between the first rows of an arranged training set and the test set.

    Args:
        X: (n, d) unit embeddings, or texts, of the training rows in the order of training.
        Y: (m, d) unit embeddings, or texts, of the test rows.
        steps: numbers of training rows seen, each from 1 to n.
        measure: one of `MEASURES`.

    Returns:
        (len(steps),) float64: out[k] is the distance between the sets S = X[:steps[k]] and T = Y.
        Cosine in [-1, 1], Euclidean in [0, 2]. `bigram_kl` is KL(T ‖ S) in nats, from 0: what the
        data seen lacks of the test set weighs most.

    Raises:
        ValueError: an unknown measure, data or steps that cannot be used, or a centroid without
            direction.

    Source: the paper's section on similarity distances; the direction and the smoothing of the KL
    divergence (0.5 for every bigram of X and Y) are this package's choice.
    """
    distances: Floats = several_prefix_distances(X, [Y], steps, measure)[0]
    return distances


def several_prefix_distances(
    X: Data,
    tests: Sequence[Data],
    steps: Sequence[int] | Numbers,
    measure: str = "cosine_avg",
) -> Floats:
    """Return out[t] = prefix_distances(X, tests[t], steps, …); texts of X are counted once."""
    check_choice("measure", measure, MEASURES)
    at = _checked_steps(steps, len(X))
    if measure == "bigram_kl":
        return bigram_divergences(X, tests, at)
    train = cast(Embeddings, X)
    return np.array([_prefixes(train, cast(Embeddings, Y), at, measure) for Y in tests])


def _checked_steps(steps: Sequence[int] | Numbers, rows: int) -> Numbers:
    at = np.asarray(steps)
    if at.ndim != 1 or (at.size and not np.issubdtype(at.dtype, np.integer)):
        raise wrong("steps", steps, "whole numbers of training rows")
    bad = np.flatnonzero((at < 1) | (at > rows))
    if bad.size:
        raise wrong(f"steps[{bad[0]}]", int(at[bad[0]]), f"1 to {rows}, the rows of X")
    return at.astype(np.int64)


def _prefixes(X: Embeddings, Y: Embeddings, at: Numbers, measure: str) -> Floats:
    train, test = unit_pair(X, Y)
    if measure.endswith("centroid"):
        return _centroid_prefixes(train, test, at, measure)
    seen = UnitRows(train.array[: at.max(initial=1)], train.name)
    rows = row_distances(seen, test, measure)
    if measure.endswith("avg"):
        return np.cumsum(rows)[at - 1] / at
    running: Floats = (np.minimum if measure.endswith("min") else np.maximum).accumulate(rows)
    return running[at - 1]


def _centroid_prefixes(X: UnitRows, Y: UnitRows, at: Numbers, measure: str) -> Floats:
    total = np.zeros(X.width)
    stops, which = np.unique(at, return_inverse=True)
    means = np.empty((len(stops), X.width))
    for k, (start, stop) in enumerate(pairwise([0, *stops.tolist()])):
        total += _total(X, np.arange(start, stop))
        means[k] = total / stop
    return _to_centre(means, Y.float32.astype(np.float64).mean(axis=0), measure)[which]


def row_distances(X: Embeddings, Y: Embeddings, measure: str, device: str | None = None) -> Floats:
    """Return the cosine or Euclidean distance of each single training row to the test set, (n,)."""
    return np.concatenate([*_row_blocks(*unit_pair(X, Y), measure, device)])


def _row_blocks(X: UnitRows, Y: UnitRows, measure: str, device: str | None) -> Iterator[Floats]:
    test = Y.float32.astype(np.float64)
    search: dict[str, Any] = {"farthest": measure.endswith("max"), "device": device}
    if measure in ("cosine_min", "cosine_max"):
        for _, _, key in nearest_blocks(X, Y.float32, **search):
            yield -key / UNIT
    elif measure in ("euclidean_min", "euclidean_max"):
        # From the difference itself: 1 - cosine would lose half the digits of a small distance.
        extreme = np.maximum if measure.endswith("max") else np.minimum
        yield from close_pairs(
            lambda _, row, column, start: extreme.reduceat(_apart(X, row, test, column), start),
            X,
            Y.float32,
            euclidean=True,
            **search,
        )
    elif measure == "euclidean_avg":
        yield from _mean_apart(X, test)
    else:
        centre = test.mean(axis=0)
        size = max(1, BLOCK // X.width)
        yield from X.map_blocks(lambda _, block: _to_centre(block.numpy(), centre, measure), size)


def _to_centre(rows: Rows, centre: Floats, measure: str) -> Floats:
    """Return cosine_avg, which is linear in the test rows, or a distance to the centroid."""
    if measure == "cosine_avg":
        return -_products(rows, centre)
    if measure == "cosine_centroid":
        return -_products(rows, centre) / (_lengths(rows) * _lengths(centre[None]))
    distance: Floats = np.sqrt(((rows - centre) ** 2).sum(axis=1))
    return distance


def _mean_apart(X: UnitRows, test: Floats) -> Iterator[Floats]:
    """Yield the average Euclidean distances of blocks of rows to the test rows."""
    import torch

    # |x - y|² = (x, |x|², 1) · (-2y, 1, |y|²)
    squares = (test**2).sum(axis=1, keepdims=True)
    factor = torch.from_numpy(np.hstack([-2 * test, np.ones_like(squares), squares]))

    def apply(numbers: Numbers, block: torch.Tensor) -> Floats:
        rows = block.double()
        squares = rows.square().sum(dim=1, keepdim=True)
        squared = torch.hstack([rows, squares, torch.ones_like(squares)]) @ factor.T
        near = squared < SMALL if float(squared.amin()) < SMALL else None
        distance = squared.clamp_(min=SMALL).sqrt_()
        if near is not None:
            # The root of a small difference of large numbers is noise; those are taken directly.
            row, column = near.numpy().nonzero()
            distance.numpy()[row, column] = _apart(X, numbers[row], test, column)
        return distance.mean(dim=1).numpy()

    return X.map_blocks(apply, max(1, BLOCK // 4 // max(X.width, len(test))))


def _apart(X: UnitRows, row: Numbers, test: Floats, column: Numbers) -> Floats:
    """Return the Euclidean distance of the pairs X[row[p]], test[column[p]], (p,)."""
    out = np.empty(len(row))
    for part in slices(len(row), PAIRS):
        difference = X.take(row[part]).numpy().astype(np.float64) - test[column[part]]
        out[part] = np.sqrt((difference**2).sum(axis=1))
    return out


def _products(rows: Rows, column: Floats) -> Floats:
    """Return rows @ column by numpy's own sum of each row, which no block size can change."""
    return np.concatenate(
        [
            np.multiply(rows[part], column, dtype=np.float64).sum(axis=1)
            for part in slices(len(rows), PAIRS)
        ]
    )


def _lengths(means: Rows) -> Floats:
    length: Floats = np.sqrt((means.astype(np.float64) ** 2).sum(axis=1))
    if (length < 1e-12).any():
        raise ValueError("the embeddings of a set cancel out; their mean has no direction.")
    return length


def bigram_divergences(train: Data, tests: Sequence[Data], at: Numbers | None = None) -> Floats:
    """Return KL(T ‖ S) in nats of each test set T and each set S, (tests, sets).

    S is the first at[k] training texts; without `at` each single one. A test set is compared over
    its own bigrams and those of the training texts: other test sets change none of its numbers.
    """
    from scipy.sparse import csr_matrix, vstack

    S, *counts = _bigrams([_texts(train, "X"), *(_texts(test, "Y") for test in tests)])
    T = vstack([csr_matrix(count.sum(axis=0)) for count in counts])
    in_train = S.sum(axis=0).A1 > 0
    known = in_train.sum() + (T[:, ~in_train] > 0).sum(axis=1).A1
    if not known.all():
        raise _no_bigram()
    totals, sums, products = _gains(S[:, in_train], T[:, in_train], at)
    size = T.sum(axis=1).A1 + SMOOTHING * known
    # KL = Σ p log p - Σ p log q with p = (T + 0.5)/size and q = (S + 0.5)/(total + 0.5·known).
    cross = np.log(SMOOTHING) + (products + SMOOTHING * sums) / size[:, None]
    divergence: Floats = _negative_entropy(T, size, known)[:, None] - cross
    divergence += np.log(totals + SMOOTHING * known[:, None])
    return np.maximum(divergence, 0)  # below 0 by rounding alone


def _gains(S: Any, T: Any, at: Numbers | None) -> tuple[Numbers, Floats, Floats]:
    """Return of each set, with g = log(count + 0.5) - log(0.5): Σ count, Σ g, and Σ T·g, (t, s)."""
    if at is None:
        gains = S.astype(np.float64)
        gains.data = np.log1p(gains.data / SMOOTHING)
        return S.sum(axis=1).A1, gains.sum(axis=1).A1, (T @ gains.T).toarray()
    stops, which = np.unique(at, return_inverse=True)
    seen = np.zeros(S.shape[1])
    sums, products = np.empty(len(stops)), np.empty((T.shape[0], len(stops)))
    for k, (start, stop) in enumerate(pairwise([0, *stops.tolist()])):
        seen += S[start:stop].sum(axis=0).A1
        gain = np.log1p(seen / SMOOTHING)
        sums[k], products[:, k] = gain.sum(), T @ gain
    return np.cumsum(S.sum(axis=1).A1)[at - 1], sums[which], products[:, which]


def _negative_entropy(T: Any, size: Floats, known: Numbers) -> Floats:
    """Return Σ p log p over the known bigrams of each row of counts, p = (T + 0.5)/size."""
    own = np.diff(T.indptr)
    row = np.repeat(np.arange(len(own)), own)
    p, absent = (T.data + SMOOTHING) / size[row], SMOOTHING / size
    absent_all: Floats = (known - own) * absent * np.log(absent)
    return absent_all + np.bincount(row, p * np.log(p), len(own))


def _bigrams(sides: Sequence[Sequence[str]]) -> list[Any]:
    """Return the counts of word bigrams of several lists of texts, each sparse, (texts, kinds)."""
    from scipy.sparse import csr_matrix

    number: defaultdict[str, int] = defaultdict(lambda: len(number))
    found = re.compile(r"\w+").findall
    texts = [
        np.fromiter(map(number.__getitem__, found(text.lower())), np.int64)
        for text in chain.from_iterable(sides)
    ]
    # By the alphabet, so that other test sets do not change the sequence in which bigrams add up.
    place = np.empty(len(number), dtype=np.int64)
    place[[number[word] for word in sorted(number)]] = np.arange(len(number))
    words = place[np.concatenate(texts)]
    row = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
    inside = row[1:] == row[:-1]
    kinds, kind = np.unique((words[:-1] * len(number) + words[1:])[inside], return_inverse=True)
    if not len(kinds):
        raise _no_bigram()
    shape = len(texts), len(kinds)
    counts = csr_matrix((np.ones(len(kind), np.int64), (row[1:][inside], kind)), shape=shape)
    ends = accumulate(map(len, sides), initial=0)
    return [counts[start:stop] for start, stop in pairwise(ends)]


def _no_bigram() -> ValueError:
    return ValueError("X and Y hold no bigram: no text has two words.")


def _texts(data: object, name: str) -> Sequence[str]:
    """Return a list of texts; refuse anything else."""
    texts = [] if isinstance(data, str) else list(cast(Sequence[str], data))
    if not texts or not all(isinstance(text, str) for text in texts):
        raise wrong(name, type(data).__name__, "texts, at least one, with measure='bigram_kl'")
    return texts
