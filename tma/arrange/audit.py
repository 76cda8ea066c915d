"""What an order will do, before any GPU is spent on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tma.arrange.orders import arrange_by, ordered, prepared, sides
from tma.arrange.rounds import Order, Rows, Texts
from tma.arrange.spec import Method
from tma.embed import Encoder
from tma.errors import ParameterError

Pair = tuple[NDArray[np.floating], NDArray[np.floating]]

HUBS = 10
"""Hubs that are listed at most."""


@dataclass(frozen=True, eq=False)
class Audit:
    """Figures of one order; `print(audit)` shows them as a table."""

    method: Method
    """Name of the order and its settings."""
    instances: int
    """Training rows in the order."""
    rows: int
    """Training rows to choose from, n."""
    left_out: int
    """Training rows left out as near-duplicates of test rows."""
    near_sizes: tuple[int, ...]
    """Size of each nearest round; empty for orders without them."""
    far_sizes: tuple[int, ...]
    """Size of each farthest round."""
    coverage: NDArray[np.float64]
    """(m,) cosine similarity of each test row's nearest training row in the order; -1 for an empty
    order."""
    served: NDArray[np.int64]
    """(m,) how many rows of the order have this test row as their nearest."""
    hubs: tuple[tuple[int, int], ...]
    """(training row, number of test rows whose nearest training row it is), the most wanted first;
    rows that a single test row wants are none."""
    truncated: tuple[float, float] | None
    """Share of the training and of the test texts that the encoder cuts; None where unknown."""
    agreement: float | None
    """Spearman's rank correlation of the training rows' WSD under another encoder; None where
    none was given."""
    shared: float | None
    """Share of the order's rows that the other encoder selects too."""

    def table(self) -> list[tuple[str, str]]:
        """Return the figures in words, one (name, value) a line."""
        low, middle, high = np.quantile(self.coverage, (0, 0.5, 1)).tolist()
        wanted = ", ".join(f"{row} (by {count})" for row, count in self.hubs) or "none"
        return [
            ("order", self.method.name),
            ("rows", f"{self.instances:,} of {self.rows:,}"),
            ("near-duplicates left out", f"{self.left_out:,}"),
            ("nearest rounds", _sizes(self.near_sizes)),
            ("farthest rounds", _sizes(self.far_sizes)),
            (
                "similarity of each test row's nearest (least/median/most)",
                f"{low:.3f} / {middle:.3f} / {high:.3f}",
            ),
            ("test rows that no row is nearest to", f"{(self.served == 0).sum():,}"),
            ("hubs: row (wanted by test rows)", wanted),
            ("training texts cut by the encoder", _share(self.truncated and self.truncated[0])),
            ("test texts cut by the encoder", _share(self.truncated and self.truncated[1])),
            ("rank correlation with the other encoder", _ratio(self.agreement)),
            ("rows that it selects too", _share(self.shared)),
        ]

    def __str__(self) -> str:
        width = max(len(name) for name, _ in self.table())
        return "\n".join(f"{name:<{width}}  {value}" for name, value in self.table())


def audit(
    method: Method,
    X: NDArray[np.floating],
    Y: NDArray[np.floating],
    *,
    tasks: Sequence[str | None] | None = None,
    texts: Texts | None = None,
    encoder: Encoder | None = None,
    other: Pair | None = None,
    device: str | None = None,
) -> Audit:
    """Return the figures of an order.

    Args:
        method: name and settings of the order.
        X: (n, d) unit embeddings of the training rows.
        Y: (m, d) unit embeddings of the test rows.
        tasks: the task of each training row, for orders that go by tasks.
        texts: training and test texts, to count those that the encoder cuts.
        encoder: what made the embeddings; it tells which texts it cuts if it has a `truncated`
            method, as `MiniLM` does.
        other: embeddings of the same rows by another encoder, to compare the orders.
        device: where products are computed; None: a GPU if there is one.

    Returns:
        The order's rounds, coverage, hubs, and what the encoder cuts and another one agrees with.

    Raises:
        ParameterError, ValueError: as `arrange`, or `other` of another number of rows.
    """
    rows = prepared(method, X, Y, tasks=tasks, texts=texts, device=device)
    made = ordered(rows)
    order, (near, far) = rows.stored[made], sides(rows)
    coverage, served = _coverage(rows, made)
    agreement = shared = None
    if other is not None:
        for name, one, two in (("X", X, other[0]), ("Y", Y, other[1])):
            if len(one) != len(two):
                raise ParameterError(f"other has {len(two)} rows for {name}; expected {len(one)}.")
        agreement = _agreement((X, Y), other, device)
        second, _ = arrange_by(method, *other, tasks=tasks, texts=texts, device=device)
        shared = len(np.intersect1d(order, second)) / max(1, len(order))
    return Audit(
        method,
        len(order),
        len(X),
        rows.left_out,
        tuple(map(len, near)),
        tuple(map(len, far)),
        coverage,
        served,
        _hubs(rows),
        _truncated(texts, encoder),
        agreement,
        shared,
    )


def _truncated(texts: Texts | None, encoder: Encoder | None) -> tuple[float, float] | None:
    counts = getattr(encoder, "truncated", None)  # not every encoder cuts, or says so
    if texts is None or counts is None:
        return None
    train, test = (float(np.mean(counts(side))) for side in texts)
    return train, test


def _nearest(rows: Rows, choice: Order) -> Order:
    """Return the nearest of some training rows for each test row, (m,)."""
    from tma.arrange.exact_knn import Nearest

    left = np.zeros(len(rows.X), dtype=bool)
    left[choice] = True
    nearest = Nearest(rows.X, rows.Y, left, 1, device=rows.device)
    return nearest.first_left(np.arange(len(rows.Y)))


def _coverage(rows: Rows, order: Order) -> tuple[NDArray[np.float64], Order]:
    import torch

    from tma.arrange.exact_knn import nearest_blocks
    from tma.arrange.products import UNIT, exact_keys

    tests = len(rows.Y)
    if not len(order):
        return np.full(tests, -1.0), np.zeros(tests, dtype=np.int64)
    keys = exact_keys(rows.X.take(_nearest(rows, order)), torch.from_numpy(rows.Y).double())
    blocks = nearest_blocks(rows.X, rows.Y, np.sort(order), device=rows.device)
    served = sum(np.bincount(best, minlength=tests) for _, best, _ in blocks)
    return keys / UNIT, np.asarray(served)


def _hubs(rows: Rows) -> tuple[tuple[int, int], ...]:
    if not len(rows.numbers):
        return ()
    nearest = rows.stored[_nearest(rows, rows.numbers)]
    row, count = np.unique(nearest, return_counts=True)
    most = np.argsort(-count, kind="stable")[:HUBS]
    return tuple((int(row[at]), int(count[at])) for at in most if count[at] > 1)


def _agreement(one: Pair, other: Pair, device: str | None) -> float:
    from scipy.stats import spearmanr

    from tma.arrange.distances import weighted_similarity_distance

    distances = [weighted_similarity_distance(*pair, device=device) for pair in (one, other)]
    return float(spearmanr(*distances).statistic)


def _sizes(sizes: tuple[int, ...]) -> str:
    if not sizes:
        return "none"
    return f"{len(sizes):,} of {min(sizes):,} to {max(sizes):,} rows"


def _ratio(value: float | None) -> str:
    return "not known" if value is None else f"{value:.3f}"


def _share(share: float | None) -> str:
    return "not known" if share is None else f"{share:.1%}"
