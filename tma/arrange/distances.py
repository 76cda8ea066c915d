"""How far training data is from test data: the nine distances, and WSD.

Cosine distance is minus the cosine similarity, as in the paper. A distance between a training set S
and a test set T is, over all pairs of S×T, their average (`avg`), smallest (`min`) or largest
(`max`), or that between the two mean embeddings (`centroid`); the ninth compares the bigrams of the
texts. Each takes one pass over the training rows, block by block, and comes from float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, chain, pairwise
from typing import Any, cast

import numpy as np

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

Data = Embeddings | Sequence[str]

SMALL = 1e-4
"""Squared Euclidean distances below this are computed from the difference of the two rows."""
SMOOTHING = 0.5
"""Added to the count of every bigram (Krichevsky and Trofimov 1981)."""


def weighted_similarity_distance(
    X: Embeddings,
    Y: Embeddings,
    weight: float | None = None,
    *,
    device: str | None = None,
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
    mean = test.float32.astype(np.float64).mean(axis=0)
    parts = [
        (-key / UNIT, -_products(block.numpy().astype(np.float64), mean))
        for block, _, key in nearest_blocks(train, test.float32, device=device)
    ]
    MD, AD = (np.concatenate(values) for values in zip(*parts, strict=True))
    return _weighted(MD, AD, weight)


def task_distances(
    X: Embeddings, Y: Embeddings, groups: Sequence[Numbers], weight: float | None = None
) -> Floats:
    """Return the WSD of each task's mean embedding, divided by its length, (len(groups),)."""
    train, test = unit_pair(X, Y)
    rows = test.float32.astype(np.float64)
    MD, AD = np.empty(len(groups)), np.empty(len(groups))
    for task, mean in enumerate(_task_means(train, groups)):
        similarity = (rows * mean).sum(axis=1)
        MD[task], AD[task] = -np.round(similarity.max(), DECIMALS), -similarity.mean()
    return _weighted(MD, AD, weight)


def _weighted(MD: Floats, AD: Floats, weight: float | None) -> Floats:
    if weight is not None and not np.isfinite(weight):
        raise wrong("weight", weight, "a finite number, or None for mean(MD)/mean(AD)")
    if weight is None and abs(AD.mean()) < 1e-12:
        raise ValueError(
            f"mean(AD) is {AD.mean():.3g}, so that w = mean(MD)/mean(AD) has no value; give weight."
        )
    return MD + (MD.mean() / AD.mean() if weight is None else weight) * AD


