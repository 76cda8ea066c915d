"""How far training data is from test data: the nine distances, and WSD.

Cosine distance is minus the cosine similarity, as in the paper: -1 for equal directions, +1 for
opposite ones. A distance between a training set S and a test set T is, over all pairs of S×T, their
average (`avg`), smallest (`min`) or largest (`max`), or the distance between the two mean
embeddings (`centroid`); the ninth compares the bigrams of the texts. Each is computed block by
block in one pass over the training rows; float32 products only find the pairs among which the
smallest or largest is, and every distance comes from float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from tma.arrange.exact_knn import nearest_blocks
from tma.arrange.ngrams import Bigrams, texts
from tma.arrange.products import DECIMALS, PAIRS, UNIT, Product, best_device
from tma.arrange.rows import BLOCK, Numbers, UnitRows, unit_pair
from tma.arrange.spec import MEASURES
from tma.errors import check_choice, wrong

Floats = NDArray[np.float64]
Embeddings = NDArray[np.floating] | UnitRows


SMALL = 1e-4
"""Squared Euclidean distances below this are computed from the difference of the two rows."""


class WeightedDistances(np.ndarray):
    """WSD of each training row, (n,) float64; `weight` is the w that was used."""

    weight: float

    def __array_finalize__(self, made_from: Any) -> None:
        self.weight = getattr(made_from, "weight", float("nan"))


def weighted_similarity_distance(
    X: Embeddings,
    Y: Embeddings,
    weight: float | None = None,
    *,
    numbers: Numbers | None = None,
    device: str | None = None,
) -> WeightedDistances:
    """Return WSD_i = MD_i + w·AD_i of each training row.

    AD_i is the average and MD_i the minimum of row i's cosine distances to all test rows.

    Args:
        X: (n, d) unit embeddings of the training rows.
        Y: (m, d) unit embeddings of the test rows.
        weight: w; None: mean(MD)/mean(AD) over the training rows, so that both terms weigh the
            same.
        numbers: ascending numbers of the training rows that count; None: all.
        device: where products are computed; None: a GPU if there is one.

    Returns:
        (n,) float64, smaller is nearer; `.weight` is w.

    Raises:
        ValueError: embeddings that cannot be used, or a mean AD of 0 without an explicit weight.

    Source: the paper's section on weighted similarity distance.
    """
    train, test = unit_pair(X, Y)
    mean = test.float32.astype(np.float64).mean(axis=0)
    found = [
        (-key / UNIT, -_products(block, mean))
        for block, _, key in nearest_blocks(train, test.float32, numbers, device=device)
    ]
    MD, AD = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return _weighted(MD, AD, weight)


def task_distances(
    X: Embeddings, Y: Embeddings, groups: Sequence[Numbers], weight: float | None = None
) -> WeightedDistances:
    """Return the WSD of each task's mean embedding, divided by its length.

    Args:
        X: (n, d) unit embeddings of the training rows.
        Y: (m, d) unit embeddings of the test rows.
        groups: the row numbers of each task.
        weight: w; None: mean(MD)/mean(AD) over the tasks.

    Returns:
        (len(groups),) float64, smaller is nearer; `.weight` is w.

    Raises:
        ValueError: embeddings that cannot be used, or a task whose rows cancel out.

    Source: the paper's section on granularity, coarse.
    """
    train, test = unit_pair(X, Y)
    rows = test.float32.astype(np.float64)
    MD, AD = np.empty(len(groups)), np.empty(len(groups))
    for task, mean in enumerate(_task_means(train, groups)):
        similarity = (rows * mean).sum(axis=1)
        MD[task], AD[task] = -np.round(similarity.max(), DECIMALS), -similarity.mean()
    return _weighted(MD, AD, weight)


def _weighted(MD: Floats, AD: Floats, weight: float | None) -> WeightedDistances:
    if weight is not None and not np.isfinite(weight):
        raise wrong("weight", weight, "a finite number, or None for mean(MD)/mean(AD)")
    if weight is None and abs(AD.mean()) < 1e-12:
        raise ValueError(
            f"mean(AD) is {AD.mean():.3g}, so that w = mean(MD)/mean(AD) has no value; give weight."
        )
    w = float(MD.mean() / AD.mean()) if weight is None else float(weight)
    out = (MD + w * AD).view(WeightedDistances)
    out.weight = w
    return out


def row_distances(
    X: Embeddings | Sequence[str],
    Y: Embeddings | Sequence[str],
    measure: str,
    *,
    numbers: Numbers | None = None,
    device: str | None = None,
) -> Floats:
    """Return the distance of each single training row to the test set: out[i] is of S = {i}.

    Args:
        X: (n, d) unit embeddings of the training rows; for `bigram_kl` their n texts.
        Y: (m, d) unit embeddings of the test rows; for `bigram_kl` their m texts.
        measure: one of `MEASURES`.
        numbers: ascending numbers of the training rows that count; None: all.
        device: where products are computed; None: a GPU if there is one.

    Returns:
        (n,) float64, smaller is nearer; cosine in [-1, 1], Euclidean in [0, 2], `bigram_kl` in nats
        from 0.

    Raises:
        ValueError: an unknown measure, embeddings that cannot be used, or, for a centroid, rows
            that cancel out.

    Source: the paper's section on similarity distances.
    """
    check_choice("measure", measure, MEASURES)
    if measure == "bigram_kl":
        return cast(Floats, Bigrams(texts(X, "X"), [texts(Y, "Y")]).rows(numbers)[0])
    train, test = unit_pair(cast(Embeddings, X), cast(Embeddings, Y))
    parts = list(_row_parts(train, test, measure, numbers, device))
    return np.concatenate(parts)


def prefix_distances(
    X: Embeddings | Sequence[str],
    Y: Embeddings | Sequence[str],
    steps: Sequence[int] | Numbers,
    measure: str = "cosine_avg",
    *,
    device: str | None = None,
) -> Floats:
    """Return the distance between the first rows of an arranged training set and the test set.

    Args:
        X: (n, d) unit embeddings of the training rows in the order of training; for `bigram_kl`
            their texts.
        Y: (m, d) unit embeddings of the test rows; for `bigram_kl` their texts.
        steps: how many training rows have been seen, each from 1 to n.
        measure: one of `MEASURES`.
        device: where products are computed; None: a GPU if there is one.

    Returns:
        (len(steps),) float64: out[k] is the distance between the sets S = X[:steps[k]] and T = Y.
        `bigram_kl` is KL(T ‖ S) in nats: what the data seen lacks of the test set weighs most.

    Raises:
        ValueError: an unknown measure, embeddings that cannot be used, steps out of range, or, for
            a centroid, rows that cancel out.

    Source: the paper's section on similarity distances; the direction and the smoothing of the KL
    divergence (0.5 for every bigram of X and Y) are this package's choice.
    """
    return cast(Floats, several_prefix_distances(X, [Y], steps, measure, device=device)[0])


def several_prefix_distances(
    X: Embeddings | Sequence[str],
    tests: Sequence[Embeddings | Sequence[str]],
    steps: Sequence[int] | Numbers,
    measure: str = "cosine_avg",
    *,
    device: str | None = None,
) -> Floats:
    """Return `prefix_distances` to each of several test sets; texts of X are counted once.

    Returns:
        (len(tests), len(steps)) float64: out[t] equals prefix_distances(X, tests[t], steps, …).

    Raises:
        ValueError: as `prefix_distances`, for any of the test sets.
    """
    check_choice("measure", measure, MEASURES)
    at = _checked_steps(steps, len(X))
    if measure == "bigram_kl":
        return Bigrams(texts(X, "X"), [texts(Y, "Y") for Y in tests]).prefixes(at)
    train = cast(Embeddings, X)
    return np.array([_prefixes(train, cast(Embeddings, Y), at, measure, device) for Y in tests])


def _prefixes(
    X: Embeddings, Y: Embeddings, at: Numbers, measure: str, device: str | None
) -> Floats:
    train, test = unit_pair(X, Y)
    if measure.endswith("centroid"):
        return _centroid_prefixes(train, test, at, measure)
    seen = np.arange(int(at.max(initial=1)))
    rows = np.concatenate(list(_row_parts(train, test, measure, seen, device)))
    if measure.endswith("avg"):
        return np.cumsum(rows)[at - 1] / at
    running = np.minimum if measure.endswith("min") else np.maximum
    accumulated: Floats = running.accumulate(rows)
    return accumulated[at - 1]


def _task_means(train: UnitRows, groups: Sequence[Numbers]) -> Floats:
    """Return the mean embedding of each group of rows, divided by its length, (t, d)."""
    group_of = np.full(len(train), -1)
    for group, numbers in enumerate(groups):
        group_of[numbers] = group
    sums = np.zeros((len(groups), train.width))
    for numbers, block in train.blocks(max(1, BLOCK // train.width)):
        member = group_of[numbers] >= 0
        np.add.at(sums, group_of[numbers[member]], block.numpy()[member].astype(np.float64))
    means: Floats = sums / np.array([[_length(total)] for total in sums])
    return means


def _products(block: torch.Tensor, column: Floats) -> Floats:
    """Return block @ column by numpy's own sum of each row, which no block size can change."""
    products: Floats = (block.numpy().astype(np.float64) * column).sum(axis=1)
    return products


