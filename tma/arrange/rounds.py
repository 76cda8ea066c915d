"""Test-centric Multi-turn Arrangement (TMA): the rounds.

In each round every test row takes the nearest training row that is left; what was taken is removed
before the next round. Each test row walks once along its own list of nearest rows and skips what is
gone (`tma.arrange.exact_knn`): a round costs what it removes and not another scan of all pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tma.arrange.spec import Method

if TYPE_CHECKING:
    from tma.arrange.exact_knn import Nearest
    from tma.arrange.rows import UnitRows

Order = NDArray[np.int64]
Texts = tuple[Sequence[str], Sequence[str]]


@dataclass(frozen=True)
class Rows:
    """What an order may look at."""

    X: UnitRows
    """Training embeddings, (n, d) unit rows: all of the caller's, or the pool in the sequence in
    which it was drawn, so that ties do not follow how data is stored."""
    Y: NDArray[np.float32]
    """Test embeddings, (m, d) unit rows."""
    stored: Order
    """The caller's number of each row of X, (n,)."""
    numbers: Order
    """Ascending numbers of the rows of X that may be used."""
    tasks: Sequence[str | None] | None
    """Task of each training row, or None."""
    texts: Texts | None
    """Training and test texts, or None."""
    method: Method
    """Name and settings."""
    device: str | None
    """Where products are computed; None: a GPU if there is one."""
    left_out: int = 0
    """Rows that may not be used because they are near-duplicates of test rows."""

    @property
    def limit(self) -> int:
        """N, rows wanted."""
        limit = self.method.limit
        return len(self.numbers) if limit is None else min(limit, len(self.numbers))

    @property
    def random(self) -> np.random.Generator:
        """A generator that starts from the seed."""
        return np.random.default_rng(self.method.seed)

    def shuffles(self, *, farthest: bool) -> np.random.Generator:
        """The generator that shuffles within the rounds of one side; another one than `random`."""
        return np.random.default_rng([self.method.seed, 2 + farthest])


def test_centric_rounds(
    X: NDArray[np.floating],
    Y: NDArray[np.floating],
    limit: int | None = None,
    farthest: bool = False,
    *,
    collision: str = "set",
    within: str = "row",
    exact_limit: bool = False,
    seed: int = 0,
    device: str | None = None,
) -> list[Order]:
    """Return the rounds of TMA.

    Args:
        X: (n, d) unit embeddings of the training rows.
        Y: (m, d) unit embeddings of the test rows.
        limit: rows wanted; rounds come whole, until at least as many are taken. None: all.
        farthest: every test row takes the farthest training row that is left.
        collision: "set": two test rows may take the same row (the paper's rule). "each": test
            rows choose one after another, by ascending number, each its own row.
        within: the sequence inside a round. "row": ascending row number (the paper's rule).
            "similarity": the row that is nearest to the test row that took it comes first; for
            `farthest` the farthest. "shuffled": by the seed. Data is usually stored task by task,
            so that "row" puts the rows of a task next to each other; "shuffled" does not.
        exact_limit: cut the last round, so that just `limit` rows come out.
        seed: seed of the shuffling.
        device: where products are computed; None: a GPU if there is one. No influence on rounds.

    Returns:
        One (k,) int64 array a round, 1 ≤ k ≤ m.

    Raises:
        ParameterError: an unknown rule or limit; it is a ValueError.
        ValueError: embeddings that are empty, not finite, not unit rows, or of unequal width.

    Source: the paper's section on TMA; `each`, `similarity` and `shuffled` are this package's
    variants.
    """
    from tma.arrange.rows import unit_pair

    name = "tma_max" if farthest else "tma_min"
    method = Method(
        name, limit=limit, seed=seed, collision=collision, within=within, exact_limit=exact_limit
    )
    train, test = unit_pair(X, Y)
    every = np.arange(len(train))
    rows = Rows(train, test.float32, every, every, None, None, method, device)
    found = list(rounds(rows, rows.limit, farthest=farthest))
    train.check()  # no round, and nothing has been read
    return found


def picks(rows: Rows, limit: int, *, farthest: bool = False) -> Iterator[Order]:
    """Yield, round by round, the training row that each test row takes: (m,), -1 for none.

    Rounds go on until `limit` rows are taken or none is left.
    """
    from tma.arrange.exact_knn import Nearest

    together = rows.method.collision == "set"
    # Equal test rows take the same row, and so count once.
    Y, which = np.unique(rows.Y, axis=0, return_inverse=True) if together else (rows.Y, None)
    left = np.zeros(len(rows.X), dtype=bool)
    left[rows.numbers] = True
    nearest = Nearest(rows.X, Y, left, limit, farthest=farthest, device=rows.device)
    everyone = np.arange(len(Y))
    taken = 0
    while taken < min(limit, len(rows.numbers)):
        picked = nearest.first_left(everyone) if together else _own_rows(nearest, len(Y))
        found = np.unique(picked[picked >= 0])
        nearest.take(found)
        taken += len(found)
        yield picked if which is None else picked[which.ravel()]


def _own_rows(nearest: Nearest, tests: int) -> Order:
    """Return what each of the test rows takes when they choose one after another.

    All ask at once; a row goes to the lowest test row that asks, and whoever held it or lost it
    asks on (deferred acceptance: the result is that of choosing in turn).
    """
    nobody = tests
    holder = np.full(len(nearest.left), nobody)
    picked = np.full(tests, -1)
    asking = np.arange(tests)
    while asking.size:
        asked = nearest.first_left(asking, holder)
        asking, asked = asking[asked >= 0], asked[asked >= 0]
        wanted = np.unique(asked)
        displaced = holder[wanted]
        np.minimum.at(holder, asked, asking)
        won = holder[asked] == asking
        picked[asking[won]] = asked[won]
        lost = displaced[displaced < nobody]
        picked[lost] = -1
        asking = np.sort(np.concatenate([asking[~won], lost]))
    return picked


def rounds(rows: Rows, limit: int, *, farthest: bool = False) -> Iterator[Order]:
    """Yield the rounds, each in its own sequence; an exact limit cuts the last one."""
    taken, random = 0, rows.shuffles(farthest=farthest)
    for picked in picks(rows, limit, farthest=farthest):
        found = np.unique(picked[picked >= 0])
        if rows.method.within == "similarity":
            found = _by_similarity(rows, picked, farthest=farthest)
        elif rows.method.within == "shuffled":
            found = random.permutation(found)
        else:
            found = found[np.argsort(rows.stored[found])]
        yield cut(found, limit - taken) if rows.method.exact_limit else found
        taken += len(found)


def cut(found: Order, count: int) -> Order:
    """Return the `count` lowest rows of a round, in its own sequence; of a pool, those drawn first.

    What is taken does not depend on how a round is sorted: else orders that differ in that would
    differ in their instances too.
    """
    return found[np.isin(found, np.sort(found)[:count])]


def _by_similarity(rows: Rows, picked: Order, *, farthest: bool) -> Order:
    """Return a round's rows, the nearest to the test row that took it first."""
    import torch

    from tma.arrange.products import exact_keys

    test = np.flatnonzero(picked >= 0)
    row = picked[test]
    key = exact_keys(rows.X.take(row), torch.from_numpy(rows.Y[test].astype(np.float64)))
    first = np.lexsort((row, key if farthest else -key))
    return first_places([row[first]])


def first_places(parts: Sequence[Order]) -> Order:
    """Return the rows of all parts in sequence, each at its first place only."""
    sequence = np.concatenate([np.empty(0, dtype=np.int64), *parts])
    _, first = np.unique(sequence, return_index=True)
    return sequence[np.sort(first)]
