"""What embeddings say of an order: its rounds, how near it comes to the test rows, hubs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tma.arrange.orders import ordered, prepared
from tma.arrange.rounds import Inputs, Texts
from tma.arrange.spec import Exchanges, Floats, Method, Numbers
from tma.errors import check_length

Pair = tuple[NDArray[np.floating], NDArray[np.floating]]

HUBS = 10
"""Most hubs listed."""


@dataclass(frozen=True, eq=False)
class RowsAudit:
    """What embeddings say of an order."""

    method: Method
    order: Numbers
    """(k,) training rows in their order."""
    rows: int
    """Training rows to choose from, n."""
    left_out: int
    """Training rows left out as leaks or near-duplicates of test rows."""
    near_sizes: tuple[int, ...]
    """Size of each nearest round; empty for orders without rounds."""
    far_sizes: tuple[int, ...]
    """Size of each farthest round."""
    nearest: Numbers
    """(k,) the test row that is nearest to each row of the order."""
    similarity: Floats
    """(k,) their cosine similarity."""
    nearest_train: Numbers
    """(m,) the row of the order that is nearest to each test row; empty for an empty order."""
    coverage: Floats
    """(m,) their cosine similarity; -1 for an empty order."""
    hubs: tuple[tuple[int, int], ...]
    """(training row, number of test rows whose nearest training row it is), the most frequent
    first; only rows that are nearest to two or more."""
    agreement: float | None
    """Spearman's rank correlation of the training rows' WSD with that under another encoder."""
    shared: float | None
    """Share of the order's rows that the other encoder selects too."""

    @property
    def served(self) -> Numbers:
        """(m,) how many rows of the order have this test row as their nearest."""
        return np.bincount(self.nearest, minlength=len(self.coverage))

    def table(self) -> list[tuple[str, str]]:
        """Return the figures in words, (name, value)."""
        covered = " / ".join(f"{q:.3f}" for q in np.quantile(self.coverage, (0, 0.5, 1)))
        hubs = "; ".join(f"row {row} ({count})" for row, count in self.hubs[:3]) or "none"
        none, tests = (self.served == 0).sum(), len(self.coverage)
        other = "not asked"
        if self.agreement is not None:
            other = f"rank correlation {self.agreement:.3f}, {self.shared:.1%} of the rows too"
        return [
            ("order", self.method.name),
            ("rows in the order", f"{len(self.order):,} of {self.rows:,}"),
            ("left out as in the test set", f"{self.left_out:,}"),
            ("nearest rounds", _sizes(self.near_sizes)),
            ("farthest rounds", _sizes(self.far_sizes)),
            ("nearest row of each test row", f"{covered} (min, median, max)"),
            ("test rows nearest to no row", f"{none:,} of {tests:,}"),
            ("rows nearest to several tests", hubs),
            ("another encoder", other),
        ]

    def __str__(self) -> str:
        return "\n".join(f"{name:<29} {value}" for name, value in self.table())


def _sizes(sizes: tuple[int, ...]) -> str:
    if not sizes:
        return "none"
    return f"{len(sizes):,} of {min(sizes):,} to {max(sizes):,} rows"


def audit_rows(
    method: Method,
    X: NDArray[np.floating],
    Y: NDArray[np.floating],
    *,
    tasks: Sequence[str | None] | None = None,
    texts: Texts | None = None,
    exchanges: tuple[Exchanges, Exchanges] | None = None,
    other: Pair | None = None,
) -> RowsAudit:
    """Return an order's rounds, coverage and hubs, and what other embeddings say of it.

    Args:
        method: name and settings of the order.
        X: (n, d) unit embeddings of the training rows.
        Y: (m, d) unit embeddings of the test rows.
        tasks: the task of each training row, for orders that go by tasks.
        texts: training and test texts, for `measure="bigram_kl"`.
        exchanges: those of the training and of the test rows, for `drop_leaks`.
        other: embeddings of the same rows by another encoder, to compare the orders.

    Raises:
        ParameterError, ValueError: as `arrange`, or `other` of another number of rows.
    """
    given: dict[str, Any] = {"tasks": tasks, "texts": texts, "exchanges": exchanges}
    inputs, second = prepared(method, X, Y, **given), None
    if other is not None:
        check_length("other[0]", other[0], "X", len(X))
        check_length("other[1]", other[1], "Y", len(Y))
        again = prepared(method, *other, **given)
        second = again, again.stored[ordered(again)]
    return of_rows(inputs, inputs.stored[ordered(inputs)], second)


