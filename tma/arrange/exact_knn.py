"""Exact nearest rows between training and test embeddings; the matrix of all pairs never exists.

A blocked matrix product gives every similarity up to a known error, in bfloat16 where the CPU
multiplies in it. What that error leaves open is decided in float64: every pair that may belong to a
list is computed again, with products that are exact and a sum that does not depend on its order,
and rounded to 10 decimals. So the lists, ties included, are the same for every block size, thread
count, precision and device; a tie goes to the lowest row number.

Memory is O((n + m) · d + m · k): the lists hold the k nearest rows that were left when they were
filled. Numbers that are taken are skipped when a list comes to them, and a list that is used up is
filled again from the rows that are left then.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from tma.arrange.products import PAIRS, UNIT, Product, best_device, exact_keys, reaching
from tma.arrange.rows import BLOCK, Numbers, UnitRows

_SHORTEST = 16
"""Entries of a list that is filled, at least."""
_LISTED = 2**21
"""Entries of all lists together, about, where lists need not be longer to be of use."""
_CROWDED = 2**22
"""Pairs that may wait for their decision in float64."""


def _sorted(codes: Numbers) -> tuple[Numbers, Numbers]:
    """Return the codes in ascending order and their places; equal codes keep their order."""
    values, places = torch.sort(torch.from_numpy(codes), stable=True)
    return values.numpy(), places.numpy()


class _Shortlist:
    """For every test row, the training rows whose similarity may be among its k highest."""

    def __init__(self, X: UnitRows, Y: torch.Tensor, k: int, product: Product) -> None:
        self._X, self._Y = X, Y.to(product.device).double()
        self._k, self._rounding, self._error = k, product.rounding, 0.0
        self.floor = np.full(len(Y), -np.inf)
        self._threshold = torch.full((len(Y),), -np.inf, dtype=product.dtype, device=product.device)
        self._found: list[tuple[Numbers, Numbers, NDArray[np.float32]]] = []
        self._size, self._kept = 0, 0

    def add(self, numbers: Numbers, scores: torch.Tensor, error: float) -> None:
        """Add the rows of a block, (b,) numbers and (b, tests) scores, that may belong."""
        if error > self._error:
            self._error = error
            self._lower()
        where = reaching(scores, self._threshold)
        row, test = np.divmod(where, scores.shape[1])
        places = torch.from_numpy(where).to(scores.device)
        values = scores.flatten()[places].float().cpu().numpy()
        self._found.append((test, numbers[row], values))
        self._size += len(where)
        # The threshold rises as the k-th highest does: by halves at first, then ever more rarely.
        if self._size > 2 * self._kept:
            self.prune()
            if self._size > max(_CROWDED, 6 * self._k * len(self.floor)):
                self.decide()  # many rows as good as equal, which no approximation tells apart

    def prune(self) -> None:
        """Raise each floor to what the k highest so far guarantee, and drop what lies below.

        With a the k-th highest score, u its rounding and e the error, k rows have a similarity of
        at least floor = a - u|a| - e; a row with that similarity scores floor - e, rounded.
        """
        test, row, value = (np.concatenate(parts) for parts in zip(*self._found, strict=True))
        count = np.bincount(test, minlength=len(self.floor))
        enough = np.flatnonzero(count >= self._k)
        # One sort of whole numbers for all test rows, the highest first in each: torch sorts them
        # by radix. Similarities lie within ±1.1.
        code, _ = _sorted(test * 2**34 - (value * 2.0**32).astype(np.int64))
        at = (np.cumsum(count) - count)[enough] + self._k - 1
        kth = (enough * 2**34 - code[at]) / 2.0**32
        # 1e-8 covers the rounding of the codes and of the exact keys.
        floor = kth - self._rounding * np.abs(kth) - self._error - 1e-8
        self.floor[enough] = np.maximum(self.floor[enough], floor)
        self._lower()
        keep = value >= self._threshold.float().cpu().numpy()[test]
        self._found = [(test[keep], row[keep], value[keep])]
        self._size = self._kept = int(keep.sum())

    def _lower(self) -> None:
        """Set the thresholds to what a row at the floor scores at least."""
        lowest = self.floor - self._error
        threshold = torch.from_numpy(lowest - 2 * self._rounding * np.abs(lowest))
        self._threshold = threshold.to(self._threshold.device, self._threshold.dtype)

    def decide(self) -> tuple[Numbers, Numbers, Numbers]:
        """Keep the k best pairs of each test row by exact key; return (test row, row, key).

        They are sorted by test row, then nearest first, the lowest row number first among equals.
        """
        test, row, value = (np.concatenate(parts) for parts in zip(*self._found, strict=True))
        key = np.empty(len(row), dtype=np.int64)
        for start in range(0, len(row), PAIRS):
            part = slice(start, start + PAIRS)
            key[part] = exact_keys(self._X.take(row[part]), self._Y[torch.from_numpy(test[part])])
        # The pairs stand by ascending row, and the sort is stable.
        _, sequence = _sorted(test * 2**35 - key)
        count = np.bincount(test, minlength=len(self.floor))
        place = np.arange(len(test)) - np.repeat(np.cumsum(count) - count, count)
        best = sequence[place < self._k]
        kept = np.sort(best)
        self._found = [(test[kept], row[kept], value[kept])]
        self._size = self._kept = len(kept)
        return test[best], row[best], key[best]


def nearest_lists(
    X: UnitRows, Y: torch.Tensor, numbers: Numbers | None, k: int, product: Product
) -> tuple[Numbers, Numbers]:
    """Return each test row's nearest training rows.

    Args:
        X: (n, d) training rows.
        Y: (m, d) float32 test rows.
        numbers: ascending numbers of the training rows to choose from; None: all.
        k: length of the lists.
        product: how similarities are approximated; no influence on the result.

    Returns:
        (m, w) row numbers, nearest first, the lowest number first among equals; and (m,) how many
        of them count: at least min(k, rows to choose from), at most k.
    """
    shortlist = _Shortlist(X, Y, k, product)
    tests = product.factor(Y)
    size = max(1, BLOCK // len(Y))
    for chosen, block in X.blocks(size, numbers, first=2 * k):
        shortlist.add(chosen, *product.scores(block, tests))
    shortlist.prune()
    test, row, key = shortlist.decide()
    # What was left out has a similarity below the floor: a key at most this.
    count = key > np.ceil(shortlist.floor * UNIT)[test]
    test, row = test[count], row[count]
    length = np.bincount(test, minlength=len(Y))
    assert length.min() >= min(k, len(X) if numbers is None else len(numbers))  # else no progress
    ranked = np.full((len(Y), int(length.max())), -1)
    ranked[test, np.arange(len(test)) - np.repeat(np.cumsum(length) - length, length)] = row
    return ranked, length


class Nearest:
    """Each test row's nearest training row that is left, asked for again and again.

    Args:
        X: (n, d) training rows.
        Y: (m, d) test rows.
        left: (n,) which training rows may be taken; copied.
        wanted: how many rows will be taken in all, about; no influence on the result.
        farthest: find the farthest instead.
        device: where products are computed; None: a GPU if there is one.
    """

    def __init__(
        self,
        X: UnitRows,
        Y: NDArray[np.floating],
        left: NDArray[np.bool_],
        wanted: int,
        *,
        farthest: bool = False,
        device: str | None = None,
    ) -> None:
        rows = torch.tensor(np.asarray(Y, np.float32))
        self._X, self._Y = X, -rows if farthest else rows
        self._product = Product.on(device or best_device())
        self.left = left.copy()
        self._remaining = int(left.sum())
        self._wanted = min(wanted, self._remaining)
        self._taken = self._rounds = 0
        tests = len(Y)
        self._ranked = np.empty((tests, 0), dtype=np.int64)
        self._length, self._at, self._since = (np.zeros(tests, dtype=np.int64) for _ in range(3))
        self._whole = np.zeros(tests, dtype=bool)

    def take(self, rows: Numbers) -> None:
        """Remove a round's rows."""
        self.left[rows] = False
        self._remaining -= len(rows)
        self._taken += len(rows)
        self._rounds += 1

    def first_left(self, tests: Numbers, holder: Numbers | None = None) -> Numbers:
        """Return the nearest training row that is left for each of some test rows.

        Args:
            tests: (t,) numbers of test rows, each once.
            holder: (n,) a training row held by a lower test row than the one that asks is skipped.

        Returns:
            (t,) row numbers; -1 where there is none.
        """
        out = np.full(len(tests), -1)
        seeking = np.arange(len(tests))
        while seeking.size:
            test = tests[seeking]
            ended = self._at[test] >= self._length[test]
            if ended.any():
                if not self._whole[test[ended]].all():
                    self._fill()
                    continue
                seeking, test = seeking[~ended], test[~ended]
            row = self._ranked[test, self._at[test]]
            free = self.left[row] if holder is None else self.left[row] & (holder[row] > test)
            out[seeking[free]] = row[free]
            seeking = seeking[~free]
            self._at[test[~free]] += 1
        return out

    def _fill(self) -> None:
        """Fill the lists that are used up, and with them those that soon will be.

        A pass over the training rows costs as much as some hundred entries a list, so lists are
        filled together and for as many rounds as are expected, at the pace of each so far.
        """
        done = max(1, self._rounds)
        size = max(1.0, self._taken / done) if self._rounds else len(self._Y)
        ahead = (self._wanted - self._taken) / size + 1
        pace = np.maximum(1.0, self._at / np.maximum(1, self._rounds - self._since))
        need = 1.5 * pace * ahead + _SHORTEST
        lasts = self._length - self._at
        low = ~self._whole & (lasts < np.minimum(need - _SHORTEST, self._length / 2 + 1))
        low |= ~self._whole & (lasts <= 0)
        tests = np.flatnonzero(low)
        longest = max(16 * _SHORTEST, min(self._remaining // 256, _LISTED // len(self._Y)))
        # A list used up within the round that filled it was full of rows that others hold.
        held = np.where(self._since == self._rounds, 2 * self._length, 0)
        need, longest = np.maximum(need, held), max(longest, int(held[low].max()))
        k = min(int(need[tests].max()), longest, self._remaining)
        everything = self._remaining == len(self.left)
        numbers = None if everything else np.flatnonzero(self.left)
        ranked, length = nearest_lists(self._X, self._Y[tests], numbers, k, self._product)
        self._store(tests, ranked, length)

    def _store(self, tests: Numbers, ranked: Numbers, length: Numbers) -> None:
        more = ranked.shape[1] - self._ranked.shape[1]
        if more > 0:
            self._ranked = np.pad(self._ranked, ((0, 0), (0, more)), constant_values=-1)
        self._ranked[tests, : ranked.shape[1]] = ranked
        self._length[tests], self._at[tests], self._since[tests] = length, 0, self._rounds
        self._whole[tests] = length == self._remaining


def nearest_blocks(
    X: UnitRows,
    Y: NDArray[np.floating],
    numbers: Numbers | None = None,
    *,
    farthest: bool = False,
    device: str | None = None,
) -> Iterator[tuple[torch.Tensor, Numbers, Numbers]]:
    """Yield, block by block, the training rows, the nearest test row of each, and their exact key.

    Args:
        X: (n, d) training rows.
        Y: (m, d) test rows.
        numbers: ascending numbers of the training rows asked for; None: all.
        farthest: find the farthest instead; the key is still that of the similarity.
        device: where products are computed; None: a GPU if there is one.

    Yields:
        (b, d) float32 training rows; (b,) numbers of test rows, the lowest among equals; (b,) keys.
    """
    product = Product(device or best_device(), torch.float32)
    # Equal test rows would all have to be decided in float64.
    _, first = np.unique(np.asarray(Y, np.float32), axis=0, return_index=True)
    first = np.sort(first)
    sign = -1 if farthest else 1
    distinct = sign * torch.tensor(np.asarray(Y[first], np.float32))
    tests, exact = product.factor(distinct), distinct.to(product.device).double()
    for _, block in X.blocks(max(1, BLOCK // len(first)), numbers):
        best, key = _best(block, exact, *product.scores(block, tests))
        yield block, first[best], sign * key


def _best(
    block: torch.Tensor, exact: torch.Tensor, scores: torch.Tensor, error: float
) -> tuple[Numbers, Numbers]:
    """Return the column of each row's highest similarity, the lowest among equals, and its key."""
    lowest = scores.max(dim=1, keepdim=True).values - 2 * error
    row, column = np.divmod(reaching(scores, lowest), scores.shape[1])
    key = np.concatenate(
        [
            exact_keys(block[row[s : s + PAIRS]], exact[column[s : s + PAIRS]])
            for s in range(0, len(row), PAIRS)
        ]
    )
    start = np.searchsorted(row, np.arange(len(block)))
    highest = np.maximum.reduceat(key, start)
    candidates = np.flatnonzero(key == highest[row])
    _, at = np.unique(row[candidates], return_index=True)
    return column[candidates[at]], highest
