"""What an order will do, before any GPU is spent on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tma.arrange.orders import ordered, prepared
from tma.arrange.rounds import Inputs, Texts
from tma.arrange.spec import Floats, Method, Numbers
from tma.encoders import Encoder
from tma.errors import check_length

Pair = tuple[NDArray[np.floating], NDArray[np.floating]]

HUBS = 10
"""Most hubs listed."""


@dataclass(frozen=True, eq=False)
class Audit:
    """Figures of one order; `print(audit)` shows them as a table."""

    method: Method
    instances: int
    """Training rows in the order."""
    rows: int
    """Training rows to choose from, n."""
    left_out: int
    """Training rows left out as near-duplicates of test rows."""
    near_sizes: tuple[int, ...]
    """Size of each nearest round; empty for orders without rounds."""
    far_sizes: tuple[int, ...]
    """Size of each farthest round."""
    coverage: Floats
    """(m,) cosine similarity of each test row's nearest row in the order; -1 for an empty order."""
    served: Numbers
    """(m,) how many rows of the order have this test row as their nearest."""
    hubs: tuple[tuple[int, int], ...]
    """(training row, number of test rows whose nearest training row it is), the most frequent
    first; only rows that are nearest to two or more."""
    truncated: tuple[float, float] | None
    """Share of the training and of the test texts that the encoder cuts; None: unknown."""
    agreement: float | None
    """Spearman's rank correlation of the training rows' WSD with that under another encoder."""
    shared: float | None
    """Share of the order's rows that the other encoder selects too."""

    def table(self) -> list[tuple[str, str]]:
        """Return the figures in words, (name, value)."""
        covered = " / ".join(f"{q:.3f}" for q in np.quantile(self.coverage, (0, 0.5, 1)))
        hubs = ", ".join(f"{row} (of {count})" for row, count in self.hubs) or "none"
        train, test = self.truncated or (None, None)
        return [
            ("order", self.method.name),
            ("rows", f"{self.instances:,} of {self.rows:,}"),
            ("near-duplicates left out", f"{self.left_out:,}"),
            ("nearest rounds", _sizes(self.near_sizes)),
            ("farthest rounds", _sizes(self.far_sizes)),
            ("similarity of each test row's nearest row (min/median/max)", covered),
            ("test rows that no row is nearest to", f"{(self.served == 0).sum():,}"),
            ("hubs: rows nearest to several test rows", hubs),
            ("training texts cut by the encoder", _shown(train, ".1%")),
            ("test texts cut by the encoder", _shown(test, ".1%")),
            ("rank correlation with the other encoder", _shown(self.agreement, ".3f")),
            ("rows that the other encoder selects too", _shown(self.shared, ".1%")),
        ]

    def __str__(self) -> str:
        width = max(len(name) for name, _ in self.table())
        return "\n".join(f"{name:<{width}}  {value}" for name, value in self.table())


def _sizes(sizes: tuple[int, ...]) -> str:
    if not sizes:
        return "none"
    return f"{len(sizes):,} of {min(sizes):,} to {max(sizes):,} rows"


def _shown(value: float | None, form: str) -> str:
    return "unknown" if value is None else f"{value:{form}}"


def audit(
    method: Method,
    X: NDArray[np.floating],
    Y: NDArray[np.floating],
    *,
    tasks: Sequence[str | None] | None = None,
    texts: Texts | None = None,
    encoder: Encoder | None = None,
    other: Pair | None = None,
) -> Audit:
    """Return an order's rounds, coverage and hubs, what the encoder cuts, and what another says.

    Args:
        method: name and settings of the order.
        X: (n, d) unit embeddings of the training rows.
        Y: (m, d) unit embeddings of the test rows.
        tasks: the task of each training row, for orders that go by tasks.
        texts: training and test texts, to count those that the encoder cuts.
        encoder: what made the embeddings; it tells which texts it cuts if it has a `truncated`
            method.
        other: embeddings of the same rows by another encoder, to compare the orders.

    Raises:
        ParameterError, ValueError: as `arrange`, or `other` of another number of rows.
    """
    inputs = prepared(method, X, Y, tasks=tasks, texts=texts)
    rows = ordered(inputs)
    near, far = inputs.sides
    coverage, served = _coverage(inputs.select(np.sort(rows)))
    agreement = shared = None
    if other is not None:
        check_length("other[0]", other[0], "X", len(X))
        check_length("other[1]", other[1], "Y", len(Y))
        agreement = _agreement((X, Y), other)
        second = prepared(method, *other, tasks=tasks, texts=texts)
        both = np.intersect1d(inputs.stored[rows], second.stored[ordered(second)])
        shared = len(both) / max(1, len(rows))
    return Audit(
        method,
        len(rows),
        len(X),
        inputs.left_out,
        tuple(map(len, near)),
        tuple(map(len, far)),
        coverage,
        served,
        _hubs(inputs),
        _truncated(texts, encoder),
        agreement,
        shared,
    )


def _truncated(texts: Texts | None, encoder: Encoder | None) -> tuple[float, float] | None:
    cut = getattr(encoder, "truncated", None)  # not every encoder cuts, or says so
    if texts is None or cut is None:
        return None
    return float(np.mean(cut(texts[0]))), float(np.mean(cut(texts[1])))


def _nearest(inputs: Inputs) -> Numbers:
    """Return the nearest row of X for each test row, (m,)."""
    from tma.arrange.exact_knn import Nearest

    return Nearest(inputs.X, inputs.Y, 1).first_left()


def _coverage(inputs: Inputs) -> tuple[Floats, Numbers]:
    """Return `Audit.coverage` and `Audit.served` of an order that takes all rows of X."""
    import torch

    from tma.arrange.exact_knn import UNIT, nearest_blocks, pair_keys

    tests = len(inputs.Y)
    if not len(inputs.X):
        return np.full(tests, -1.0), np.zeros(tests, dtype=np.int64)
    Y = torch.from_numpy(inputs.Y).double()
    keys = pair_keys(inputs.X, _nearest(inputs), Y, np.arange(tests))
    blocks = nearest_blocks(inputs.X, inputs.Y)
    served = sum(np.bincount(test, minlength=tests) for _, test, _ in blocks)
    return keys / UNIT, np.asarray(served)


def _hubs(inputs: Inputs) -> tuple[tuple[int, int], ...]:
    if not len(inputs.X):
        return ()
    row, count = np.unique(inputs.stored[_nearest(inputs)], return_counts=True)
    most = np.argsort(-count, kind="stable")[:HUBS]
    return tuple((int(row[at]), int(count[at])) for at in most if count[at] > 1)


def _agreement(one: Pair, other: Pair) -> float:
    from scipy.stats import spearmanr

    from tma.arrange.distances import weighted_similarity_distance

    distances = [weighted_similarity_distance(*pair) for pair in (one, other)]
    return float(spearmanr(*distances).statistic)