def _row_parts(
    X: UnitRows, Y: UnitRows, measure: str, numbers: Numbers | None, device: str | None
) -> Iterator[Floats]:
    """Yield row_distances block by block."""
    test = Y.float32.astype(np.float64)
    kind, _, statistic = measure.partition("_")
    if kind == "cosine" and statistic in ("min", "max"):
        farthest = statistic == "max"
        for _, _, key in nearest_blocks(X, Y.float32, numbers, farthest=farthest, device=device):
            yield -key / UNIT
    elif kind == "euclidean" and statistic in ("min", "max"):
        yield from _euclidean_extremes(X, Y, numbers, statistic == "max", device)
    else:
        size = max(1, BLOCK // max(X.width, len(Y)))
        for _, block in X.blocks(size, numbers):
            yield _plain_distances(block, test, measure)


def _plain_distances(block: torch.Tensor, test: Floats, measure: str) -> Floats:
    rows, centre = block.numpy().astype(np.float64), test.mean(axis=0)
    if measure == "cosine_avg":
        return -_products(block, centre)
    if measure == "cosine_centroid":
        length = np.sqrt((rows**2).sum(axis=1))
        return cast(Floats, -_products(block, centre) / (length * _length(centre)))
    if measure == "euclidean_centroid":
        squared = ((rows - centre) ** 2).sum(axis=1)
        return cast(Floats, np.sqrt(squared))
    squared = (rows**2).sum(axis=1)[:, None] + (test**2).sum(axis=1) - 2 * rows @ test.T
    # The root of a small difference of large numbers is noise; those are taken directly.
    distance = np.sqrt(np.maximum(squared, SMALL))
    small = (squared < SMALL).nonzero()
    distance[small] = _apart(block, test, *small)
    return cast(Floats, distance.mean(axis=1))


def _apart(block: torch.Tensor, test: Floats, row: Numbers, column: Numbers) -> Floats:
    """Return the Euclidean distance of pairs from their difference, (p,)."""
    out = np.empty(len(row))
    for start in range(0, len(row), PAIRS):
        part = slice(start, start + PAIRS)
        difference = block.numpy()[row[part]].astype(np.float64) - test[column[part]]
        out[part] = np.sqrt((difference**2).sum(axis=1))
    return out


def _euclidean_extremes(
    X: UnitRows, Y: UnitRows, numbers: Numbers | None, farthest: bool, device: str | None
) -> Iterator[Floats]:
    """Yield the smallest or largest Euclidean distance of each row, from the difference itself.

    The product only finds the pairs that may have it: 1 - cosine would lose half of the digits of
    a small distance.
    """
    product = Product(device or best_device(), torch.float32)
    test = np.unique(Y.float32, axis=0)  # equal rows would all be compared
    tests, exact = product.factor(torch.tensor(test)), test.astype(np.float64)
    bias = torch.from_numpy((exact**2).sum(axis=1) / 2).to(product.device, torch.float32)
    for _, block in X.blocks(max(1, BLOCK // len(test)), numbers):
        scores, error = product.scores(block, tests)
        nearness = (scores - bias) * (-1 if farthest else 1)
        lowest = nearness.max(dim=1, keepdim=True).values - 2 * error - 1e-6
        row, column = (nearness >= lowest).nonzero().cpu().numpy().T
        distance = _apart(block, exact, row, column)
        extreme = np.maximum if farthest else np.minimum
        found: Floats = extreme.reduceat(distance, np.searchsorted(row, np.arange(len(block))))
        yield found


def _centroid_prefixes(X: UnitRows, Y: UnitRows, at: Numbers, measure: str) -> Floats:
    centre = Y.float32.astype(np.float64).mean(axis=0)
    total = np.zeros(X.width)
    stops, which = np.unique(at, return_inverse=True)
    found = np.empty(len(stops))
    start = 0
    for k, stop in enumerate(stops):
        size = max(1, BLOCK // X.width)
        for _, block in X.blocks(size, np.arange(start, stop)):
            total += block.numpy().sum(axis=0, dtype=np.float64)
        start, mean = stop, total / stop
        if measure == "cosine_centroid":
            found[k] = -(mean @ centre) / (_length(mean) * _length(centre))
        else:
            found[k] = np.sqrt(((mean - centre) ** 2).sum())
    return found[which]


def _length(mean: Floats) -> float:
    length = float(np.sqrt((mean**2).sum()))
    if length < 1e-12:
        raise ValueError("the embeddings of a set cancel out; their mean has no direction.")
    return length


def _checked_steps(steps: Sequence[int] | Numbers, rows: int) -> Numbers:
    at = np.asarray(steps)
    if at.ndim != 1 or (at.size and not np.issubdtype(at.dtype, np.integer)):
        raise wrong("steps", steps, "whole numbers of training rows")
    bad = np.flatnonzero((at < 1) | (at > rows))
    if bad.size:
        raise wrong(f"steps[{bad[0]}]", int(at[bad[0]]), f"1 to {rows}, the rows of X")
    return at.astype(np.int64)
