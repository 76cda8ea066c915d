"""Embeddings → a permutation of training rows: one function an order, numpy alone.

Test-centric Multi-turn Arrangement (TMA): in each round every test row takes the nearest training
row that is left; the round is the union of what was taken, in ascending order, and is removed
before the next. Each test row walks once along its own ranking of the training rows and skips what
is gone, so that a round costs what it removes and not another scan of all pairs.

A new order is a function of `Rows` under `@order("its_name")`; its name goes into
`config.ORDERS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tma.config import ORDERS
from tma.errors import ParameterError
from tma.neighbours import ranking

Order = NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """What an order may look at."""

    X: NDArray[np.float32]
    """Training embeddings, (n, d) unit rows."""
    Y: NDArray[np.float32]
    """Test embeddings, (m, d) unit rows."""
    tasks: tuple[str | None, ...] | None
    """Task of each training row, or None."""
    limit: int
    """N, rows wanted."""
    seed: int
    """Seed of the random choices."""


_ORDERS: dict[str, Callable[[Rows], Order]] = {}


def order(name: str) -> Callable[[Callable[[Rows], Order]], Callable[[Rows], Order]]:
    """Register a function of `Rows` as the order `name`."""

    def register(function: Callable[[Rows], Order]) -> Callable[[Rows], Order]:
        _ORDERS[name] = function
        return function

    return register


def arrange(
    name: str,
    X: NDArray[np.float32],
    Y: NDArray[np.float32],
    *,
    tasks: list[str | None] | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Order:
    """Return the training rows in the named order.

    Args:
        name: `random`: shuffled. `tma_min`: the N nearest in round order. `tma_max`: the N
            farthest, the farthest round first. `tma_nft`: N/2 nearest in round order, then N/2
            farthest with the farthest round last. `tma_fft`: N/2 farthest, the farthest round
            first, then N/2 nearest with the nearest round last. `tma_rt`: the rows of `tma_nft`,
            shuffled.
        X: (n, d) unit embeddings of the training rows.
        Y: (m, d) unit embeddings of the test rows.
        tasks: the task of each training row; None where there are no tasks.
        limit: N, rows wanted; None: all. TMA takes whole rounds, and so goes past N by less than
            one round (for the two-sided orders: by less than one near and one far round). Where
            the near and the far half of a two-sided order share rows, fewer than N come out.
        seed: seed of `random` and `tma_rt`.

    Returns:
        (k,) int64 row numbers, each at most once. A row that both halves of a two-sided order
        hold stays at its first place.

    Raises:
        ParameterError: unknown name, or `tasks` of another length than X.
        ValueError: embeddings that are empty, not finite, not unit rows, or of unequal width.

    Source: the paper's table of orders on Flan-mini.
    """
    if name not in _ORDERS:
        raise ParameterError(
            f"order={name!r} cannot be used; expected one of: {', '.join(ORDERS)}."
        )
    _check(X, Y)
    if tasks is not None and len(tasks) != len(X):
        raise ParameterError(f"tasks has {len(tasks)} entries; expected {len(X)}, one a row of X.")
    wanted = len(X) if limit is None else limit
    if wanted < 0:
        raise ParameterError(f"limit={limit} cannot be used; expected at least 0, or None for all.")
    return _ORDERS[name](Rows(X, Y, None if tasks is None else tuple(tasks), wanted, seed))


def test_centric_rounds(
    X: NDArray[np.float32],
    Y: NDArray[np.float32],
    limit: int | None = None,
    farthest: bool = False,
) -> list[Order]:
    """Return the rounds of TMA.

    Args:
        X: (n, d) unit embeddings of the training rows.
        Y: (m, d) unit embeddings of the test rows.
        limit: rows wanted; rounds come whole, until at least as many are taken. None: all.
        farthest: every test row takes the farthest training row that is left.

    Returns:
        One (k,) int64 array a round, ascending, 1 ≤ k ≤ m; two test rows may take the same row.

    Raises:
        ValueError: embeddings that are empty, not finite, not unit rows, or of unequal width.

    Source: the paper's section on TMA.
    """
    _check(X, Y)
    ranks = ranking(X, Y, farthest=farthest)
    left = np.ones(len(X), dtype=bool)
    position = np.zeros(len(Y), dtype=np.int64)
    remaining = len(X) if limit is None else min(limit, len(X))
    rounds: list[Order] = []
    while remaining > 0 and left.any():
        taken = np.unique(_next_left(ranks, position, left))
        left[taken] = False
        remaining -= len(taken)
        rounds.append(taken)
    return rounds


def _next_left(ranks: Order, position: Order, left: NDArray[np.bool_]) -> Order:
    """Move each test row on to its first training row that is left; return those rows, (m,)."""
    rows = np.arange(len(ranks))
    behind = ~left[ranks[rows, position]]
    while behind.any():
        position[behind] += 1
        behind[behind] = ~left[ranks[rows[behind], position[behind]]]
    return ranks[rows, position]


@order("random")
def _random(rows: Rows) -> Order:
    return np.random.default_rng(rows.seed).permutation(len(rows.X))[: rows.limit]


@order("tma_min")
def _min(rows: Rows) -> Order:
    return _joined(test_centric_rounds(rows.X, rows.Y, rows.limit))


@order("tma_max")
def _max(rows: Rows) -> Order:
    return _joined(test_centric_rounds(rows.X, rows.Y, rows.limit, farthest=True))


@order("tma_nft")
def _nft(rows: Rows) -> Order:
    near, far = _halves(rows)
    return _first_places(near + far[::-1])


@order("tma_fft")
def _fft(rows: Rows) -> Order:
    near, far = _halves(rows)
    return _first_places(far + near[::-1])


@order("tma_rt")
def _rt(rows: Rows) -> Order:
    return np.random.default_rng(rows.seed).permutation(_nft(rows))


def _halves(rows: Rows) -> tuple[list[Order], list[Order]]:
    # All rows wanted: half of them from each side would share some and so leave others out.
    whole = rows.limit >= len(rows.X)
    near_half, far_half = (rows.limit,) * 2 if whole else (-(-rows.limit // 2), rows.limit // 2)
    near = test_centric_rounds(rows.X, rows.Y, near_half)
    far = test_centric_rounds(rows.X, rows.Y, far_half, farthest=True)
    return near, far


def _joined(rounds: list[Order]) -> Order:
    return np.concatenate([np.empty(0, dtype=np.int64), *rounds])


def _first_places(rounds: list[Order]) -> Order:
    sequence = _joined(rounds)
    _, first = np.unique(sequence, return_index=True)
    return sequence[np.sort(first)]


def _check(X: NDArray[np.float32], Y: NDArray[np.float32]) -> None:
    for name, rows in (("X", X), ("Y", Y)):
        if rows.ndim != 2 or not len(rows):
            raise ValueError(
                f"{name} has shape {rows.shape}; expected at least one row, (rows, d)."
            )
        length = np.linalg.norm(rows.astype(np.float64, copy=False), axis=1)
        bad = np.flatnonzero(~(np.abs(length - 1) < 1e-3))
        if bad.size:
            raise ValueError(
                f"{name}[{bad[0]}] has length {length[bad[0]]:.6g}; expected 1. Divide each row by "
                "its Euclidean length (tma.embed does)."
            )
    if X.shape[1] != Y.shape[1]:
        raise ValueError(
            f"X has {X.shape[1]} columns and Y {Y.shape[1]}; embed both with one encoder."
        )