def of_rows(
    inputs: Inputs, order: Numbers, second: tuple[Inputs, Numbers] | None = None
) -> RowsAudit:
    """Return the audit of an order of `inputs.stored`; `second`: the same by another encoder."""
    near, far = inputs.sides
    nearest, similarity, nearest_train, coverage = _coverage(inputs, order)
    agreement = shared = None
    if second is not None:
        agreement = _agreement(inputs, second[0])
        shared = len(np.intersect1d(order, second[1])) / max(1, len(order))
    return RowsAudit(
        inputs.method,
        order,
        len(inputs.stored) + inputs.left_out,
        inputs.left_out,
        tuple(map(len, near)),
        tuple(map(len, far)),
        nearest,
        similarity,
        nearest_train,
        coverage,
        _hubs(nearest_train if len(order) == len(inputs.X) else inputs.stored[_nearest(inputs)]),
        agreement,
        shared,
    )


def _nearest(inputs: Inputs) -> Numbers:
    """Return the nearest row of X for each test row, (m,)."""
    from tma.arrange.exact_knn import Nearest

    return Nearest(inputs.X, inputs.Y, 1).first_left()


def _coverage(inputs: Inputs, order: Numbers) -> tuple[Numbers, Floats, Numbers, Floats]:
    """Return `RowsAudit`'s nearest, similarity, nearest_train and coverage."""
    import torch

    from tma.arrange.exact_knn import UNIT, nearest_blocks, pair_keys

    tests = len(inputs.Y)
    if not len(order):
        nothing = np.empty(0, dtype=np.int64)
        return nothing, np.empty(0), nothing, np.full(tests, -1.0)
    by_number = np.argsort(inputs.stored, kind="stable")
    at = by_number[np.searchsorted(inputs.stored[by_number], np.sort(order))]
    chosen = inputs.select(at)  # in stored sequence, which is read from disk fastest
    Y = torch.from_numpy(inputs.Y).double()
    nearest_train = _nearest(chosen)
    keys = pair_keys(chosen.X, nearest_train, Y, np.arange(tests))
    blocks = [(test, key) for _, test, key in nearest_blocks(chosen.X, inputs.Y)]
    nearest, similarity = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    place = np.searchsorted(chosen.stored, order)
    return nearest[place], similarity[place] / UNIT, chosen.stored[nearest_train], keys / UNIT


def _hubs(nearest: Numbers) -> tuple[tuple[int, int], ...]:
    """Return `RowsAudit.hubs` from the nearest training row of each test row."""
    row, count = np.unique(nearest, return_counts=True)
    most = np.argsort(-count, kind="stable")[:HUBS]
    return tuple((int(row[at]), int(count[at])) for at in most if count[at] > 1)


def _agreement(one: Inputs, other: Inputs) -> float:
    """Return the rank correlation of WSD over the rows that both have to choose from."""
    from scipy.stats import spearmanr

    from tma.arrange.distances import weighted_similarity_distance

    _, *at = np.intersect1d(one.stored, other.stored, return_indices=True)
    chosen = [inputs.select(rows) for inputs, rows in zip((one, other), at, strict=True)]
    distances = [weighted_similarity_distance(inputs.X, inputs.Y) for inputs in chosen]
    return float(spearmanr(*distances).statistic)
