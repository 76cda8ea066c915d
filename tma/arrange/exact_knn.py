"""Exact nearest rows between training and test embeddings; the matrix of all pairs never exists.

A blocked matrix product gives every similarity up to a known error. Every pair that this error
leaves open is computed again in float64, by a sum that does not depend on its order, and rounded to
10 decimals: block size, thread count, precision and device change nothing, ties included.
Memory is O((n + m) · d + m · k): each test row has a list of its k nearest rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tma.arrange.spec import Numbers

BLOCK = 2**22
"""Numbers in one block."""
PAIRS = 2**10
"""Pairs computed in float64 at once; their rows stay in a core's cache."""
DECIMALS = 10
"""Decimals of a cosine similarity that count."""
UNIT = 10**DECIMALS
"""The exact key of similarity 1: keys are whole multiples of 1e-10."""
_SHORTEST = 16
"""Minimum entries of a list that is filled."""
_LISTED = 2**21
"""Entries of all lists together beyond which longer lists no longer pay."""
_CROWDED = 2**22
"""Pairs that may wait for their decision in float64."""


def slices(count: int, size: int, first: int | None = None) -> Iterator[slice]:
    """Yield slices of `size` up to count; given `first`, they start with it and double."""
    start, step = 0, min(size, first or size)
    while start < count:
        yield slice(start, min(start + step, count))
        start, step = start + step, min(size, 2 * step)