def _task_means(train: UnitRows, groups: Sequence[Numbers]) -> Floats:
    """Return the mean embedding of each group of rows, divided by its length, (t, d)."""
    group_of = np.full(len(train), -1)
    for group, numbers in enumerate(groups):
        group_of[numbers] = group
    sums = np.zeros((len(groups), train.width))
    for numbers, block in train.blocks(max(1, BLOCK // train.width)):
        member = group_of[numbers] >= 0
        np.add.at(sums, group_of[numbers[member]], block.numpy()[member].astype(np.float64))
    return sums / _lengths(sums)[:, None]


def row_distances(X: Data, Y: Data, measure: str, *, device: str | None = None) -> Floats:
    """Return the distance of each single training row to the test set: out[i] is of S = {i}.

    Args:
        X: (n, d) unit embeddings of the training rows; for `bigram_kl` their n texts.
        Y: (m, d) unit embeddings of the test rows; for `bigram_kl` their m texts.
        measure: one of `MEASURES`.
        device: where products are computed; None: a GPU if there is one.

    Returns:
        (n,) float64, smaller is nearer; cosine in [-1, 1], Euclidean in [0, 2], `bigram_kl` in nats
        from 0.

    Raises:
        ValueError: an unknown measure, data that cannot be used, or a centroid without direction.

    Source: the paper's section on similarity distances.
    """
    check_choice("measure", measure, MEASURES)
    if measure == "bigram_kl":
        of_texts: Floats = _Bigrams(X, [Y]).rows()[0]
        return of_texts
    return _rows(*unit_pair(cast(Embeddings, X), cast(Embeddings, Y)), measure, device)


def prefix_distances(
    X: Data,
    Y: Data,
    steps: Sequence[int] | Numbers,
    measure: str = "cosine_avg",
    *,
    device: str | None = None,
) -> Floats:
    """Return the distance between the first rows of an arranged training set and the test set.

    Args:
        X: (n, d) unit embeddings, or texts, of the training rows in the order of training.
        Y: (m, d) unit embeddings, or texts, of the test rows.
        steps: numbers of training rows seen, each from 1 to n.
        measure: one of `MEASURES`.
        device: where products are computed; None: a GPU if there is one.

    Returns:
        (len(steps),) float64: out[k] is the distance between the sets S = X[:steps[k]] and T = Y.
        `bigram_kl` is KL(T ‖ S) in nats: what the data seen lacks of the test set weighs most.

    Raises:
        ValueError: an unknown measure, data or steps that cannot be used, or a centroid without
            direction.

    Source: the paper's section on similarity distances; the direction and the smoothing of the KL
    divergence (0.5 for every bigram of X and Y) are this package's choice.
    """
    distances: Floats = several_prefix_distances(X, [Y], steps, measure, device=device)[0]
    return distances


def several_prefix_distances(
    X: Data,
    tests: Sequence[Data],
    steps: Sequence[int] | Numbers,
    measure: str = "cosine_avg",
    *,
    device: str | None = None,
) -> Floats:
    """Return out[t] = prefix_distances(X, tests[t], steps, …); texts of X are counted once."""
    check_choice("measure", measure, MEASURES)
    at = _checked_steps(steps, len(X))
    if measure == "bigram_kl":
        return _Bigrams(X, tests).prefixes(at)
    train = cast(Embeddings, X)
    return np.array([_prefixes(train, cast(Embeddings, Y), at, measure, device) for Y in tests])


def _checked_steps(steps: Sequence[int] | Numbers, rows: int) -> Numbers:
    at = np.asarray(steps)
    if at.ndim != 1 or (at.size and not np.issubdtype(at.dtype, np.integer)):
        raise wrong("steps", steps, "whole numbers of training rows")
    bad = np.flatnonzero((at < 1) | (at > rows))
    if bad.size:
        raise wrong(f"steps[{bad[0]}]", int(at[bad[0]]), f"1 to {rows}, the rows of X")
    return at.astype(np.int64)


def _prefixes(
    X: Embeddings, Y: Embeddings, at: Numbers, measure: str, device: str | None
) -> Floats:
    train, test = unit_pair(X, Y)
    if measure.endswith("centroid"):
        return _centroid_prefixes(train, test, at, measure)
    seen = UnitRows(train.array[: at.max(initial=1)], train.name)
    rows = _rows(seen, test, measure, device)
    if measure.endswith("avg"):
        return np.cumsum(rows)[at - 1] / at
    running: Floats = (np.minimum if measure.endswith("min") else np.maximum).accumulate(rows)
    return running[at - 1]


def _centroid_prefixes(X: UnitRows, Y: UnitRows, at: Numbers, measure: str) -> Floats:
    total = np.zeros(X.width)
    stops, which = np.unique(at, return_inverse=True)
    means = np.empty((len(stops), X.width))
    for k, (start, stop) in enumerate(pairwise([0, *stops.tolist()])):
        for _, block in X.blocks(max(1, BLOCK // X.width), np.arange(start, stop)):
            total += block.numpy().sum(axis=0, dtype=np.float64)
        means[k] = total / stop
    return _to_centre(means, Y.float32.astype(np.float64).mean(axis=0), measure)[which]


def _rows(X: UnitRows, Y: UnitRows, measure: str, device: str | None) -> Floats:
    """Return `row_distances` of embeddings."""
    return np.concatenate([*_row_blocks(X, Y, measure, device)])


def _row_blocks(X: UnitRows, Y: UnitRows, measure: str, device: str | None) -> Iterator[Floats]:
    test = Y.float32.astype(np.float64)
    search: dict[str, Any] = {"farthest": measure.endswith("max"), "device": device}
    if measure in ("cosine_min", "cosine_max"):
        for _, _, key in nearest_blocks(X, Y.float32, **search):
            yield -key / UNIT
    elif measure in ("euclidean_min", "euclidean_max"):
        # From the difference itself: 1 - cosine would lose half the digits of a small distance.
        extreme = np.maximum if measure.endswith("max") else np.minimum
        for _, row, column, start in close_pairs(X, Y.float32, euclidean=True, **search):
            yield extreme.reduceat(_apart(X, row, test, column), start)
    else:
        for numbers, block in X.blocks(max(1, BLOCK // max(X.width, len(Y)))):
            rows = block.numpy().astype(np.float64)
            if measure == "euclidean_avg":
                yield _mean_apart(X, numbers, rows, test)
            else:
                yield _to_centre(rows, test.mean(axis=0), measure)


def _to_centre(rows: Floats, centre: Floats, measure: str) -> Floats:
    """Return cosine_avg, which is linear in the test rows, or a distance to the centroid."""
    if measure == "cosine_avg":
        return -_products(rows, centre)
    if measure == "cosine_centroid":
        return -_products(rows, centre) / (_lengths(rows) * _lengths(centre[None]))
    return np.sqrt(_products(rows - centre, rows - centre))


def _mean_apart(X: UnitRows, numbers: Numbers, rows: Floats, test: Floats) -> Floats:
    """Return the average Euclidean distance of each row of a block to the test rows."""
    squared = (rows**2).sum(axis=1)[:, None] + (test**2).sum(axis=1) - 2 * rows @ test.T
    # The root of a small difference of large numbers is noise; those are taken directly.
    distance = np.sqrt(np.maximum(squared, SMALL))
    row, column = (squared < SMALL).nonzero()
    distance[row, column] = _apart(X, numbers[row], test, column)
    mean: Floats = distance.mean(axis=1)
    return mean


def _apart(X: UnitRows, row: Numbers, test: Floats, column: Numbers) -> Floats:
    """Return the Euclidean distance of the pairs X[row[p]], test[column[p]], (p,)."""
    out = np.empty(len(row))
    for part in slices(len(row), PAIRS):
        difference = X.take(row[part]).numpy().astype(np.float64) - test[column[part]]
        out[part] = np.sqrt((difference**2).sum(axis=1))
    return out


def _products(rows: Floats, column: Floats) -> Floats:
    """Return rows @ column by numpy's own sum of each row, which no block size can change."""
    products: Floats = (rows * column).sum(axis=1)
    return products


def _lengths(means: Floats) -> Floats:
    length = np.sqrt(_products(means, means))
    if (length < 1e-12).any():
        raise ValueError("the embeddings of a set cancel out; their mean has no direction.")
    return length


class _Bigrams:
    """Counts of word bigrams, and KL divergences between sets of texts.

    A test set is compared over its own bigrams and those of the training texts alone.
    """

    def __init__(self, train: Data, tests: Sequence[Data]) -> None:
        from sklearn.feature_extraction.text import CountVectorizer

        sides = [_texts(train, "X"), *(_texts(test, "Y") for test in tests)]
        words = {"token_pattern": r"\w+", "ngram_range": (2, 2)}
        vectorizer = CountVectorizer(**words, dtype=np.int64)
        try:
            counts = vectorizer.fit_transform(chain.from_iterable(sides))
        except ValueError as error:
            raise _no_bigram() from error
        ends = accumulate(map(len, sides), initial=0)
        self._train, *self._tests = (counts[start:stop] for start, stop in pairwise(ends))
        # Sums go by column: the order of first use would make them depend on all texts.
        self._train.sort_indices()

    def rows(self) -> Floats:
        """Return KL(T ‖ {i}) of each test set and training text, (tests, texts)."""
        gained = self._train.astype(np.float64)
        gained.data = np.log(gained.data + SMOOTHING) - np.log(SMOOTHING)
        return self._divergences(
            lambda p: np.log(SMOOTHING) + gained @ p, self._train.sum(axis=1).A1
        )

    def prefixes(self, at: Numbers) -> Floats:
        """Return KL(T ‖ S) of each test set and the first rows, (tests, len(at))."""
        stops, which = np.unique(at, return_inverse=True)
        gains = [*self._gains(stops)]

        def cross(p: Floats) -> Floats:
            added = (p[kinds] @ gain for kinds, gain in gains)
            return np.cumsum([np.log(SMOOTHING), *added])[1:]

        totals = np.cumsum(self._train.sum(axis=1).A1)[stops - 1]
        return self._divergences(cross, totals)[:, which]

    def _gains(self, stops: Numbers) -> Iterator[tuple[Numbers, Floats]]:
        """Yield the bigrams between two stops, and by how much log(count_S + smoothing) grows."""
        seen = np.zeros(self._train.shape[1])
        for start, stop in pairwise([0, *stops]):
            new = self._train[start:stop].sum(axis=0).A1
            kinds = np.flatnonzero(new)
            before = seen[kinds]
            seen[kinds] += new[kinds]
            yield kinds, np.log(seen[kinds] + SMOOTHING) - np.log(before + SMOOTHING)

    def _divergences(self, cross: Callable[[Floats], Floats], totals: Numbers) -> Floats:
        """Return Σ p_T log p_T - Σ p_T log p_S of each test set T and several sets S.

        `cross` gives Σ p_T log(count_S + smoothing) of each S, `totals` its number of bigrams.
        """
        in_train, out = self._train.sum(axis=0).A1 > 0, []
        for test in self._tests:  # one at a time: each needs a number for every bigram
            counts = test.sum(axis=0).A1
            known = in_train | (counts > 0)
            if not known.any():
                raise _no_bigram()
            added = SMOOTHING * int(known.sum())
            p = np.where(known, (counts + SMOOTHING) / (counts.sum() + added), 0)
            negative_entropy = (p[known] * np.log(p[known])).sum()
            divergence = negative_entropy - cross(p) + np.log(totals + added)
            out.append(np.maximum(divergence, 0))  # below 0 by rounding alone
        return np.array(out).reshape(len(self._tests), len(totals))


def _no_bigram() -> ValueError:
    return ValueError("X and Y hold no bigram: no text has two words.")


def _texts(data: object, name: str) -> Sequence[str]:
    """Return a list of texts; refuse anything else."""
    texts = [] if isinstance(data, str) else list(cast(Sequence[str], data))
    if not texts or not all(isinstance(text, str) for text in texts):
        raise wrong(name, type(data).__name__, "texts, at least one, with measure='bigram_kl'")
    return texts
