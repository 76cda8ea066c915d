"""Test-centric Multi-turn Arrangement (TMA): the rounds.

In each round every test row takes the nearest training row that is left; what was taken is removed
before the next round. Each test row walks once along its own list of nearest rows and skips what is
gone (`tma.arrange.exact_knn`): a round costs what it removes and not another scan of all pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tma.arrange.spec import Collision, Method, Numbers, Within

if TYPE_CHECKING:
    import pandas as pd

    from tma.arrange.exact_knn import UnitRows

Texts = tuple[Sequence[str], Sequence[str]]
"""Training and test texts."""


@dataclass(frozen=True)
class Inputs:
    """What an order may look at: all rows, or the pool in the sequence drawn; no near-duplicates.

    Rows of a pool thus tie by that sequence and not by how data is stored.
    """

    method: Method
    X: UnitRows
    Y: NDArray[np.float32]
    stored: Numbers
    """The caller's number of each row of X, (n,)."""
    left_out: int = 0
    """Leaks and near-duplicates of test rows, which are not in X."""
    leaks: pd.DataFrame | None = None
    """What `tma.leaks` found, if it was asked: rows by the caller's numbers."""
    tasks: Sequence[object] | None = None
    """Task of each row of X."""
    texts: Texts | None = None
    device: str | None = None

    def select(self, numbers: Numbers) -> Inputs:
        """Return these rows of X alone, with what belongs to them."""
        tasks, texts = self.tasks, self.texts
        return replace(
            self,
            X=self.X.select(numbers),
            stored=self.stored[numbers],
            tasks=None if tasks is None else [tasks[row] for row in numbers],
            texts=None if texts is None else ([texts[0][row] for row in numbers], texts[1]),
        )

    @property
    def limit(self) -> int:
        """N, rows in the order."""
        limit = self.method.limit
        return len(self.X) if limit is None else min(limit, len(self.X))

    @property
    def random(self) -> np.random.Generator:
        """A generator that starts from the seed."""
        return np.random.default_rng(self.method.seed)

    @cached_property
    def sides(self) -> tuple[list[Numbers], list[Numbers]]:
        """The nearest and the farthest rounds that an order of TMA takes."""
        name, limit = self.method.name, self.limit
        if name.startswith("tma_rounds"):
            return _chosen_rounds(self), []
        near, far = -(-limit // 2), limit // 2
        if limit >= len(self.X):  # halves would share rows: the first side takes all
            near, far = (0, limit) if name == "tma_fft" else (limit, 0)
        if name.startswith("tma_min"):
            near, far = limit, 0
        elif name.startswith("tma_max"):
            near, far = 0, limit
        elif not name.startswith("tma_"):
            near = far = 0
        return list(rounds(self, near)), list(rounds(self, far, farthest=True))


def test_centric_rounds(
    X: NDArray[np.floating],
    Y: NDArray[np.floating],
    limit: int | None = None,
    farthest: bool = False,
    *,
    collision: Collision = "set",
    within: Within = "row",
    exact_limit: bool = False,
    seed: int = 0,
    device: str | None = None,
) -> list[Numbers]:
    """Return the rounds of TMA.

    Args:
        X: (n, d) unit embeddings of the training rows.
        Y: (m, d) unit embeddings of the test rows.
        limit: rows to take; rounds come whole, until at least as many are taken. None: all.
        farthest: every test row takes the farthest training row that is left.
        collision: see `tma.Method`, as for the next three.
        within: the sequence inside a round.
        exact_limit: cut the last round.
        seed: seed of the shuffling.
        device: where products are computed; None: a GPU if there is one. No influence on rounds.

    Returns:
        One (k,) int64 array a round, 1 ≤ k ≤ m.

    Raises:
        ParameterError: an unknown rule or limit; it is a ValueError.
        ValueError: embeddings that are empty, not finite, not unit rows, or of unequal width.

    Source: the paper's section on TMA; its rules are `collision="set"` and `within="row"`.
    """
    from tma.arrange.exact_knn import unit_pair

    rules: dict[str, Any] = {"collision": collision, "within": within, "exact_limit": exact_limit}
    method = Method("tma_max" if farthest else "tma_min", limit=limit, seed=seed, **rules)
    train, test = unit_pair(X, Y)
    near, far = Inputs(method, train, test.float32, np.arange(len(train)), device=device).sides
    train.check()  # without a round nothing has been read
    return near + far


def rounds(inputs: Inputs, limit: int, *, farthest: bool = False) -> Iterator[Numbers]:
    """Yield rounds, each in its own sequence, until `limit` rows are taken or none is left."""
    from tma.arrange.exact_knn import Nearest

    method, in_turn = inputs.method, inputs.method.collision == "each"
    # A stream of its own for each side, apart from `Inputs.random`.
    random = np.random.default_rng([method.seed, 2 + farthest])
    # Equal test rows take the same row, and so count once.
    Y = inputs.Y if in_turn else np.unique(inputs.Y, axis=0)
    nearest = Nearest(inputs.X, Y, limit, farthest=farthest, device=inputs.device)
    taken = 0
    while taken < min(limit, len(inputs.X)):
        picked = nearest.take_in_turn() if in_turn else nearest.first_left()
        rows = np.unique(picked[picked >= 0])
        nearest.take(rows)
        if method.within == "similarity":
            rows = _by_similarity(inputs.X, Y, picked, farthest=farthest)
        elif method.within == "shuffled":
            rows = random.permutation(rows)
        else:
            rows = rows[np.argsort(inputs.stored[rows])]
        yield cut(rows, limit - taken) if method.exact_limit else rows
        taken += len(rows)


def _chosen_rounds(inputs: Inputs) -> list[Numbers]:
    first, stop = inputs.method.rounds
    # A round holds at most m rows, so that this many rows are not reached before round j.
    enough = len(inputs.X) if stop is None else stop * len(inputs.Y)
    chosen: list[Numbers] = []
    left = inputs.limit
    for rows in islice(rounds(inputs, enough), first, stop):
        if left <= 0:
            break
        chosen.append(cut(rows, left) if inputs.method.exact_limit else rows)
        left -= len(rows)
    return chosen


def cut(rows: Numbers, count: int) -> Numbers:
    """Return the `count` lowest rows of a round (of a pool: those drawn first), in its sequence.

    Orders that differ only in how a round is sorted thus take the same rows.
    """
    return rows[np.isin(rows, np.sort(rows)[:count])]


def _by_similarity(
    X: UnitRows, Y: NDArray[np.float32], picked: Numbers, *, farthest: bool
) -> Numbers:
    """Return a round's rows, the nearest to the test row that took it first."""
    import torch

    test = np.flatnonzero(picked >= 0)
    row = picked[test]
    key = X.keys(row, torch.from_numpy(Y).double(), test)
    return first_places([row[np.lexsort((row, key if farthest else -key))]])


def first_places(parts: Sequence[Numbers]) -> Numbers:
    """Return the rows of all parts in sequence, each at its first place only."""
    sequence = joined(parts)
    _, first = np.unique(sequence, return_index=True)
    return sequence[np.sort(first)]


def joined(parts: Sequence[Numbers]) -> Numbers:
    """Return row numbers one part after the other; there may be none."""
    return np.concatenate([np.empty(0, dtype=np.int64), *parts])