class UnitRows:
    """Embeddings, (n, d), in memory or memory-mapped, read in blocks and rounded to float32.

    Rows that are not finite or not of length 1 (within 0.001) are refused when all are first read.
    """

    def __init__(self, rows: NDArray[np.floating], name: str) -> None:
        rows = np.asanyarray(rows)
        if rows.ndim != 2 or not len(rows) or not rows.shape[1]:
            raise ValueError(f"{name} has shape {rows.shape}; expected (rows, d), one row or more.")
        if not np.issubdtype(rows.dtype, np.floating):
            raise ValueError(
                f"{name} has dtype {rows.dtype}; expected floating-point unit rows, best float32."
            )
        self.array, self.name, self._checked = rows, name, False
        self._chosen: Numbers | None = None

    def __len__(self) -> int:
        return len(self.array if self._chosen is None else self._chosen)

    @property
    def width(self) -> int:
        """Columns, d."""
        return int(self.array.shape[1])

    @property
    def float32(self) -> NDArray[np.float32]:
        """All rows as one writable array; for test rows, which fit in memory."""
        return self.take(np.arange(len(self))).numpy()

    def select(self, numbers: Numbers) -> UnitRows:
        """Return these rows, numbered anew, without a copy; all rows are checked first."""
        self.check()
        selected = copy(self)
        selected._chosen = numbers if self._chosen is None else self._chosen[numbers]
        return selected

    def blocks(
        self, size: int, numbers: Numbers | None = None, *, first: int | None = None
    ) -> Iterator[tuple[Numbers, torch.Tensor]]:
        """Yield (row numbers, float32 rows), `size` rows at a time (see `slices`)."""
        count = len(self) if numbers is None else len(numbers)
        for part in slices(count, size, first):
            block_numbers = np.arange(part.start, part.stop) if numbers is None else numbers[part]
            block = self.take(block_numbers)
            if not self._checked:
                self._check(block_numbers, block)
            yield block_numbers, block
        self._checked = self._checked or count == len(self)

    def take(self, numbers: Numbers) -> torch.Tensor:
        """Return the rows of these numbers, float32 on the CPU; without a copy where possible."""
        if self._chosen is not None:
            numbers = self._chosen[numbers]
        first, last = int(numbers[0]), int(numbers[-1])
        # A single row counts as contiguous even with a negative stride, which torch refuses.
        adjacent = last - first == len(numbers) - 1 > 0 and bool((np.diff(numbers) == 1).all())
        rows = self.array[first : last + 1] if adjacent else self.array[numbers]
        # torch shares memory only with contiguous arrays that it may write to.
        return torch.from_numpy(np.require(rows, np.float32, ["C", "W"]))

    def check(self) -> None:
        """Read and check all rows, unless that has been done."""
        if not self._checked:
            for _ in self.blocks(max(1, BLOCK // self.width)):
                pass

    def _check(self, numbers: Numbers, block: torch.Tensor) -> None:
        length = torch.linalg.vector_norm(block, dim=1).numpy()
        bad = np.flatnonzero(~(np.abs(length - 1) < 1e-3))
        if bad.size:
            raise ValueError(
                f"{self.name}[{numbers[bad[0]]}] has length {length[bad[0]]:.6g}; expected 1. "
                "Divide each row by its Euclidean length (tma.embed does)."
            )


Embeddings = NDArray[np.floating] | UnitRows


def unit_pair(X: Embeddings, Y: Embeddings) -> tuple[UnitRows, UnitRows]:
    """Return training and test rows of equal width; the test rows are checked at once."""
    train = X if isinstance(X, UnitRows) else UnitRows(X, "X")
    test = Y if isinstance(Y, UnitRows) else UnitRows(Y, "Y")
    test.check()
    if train.width != test.width:
        raise ValueError(
            f"X has {train.width} columns and Y {test.width}; embed both with one encoder."
        )
    return train, test


@dataclass(frozen=True)
class Product:
    """A matrix product of unit rows, in bfloat16 or float32, with a proven error."""

    device: str
    dtype: torch.dtype

    @classmethod
    def on(cls, device: str | None) -> Product:
        """Return the fastest product of a device: bfloat16 where the CPU multiplies in it."""
        device = device or best_device()
        fast = device == "cpu" and bool(torch.cpu.get_capabilities().get("avx512_bf16"))
        return cls(device, torch.bfloat16 if fast else torch.float32)

    @property
    def rounding(self) -> float:
        """Largest relative error of rounding to `dtype`."""
        return 2.0**-8 if self.dtype == torch.bfloat16 else 2.0**-24

    def factor(self, rows: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Return unit rows as a factor, and the largest distance between a row and its rounding."""
        rows = rows.to(self.device)
        rounded = rows.to(self.dtype)
        if self.dtype == rows.dtype:
            return rounded, 0.0
        return rounded, float(torch.linalg.vector_norm(rows - rounded, dim=1).max())

    def scores(
        self, block: torch.Tensor, tests: tuple[torch.Tensor, float]
    ) -> tuple[torch.Tensor, float]:
        """Return block · testsᵀ, (b, m), and its largest error before it was rounded to `dtype`.

        |x̂·ŷ - x·y| ≤ |x̂ - x||ŷ| + |x||ŷ - y|, and the sum in float32 adds at most 2d · 2⁻²⁴ of
        Σ|x_i y_i| ≤ |x||y|. Lengths are 1 within 0.005, for which 1.02 leaves room.
        """
        rows, moved = self.factor(block)
        error = 1.02 * (moved + tests[1] + 2 * block.shape[1] * 2.0**-24)
        return self._multiplied(rows, tests[0]), error

    def _multiplied(self, rows: torch.Tensor, tests: torch.Tensor) -> torch.Tensor:
        """Return rows · testsᵀ in `dtype`, whatever precision the caller allows torch elsewhere."""
        if self.device == "cpu" and self.dtype == torch.float32:
            return torch.from_numpy(rows.numpy() @ tests.numpy().T)
        matmul = torch.backends.cuda.matmul
        allowed, matmul.fp32_precision = matmul.fp32_precision, "ieee"  # TF32 errs by more
        try:
            with torch.autocast(self.device, enabled=False):
                return rows @ tests.T
        finally:
            matmul.fp32_precision = allowed


def best_device() -> str:
    """Return where products are computed by default: on a GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def reaching(scores: torch.Tensor, threshold: torch.Tensor) -> Numbers:
    """Return where the flattened scores are not below the threshold, ascending."""
    if scores.device.type != "cpu":
        places: Numbers = (scores >= threshold).flatten().nonzero()[:, 0].cpu().numpy()
        return places
    if scores.dtype == torch.bfloat16 and bool((threshold > 0).all()):
        # Bits of positive numbers compare as the numbers do, negative ones below them, and numpy
        # compares integers four times as fast as torch compares bfloat16.
        scores, threshold = scores.view(torch.int16), threshold.view(torch.int16)
    elif scores.dtype == torch.bfloat16:
        return np.flatnonzero((scores >= threshold).numpy())
    return np.flatnonzero(scores.numpy() >= threshold.numpy())


def exact_keys(x: torch.Tensor, y: torch.Tensor) -> Numbers:
    """Return out[p] = rint(1e10 · x[p]·y[p]), exact up to d · 2⁻⁵², for (p, d) rows of float32.

    Products of float32 numbers are exact in float64. Adding and subtracting 3 rounds them to
    multiples of 2⁻⁵², whose sums below 2 are exact in any order, with or without fused operations:
    every device finds the same key. y is float64, on the device that computes.
    """
    products = x.to(y.device).double().mul_(y).add_(3).sub_(3)
    keys: Numbers = torch.round(products.sum(1) * UNIT).long().cpu().numpy()
    return keys


def pair_keys(X: UnitRows, row: Numbers, Y: torch.Tensor, test: Numbers) -> Numbers:
    """Return the exact keys of the pairs X[row[p]], Y[test[p]]; Y is float64."""
    keys = np.empty(len(row), dtype=np.int64)
    for part in slices(len(row), PAIRS):
        keys[part] = exact_keys(X.take(row[part]), Y[torch.from_numpy(test[part])])
    return keys


def _sorted(codes: Numbers) -> tuple[Numbers, Numbers]:
    """Return codes in ascending order and their places; torch sorts integers by radix."""
    values, places = torch.sort(torch.from_numpy(codes), stable=True)
    return values.numpy(), places.numpy()


def _ranks(count: Numbers) -> Numbers:
    """Return 0, 1, … within each group of pairs that stand group by group, given the counts."""
    return np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)


class _Shortlist:
    """For every test row, the training rows whose similarity may be among its k highest."""

    def __init__(self, X: UnitRows, Y: torch.Tensor, k: int, product: Product) -> None:
        self._X, self._Y = X, Y.to(product.device).double()
        self._k, self._rounding, self._error = k, product.rounding, 0.0
        self.floor = np.full(len(Y), -np.inf)
        self._threshold = torch.full((len(Y),), -np.inf, dtype=product.dtype, device=product.device)
        self._pairs: list[tuple[Numbers, Numbers, NDArray[np.float32]]] = []
        self._size, self._kept = 0, 0

    def add(self, numbers: Numbers, scores: torch.Tensor, error: float) -> None:
        """Add those rows of a block, (b,) numbers and (b, tests) scores, that may belong."""
        if error > self._error:
            self._error = error
            self._lower()
        where = reaching(scores, self._threshold)
        row, test = np.divmod(where, scores.shape[1])
        places = torch.from_numpy(where).to(scores.device)
        values = scores.flatten()[places].float().cpu().numpy()
        self._pairs.append((test, numbers[row], values))
        self._size += len(where)
        # The threshold rises with the k-th highest: by halves at first, then ever more rarely.
        if self._size > 2 * self._kept:
            self.prune()
            if self._size > max(_CROWDED, 6 * self._k * len(self.floor)):
                self.decide()  # many rows nearly equal, which no approximation tells apart

    def prune(self) -> None:
        """Raise each floor to what the k highest so far guarantee, and drop what lies below.

        With a the k-th highest score, u its rounding and e the error, k rows have a similarity of
        at least floor = a - u|a| - e; a row with that similarity scores floor - e, rounded.
        """
        test, row, value = (np.concatenate(parts) for parts in zip(*self._pairs, strict=True))
        count = np.bincount(test, minlength=len(self.floor))
        enough = np.flatnonzero(count >= self._k)
        # One sort of integers for all test rows, highest first in each; similarities are in ±1.1.
        code, _ = _sorted(test * 2**34 - (value * 2.0**32).astype(np.int64))
        at = (np.cumsum(count) - count)[enough] + self._k - 1
        kth = (enough * 2**34 - code[at]) / 2.0**32
        # 1e-8 covers the rounding of the codes and of the exact keys.
        floor = kth - self._rounding * np.abs(kth) - self._error - 1e-8
        self.floor[enough] = np.maximum(self.floor[enough], floor)
        self._lower()
        keep = value >= self._threshold.float().cpu().numpy()[test]
        self._pairs = [(test[keep], row[keep], value[keep])]
        self._size = self._kept = int(keep.sum())

    def _lower(self) -> None:
        """Set the thresholds to the lowest score of a row at the floor."""
        lowest = self.floor - self._error
        threshold = torch.from_numpy(lowest - 2 * self._rounding * np.abs(lowest))
        self._threshold = threshold.to(self._threshold.device, self._threshold.dtype)

    def decide(self) -> tuple[Numbers, Numbers, Numbers]:
        """Keep the k best pairs of each test row by exact key; return (test row, row, key).

        They are sorted by test row, then nearest first, the lowest row number first among equals.
        """
        test, row, value = (np.concatenate(parts) for parts in zip(*self._pairs, strict=True))
        key = pair_keys(self._X, row, self._Y, test)
        # The pairs stand by ascending row, and the sort is stable.
        _, sequence = _sorted(test * 2**35 - key)
        best = sequence[_ranks(np.bincount(test, minlength=len(self.floor))) < self._k]
        kept = np.sort(best)
        self._pairs = [(test[kept], row[kept], value[kept])]
        self._size = self._kept = len(kept)
        return test[best], row[best], key[best]


def nearest_lists(
    X: UnitRows, Y: torch.Tensor, numbers: Numbers | None, k: int, product: Product
) -> tuple[Numbers, Numbers]:
    """Return each test row's nearest among the numbered training rows (None: all), nearest first.

    (m, w) row numbers, and (m,) how many of them count: at most k, at least k or all there are.
    """
    shortlist = _Shortlist(X, Y, k, product)
    tests = product.factor(Y)
    for chosen, block in X.blocks(max(1, BLOCK // len(Y)), numbers, first=2 * k):
        shortlist.add(chosen, *product.scores(block, tests))
    shortlist.prune()
    test, row, key = shortlist.decide()
    # Rows that were dropped have a similarity below the floor: a key of at most this.
    counts = key > np.ceil(shortlist.floor * UNIT)[test]
    test, row = test[counts], row[counts]
    length = np.bincount(test, minlength=len(Y))
    assert length.min() >= min(k, len(X) if numbers is None else len(numbers))  # else no progress
    ranked = np.full((len(Y), int(length.max())), -1)
    ranked[test, _ranks(length)] = row
    return ranked, length


class Nearest:
    """Each test row's nearest (or farthest) training row that is left, round after round.

    `limit`, about how many rows will be taken in all, has no influence on the result.
    """

    def __init__(
        self,
        X: UnitRows,
        Y: NDArray[np.floating],
        limit: int,
        *,
        farthest: bool = False,
        device: str | None = None,
    ) -> None:
        rows = torch.tensor(np.asarray(Y, np.float32))
        self._X, self._Y = X, -rows if farthest else rows
        self._product = Product.on(device)
        self._left = np.ones(len(X), dtype=bool)
        self._remaining = len(X)
        self._limit = min(limit, self._remaining)
        self._taken = self._rounds = 0
        self._ranked = np.empty((len(Y), 0), dtype=np.int64)
        self._length, self._at, self._since = (np.zeros(len(Y), dtype=np.int64) for _ in range(3))
        self._complete = np.zeros(len(Y), dtype=bool)

    def take(self, rows: Numbers) -> None:
        """Remove a round's rows."""
        self._remaining -= int(self._left[rows].sum())
        self._left[rows] = False
        self._taken += len(rows)
        self._rounds += 1

    def first_left(self, start: int = 0) -> Numbers:
        """Return the nearest training row left for each test row from `start` on; -1: none."""
        out = np.full(len(self._Y) - start, -1)
        test = np.arange(start, len(self._Y))
        while test.size:
            ended = self._at[test] >= self._length[test]
            if ended.any():
                if not self._complete[test[ended]].all():
                    self._fill()
                    continue
                test = test[~ended]
            row = self._ranked[test, self._at[test]]
            left = self._left[row]
            out[test[left] - start] = row[left]
            test = test[~left]
            self._at[test] += 1
        return out

    def take_in_turn(self) -> Numbers:
        """Return the row that each test row takes, (m,), when they choose by ascending number."""
        out = self.first_left()
        for test in range(len(out)):
            if not self._remaining:
                out[test:] = -1
                break
            if not self._left[out[test]]:
                out[test:] = self.first_left(test)
            self._left[out[test]] = False
            self._remaining -= 1
        return out

    def _fill(self) -> None:
        """Fill the lists that are used up, and with them those that soon will be.

        A pass over the training rows costs as much as some hundred entries a list, so lists are
        filled together, each for as many rounds as are expected at its pace so far.
        """
        size = max(1.0, self._taken / self._rounds) if self._rounds else len(self._Y)
        ahead = (self._limit - self._taken) / size + 1
        pace = np.maximum(1.0, self._at / np.maximum(1, self._rounds - self._since))
        need = 1.5 * pace * ahead + _SHORTEST
        unused = self._length - self._at
        low = (unused < np.minimum(need - _SHORTEST, self._length / 2 + 1)) | (unused <= 0)
        tests = np.flatnonzero(low & ~self._complete)
        # A list that was used up within the round that filled it needs to be longer.
        again = np.where(self._since == self._rounds, 2 * self._length, 0)[tests]
        longest = max(16 * _SHORTEST, min(self._remaining // 256, _LISTED // len(self._Y)))
        longest = max(longest, int(again.max()))
        k = min(int(np.maximum(need[tests], again).max()), longest, self._remaining)
        numbers = None if self._remaining == len(self._left) else np.flatnonzero(self._left)
        ranked, length = nearest_lists(self._X, self._Y[tests], numbers, k, self._product)
        more = ranked.shape[1] - self._ranked.shape[1]
        if more > 0:
            self._ranked = np.pad(self._ranked, ((0, 0), (0, more)), constant_values=-1)
        self._ranked[tests, : ranked.shape[1]] = ranked
        self._length[tests], self._at[tests], self._since[tests] = length, 0, self._rounds
        self._complete[tests] = length == self._remaining


def close_pairs(
    X: UnitRows,
    Y: NDArray[np.floating],
    *,
    farthest: bool = False,
    euclidean: bool = False,
    device: str | None = None,
) -> Iterator[tuple[torch.Tensor, Numbers, Numbers, Numbers]]:
    """Yield, block by block, all pairs that may be of a training row and its nearest test row.

    Nearest by cosine similarity or Euclidean distance. Yields (b, d) float32 training rows; (p,)
    training and (p,) test rows of the pairs, the former ascending; (b,) where each row's begin.
    """
    product = Product(device or best_device(), torch.float32)
    # Equal test rows would all be among the pairs.
    _, first = np.unique(np.asarray(Y, np.float32), axis=0, return_index=True)
    first = np.sort(first)
    distinct = torch.tensor(np.asarray(Y[first], np.float32)) * (-1 if farthest else 1)
    tests = product.factor(distinct)
    # |x - y|² = |x|² - 2 (x·y - |y|²/2): the test row with the largest bracket is nearest.
    half = (distinct.double() ** 2).sum(dim=1).to(product.device, torch.float32) / 2
    for numbers, block in X.blocks(max(1, BLOCK // len(first))):
        scores, slack = product.scores(block, tests)
        if euclidean:
            scores, slack = scores + half if farthest else scores - half, slack + 5e-7
        lowest = scores.max(dim=1, keepdim=True).values - 2 * slack
        row, test = np.divmod(reaching(scores, lowest), len(first))
        yield block, numbers[row], first[test], np.searchsorted(row, np.arange(len(numbers)))


def nearest_blocks(
    X: UnitRows, Y: NDArray[np.floating], *, farthest: bool = False, device: str | None = None
) -> Iterator[tuple[torch.Tensor, Numbers, Numbers]]:
    """Yield, block by block, the training rows, the nearest test row of each, and their exact key.

    Among equally near test rows the lowest counts; `farthest` too has the key of the similarity.
    """
    sign = -1 if farthest else 1
    exact = torch.tensor(np.asarray(Y, np.float32)).to(device or best_device()).double()
    for block, row, test, start in close_pairs(X, Y, farthest=farthest, device=device):
        key = sign * pair_keys(X, row, exact, test)
        best = np.maximum.reduceat(key, start)
        ties = np.flatnonzero(key == np.repeat(best, np.diff(start, append=len(row))))
        _, lowest = np.unique(row[ties], return_index=True)
        yield block, test[ties[lowest]], sign * best
