"""Exact nearest rows between training and test embeddings; the matrix of all pairs never exists.

A blocked matrix product gives every similarity up to a known error. Every pair that this error
leaves open is computed again in float64, by a sum that does not depend on its order, and rounded to
10 decimals: block size, thread count, precision and device change nothing, ties included.
Memory is O((n + m) · d + m · k): each test row has a list of its k nearest rows.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from tma.arrange.spec import Floats, Numbers

Item = TypeVar("Item")
Result = TypeVar("Result")

BLOCK = 2**21
"""Numbers in one block."""
PAIRS = 2**7
"""Pairs computed in float64 at once; their rows stay in a core's cache."""
DECIMALS = 10
"""Decimals of a cosine similarity that count."""
UNIT = 10**DECIMALS
"""The exact key of similarity 1: keys are whole multiples of 1e-10."""
_SHORTEST = 16
"""Minimum entries of a list that is filled."""
_LISTED = 2**21
"""Entries of all lists together beyond which longer lists no longer pay."""
_CROWDED = 4
"""Candidates a list entry beyond which all pairs are computed in float64."""


def slices(count: int, size: int, first: int | None = None) -> Iterator[slice]:
    """Yield slices of `size` up to count; given `first`, they start with it and double."""
    start, step = 0, min(size, first or size)
    while start < count:
        yield slice(start, min(start + step, count))
        start, step = start + step, min(size, 2 * step)


def in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield function(item) of all items in their sequence, from as many threads as torch uses.

    Each multiplies matrices by itself, so that none waits for another inside a product, and in full
    precision, whatever the caller allows torch elsewhere.
    """
    items, threads = [*items], torch.get_num_threads()
    backends: Any = torch.backends
    products = backends.mkldnn.matmul, backends.cuda.matmul
    allowed = [product.fp32_precision for product in products]
    running: deque[Future[Result]] = deque()
    try:
        for product in products:
            product.fp32_precision = "ieee"  # TF32 and bfloat16 err by more
        if threads == 1 or len(items) == 1:
            torch.set_num_threads(1)
            yield from map(function, items)
            return
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for item in items:
                running.append(pool.submit(function, item))
                if len(running) > threads:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
    finally:
        torch.set_num_threads(threads)  # which counts for threads that start later
        for product, before in zip(products, allowed, strict=True):
            product.fp32_precision = before


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
        self, size: int, numbers: Numbers | None = None
    ) -> Iterator[tuple[Numbers, torch.Tensor]]:
        """Yield (row numbers, float32 rows), `size` rows at a time."""
        yield from self.map_blocks(lambda *block: block, size, numbers)

    def map_blocks(
        self,
        function: Callable[[Numbers, torch.Tensor], Result],
        size: int,
        numbers: Numbers | None = None,
        *,
        first: int | None = None,
    ) -> Iterator[Result]:
        """Yield function(row numbers, float32 rows) block by block (see `slices`), in threads."""
        count = len(self) if numbers is None else len(numbers)

        def apply(part: slice) -> Result:
            some = np.arange(part.start, part.stop) if numbers is None else numbers[part]
            block = self.take(some)
            if not self._checked:
                self._check(some, block)
            return function(some, block)

        yield from in_threads(apply, slices(count, size, first))
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

    def keys(self, row: Numbers, Y: torch.Tensor, test: Numbers) -> Numbers:
        """Return the exact keys of the pairs X[row[p]], Y[test[p]]."""
        return pair_keys(self, row, Y, test)

    def each(self, function: Callable[..., Result], *given: Any) -> list[Result]:
        """Return function(rows, …) of every part in which rows are stored: here there is one."""
        return [function(self, *given)]

    def lists(self, Y: torch.Tensor, device: str | None) -> NearestLists:
        """Return a search for the rows nearest to test rows, (m, d)."""
        return _Search(self, Y, Product.on(device))

    def _check(self, numbers: Numbers, block: torch.Tensor) -> None:
        length = torch.linalg.vector_norm(block, dim=1).numpy()
        bad = np.flatnonzero(~(np.abs(length - 1) < 1e-3))
        if bad.size:
            raise ValueError(
                f"{self.name}[{numbers[bad[0]]}] has length {length[bad[0]]:.6g}; expected 1. "
                "Divide each row by its Euclidean length (tma.embed does)."
            )


Embeddings = NDArray[np.floating] | UnitRows


class NearestLists(Protocol):
    """A search for the nearest rows left of some test rows."""

    @property
    def crowded(self) -> bool:
        """Whether rows were so alike that it computes in float64 from then on."""

    def __call__(self, tests: Numbers, left: NDArray[np.bool_], k: int) -> Numbers:
        """Return (len(tests), k) row numbers, nearest first."""


class _Search:
    def __init__(self, X: UnitRows, Y: torch.Tensor, product: Product) -> None:
        self._X, self._Y, self._product = X, Y, product

    @property
    def crowded(self) -> bool:
        return self._product.tells_keys

    def __call__(self, tests: Numbers, left: NDArray[np.bool_], k: int) -> Numbers:
        numbers = None if left.all() else np.flatnonzero(left)
        ranked, self._product = _lists(self._X, self._Y[tests], numbers, k, self._product)
        return ranked


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


Factor = tuple[torch.Tensor, float]
"""Unit rows as a product takes them, and the largest distance between a row and its rounding."""


@dataclass(frozen=True)
class Product:
    """A matrix product of unit rows, in bfloat16, float32 or float64, with a proven error."""

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
        return torch.finfo(self.dtype).eps / 2

    @property
    def tells_keys(self) -> bool:
        """Whether the error is far below the step of the exact keys."""
        return self.dtype == torch.float64

    def finer(self) -> Product:
        """Return the product in float64."""
        return replace(self, dtype=torch.float64)

    def error(self, width: int) -> float:
        """Return the largest error of a sum of products."""
        steps = 2 * width if self.dtype == torch.bfloat16 else width
        return 1.02 * steps * min(self.rounding, 2.0**-24)

    def factor(self, rows: torch.Tensor) -> Factor:
        """Return unit rows as a factor."""
        rows = rows.to(self.device)
        rounded = rows.to(self.dtype)
        if self.dtype != torch.bfloat16:
            return rounded, 0.0
        return rounded, float(torch.linalg.vector_norm(rows - rounded, dim=1).max())

    def scores(
        self, x: Factor, y: Factor, room: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, float]:
        """Return x · yᵀ (in `room`, if given) and its largest error before rounding to `dtype`.

        |x̂·ŷ - x·y| ≤ |x̂ - x||ŷ| + |x||ŷ - y|, and a sum in float32 adds at most d · 2⁻²⁴ of
        Σ|x_i y_i| ≤ |x||y|, in any sequence, and one in float64 d · 2⁻⁵³; twice that is granted to
        units for bfloat16, which need not round to nearest. Lengths are 1 within 0.005, for which
        1.02 leaves room.
        """
        error = 1.02 * (x[1] + y[1]) + self.error(x[0].shape[1])
        with torch.autocast(self.device, enabled=False):
            out = None if room is None else room[: len(x[0]) * len(y[0])].view(len(x[0]), -1)
            return torch.mm(x[0], y[0].T, out=out), error


def best_device() -> str:
    """Return where products are computed by default: on a GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def reaching(scores: torch.Tensor, threshold: torch.Tensor) -> Numbers:
    """Return where the flattened scores are not below the threshold of their row, ascending."""
    if scores.device.type != "cpu":
        places: Numbers = (scores >= threshold).flatten().nonzero()[:, 0].cpu().numpy()
        return places
    if scores.dtype == torch.bfloat16 and bool((threshold > 0).all()):
        # Bits of positive numbers compare as the numbers do, negative ones below them, and numpy
        # compares integers many times as fast as torch compares bfloat16.
        scores, threshold = scores.view(torch.int16), threshold.view(torch.int16)
    elif scores.dtype == torch.bfloat16:
        scores, threshold = scores.float(), threshold.float()
    return np.flatnonzero(scores.numpy() >= threshold.numpy())


def exact_keys(x: NDArray[np.float32], y: NDArray[np.floating]) -> Numbers:
    """Return out[p] = rint(1e10 · x[p]·y[p]), exact up to d · 2⁻⁵², for (p, d) rows of float32.

    Products of float32 numbers are exact in float64. Adding and subtracting 3 rounds them to
    multiples of 2⁻⁵², whose sums below 2 are exact in any order, with or without fused operations:
    every processor finds the same key.
    """
    products = x.astype(np.float64)
    products *= y
    products += 3
    products -= 3
    keys: Numbers = np.rint(products.sum(axis=1) * UNIT).astype(np.int64)
    return keys


def pair_keys(X: UnitRows, row: Numbers, Y: torch.Tensor, test: Numbers) -> Numbers:
    """Return the exact keys of the pairs X[row[p]], Y[test[p]]."""
    return np.asarray(_of_pairs(exact_keys, X, row, Y, test), dtype=np.int64)


def _of_pairs(
    function: Callable[[NDArray[np.float32], NDArray[np.floating]], NDArray[Any]],
    X: UnitRows,
    row: Numbers,
    Y: torch.Tensor,
    test: Numbers,
) -> NDArray[Any]:
    """Return function(X[row[p]], Y[test[p]]), which is computed for many pairs at once, (p,)."""
    tests = Y.numpy()

    def of(some: slice) -> NDArray[Any]:
        at = [slice(start, start + PAIRS) for start in range(0, some.stop - some.start, PAIRS)]
        rows, columns = row[some], test[some]
        return np.concatenate([function(X.take(rows[a]).numpy(), tests[columns[a]]) for a in at])

    parts = [*in_threads(of, slices(len(row), 64 * PAIRS))]
    return np.concatenate(parts) if parts else np.empty(0)


def ranks(count: Numbers) -> Numbers:
    """Return 0, 1, … within each group of pairs that stand group by group, given the counts."""
    return np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)


Pairs = tuple[Numbers, Numbers, NDArray[np.floating]]
"""Test rows, training rows, and their scores."""


class _Shortlist:
    """For every test row, the training rows whose similarity may be among its k highest."""

    def __init__(self, X: UnitRows, Y: torch.Tensor, k: int, product: Product) -> None:
        self._X, self._Y, self._k, self._product = X, Y, k, product
        self._tests = product.factor(Y)
        self._error, self.kept = 0.0, 0
        self._own = threading.local()
        # What the k highest similarities reach for sure, and what a further row has to reach.
        self._floor, self._entry = (np.full(len(Y), -np.inf) for _ in range(2))
        self._parts: list[Pairs] = []

    def candidates(self, numbers: Numbers, block: torch.Tensor) -> tuple[Pairs, float]:
        """Return those pairs of a block that may belong, and the error of their scores."""
        tests, size = self._tests[0], len(self._Y) * len(block)
        room = getattr(self._own, "room", tests.new_empty(0))
        if len(room) < size:  # fresh memory for every block would cost a tenth
            room = self._own.room = tests.new_empty(size)
        scores, error = self._product.scores(self._tests, self._product.factor(block), room)
        entry, k = self._entry, self._k
        if len(numbers) >= k and np.isinf(entry).any():
            # The k-th highest of maxima over few rows each is hardly lower, and sooner found.
            fold = min(8, max(1, len(numbers) // (4 * k)))
            some = scores[:, : len(numbers) // fold * fold]
            highest = some.view(len(scores), fold, -1).amax(dim=1)
            kth = np.partition(self._plain(highest), -k, axis=1)[:, -k]
            entry = np.maximum(entry, self._sure(kth, error))
        where = reaching(scores, self._lowest(entry, error)[:, None])
        test = where // len(numbers)  # many times as fast as np.divmod
        place = where - test * len(numbers)
        values = scores.flatten()[torch.from_numpy(where).to(scores.device)]
        return (test, numbers[place], self._plain(values)), error

    def add(self, pairs: Pairs, error: float) -> None:
        """Add pairs of a block that comes after those before."""
        self._error = max(self._error, error)
        self._parts.append(pairs)
        # The floors rise with the k-th highest: by halves at first, then ever more rarely.
        if sum(len(test) for test, *_ in self._parts) > 2 * self.kept:
            self._prune()

    def _plain(self, scores: torch.Tensor) -> NDArray[np.floating]:
        wide = scores if self._product.tells_keys else scores.float()
        return wide.cpu().numpy()

    def _sure(self, kth: NDArray[np.floating], error: float) -> Floats:
        """Return the similarity that k rows have at least, given the k-th highest scores.

        A score a has a similarity of a - u|a| - e or more, u its rounding and e the error; 2e-10
        covers the rounding of exact keys and of the codes in `_prune`.
        """
        return np.asarray(kth - self._product.rounding * np.abs(kth) - error - 2e-10)

    def _lowest(self, similarity: Floats, error: float) -> torch.Tensor:
        """Return the lowest scores of rows of these similarities, one for each test row."""
        lowest = similarity - error
        rounded = torch.from_numpy(lowest - 2 * self._product.rounding * np.abs(lowest))
        return rounded.to(self._product.device, self._product.dtype)

    def _prune(self) -> None:
        """Raise the floors to what is known so far, and drop what lies below."""
        test, row, value = (np.concatenate(parts) for parts in zip(*self._parts, strict=True))
        count = np.bincount(test, minlength=len(self._Y))
        enough = np.flatnonzero(count >= self._k)
        # One sort of integers for all test rows, highest first in each; similarities are in ±1.1.
        code = np.sort(test * 2**38 - (value * 2.0**36).astype(np.int64))
        kth = enough * 2**38 - code[(np.cumsum(count) - count)[enough] + self._k - 1]
        sure = self._sure(kth / 2.0**36, self._error)
        self._floor[enough] = np.maximum(self._floor[enough], sure)
        self._entry = np.maximum(self._entry, self._floor)
        keep = np.flatnonzero(value >= self._plain(self._lowest(self._floor, self._error))[test])
        self._parts = [(test[keep], row[keep], value[keep])]
        self.kept = len(keep)

    def decide(self) -> Numbers:
        """Keep each test row's k best by exact key; return them, nearest first, test row by row.

        Among equally near ones the lowest row is best.
        """
        self._prune()
        if self._product.dtype == torch.bfloat16:  # whose error leaves thrice as many pairs
            test, row, _ = self._parts[0]
            self._parts = [(test, row, _of_pairs(np.vecdot, self._X, row, self._Y, test))]
            self._product = replace(self._product, dtype=torch.float32)
            self._error = self._product.error(self._X.width)
            self._prune()
        test, row, value = self._parts[0]
        key = self._keys()
        # Each test row's pairs stand by ascending row, and the sort is stable.
        sequence = np.argsort(test * 2**35 - key, kind="stable")
        count = np.bincount(test, minlength=len(self._Y))
        best = sequence[ranks(count) < self._k]
        kept = np.sort(best)
        self._parts, self.kept = [(test[kept], row[kept], value[kept])], len(kept)
        if self._product.tells_keys:
            # Rows that come later lose a tie; the sums of keys err by 2e at most.
            last = best[np.cumsum(np.minimum(count, self._k))[count >= self._k] - 1]
            above = np.full(len(count), -np.inf)
            above[test[last]] = (key[last] + 0.5) / UNIT - 2 * self._error
            self._entry = np.maximum(self._entry, above)
        return row[best]

    def _keys(self) -> Numbers:
        """Return the keys of all pairs, exact unless the scores alone tell their sequence."""
        test, row, score = self._parts[0]
        key = np.rint(score.astype(np.float64) * UNIT)
        if self._product.tells_keys:
            unsure = np.abs(score * UNIT - key) > 0.5 - 3 * self._error * UNIT
        else:
            by = np.argsort(test * 2**38 - (score * 2.0**36).astype(np.int64))
            near = np.diff(score[by]) >= -2 * (self._error + 2 * self._product.rounding + 2e-10)
            near &= np.diff(test[by]) == 0
            unsure = np.zeros(len(test), dtype=bool)
            unsure[by[1:][near]] = unsure[by[:-1][near]] = True
        keys: Numbers = key.astype(np.int64)
        keys[unsure] = pair_keys(self._X, row[unsure], self._Y, test[unsure])
        return keys


def nearest_lists(
    X: UnitRows, Y: torch.Tensor, numbers: Numbers | None, k: int, product: Product
) -> Numbers:
    """Return each test row's k nearest of the numbered training rows (None: all), nearest first.

    Returns (m, k) row numbers; k is at most the number of training rows.
    """
    return _lists(X, Y, numbers, k, product)[0]


def _lists(
    X: UnitRows, Y: torch.Tensor, numbers: Numbers | None, k: int, product: Product
) -> tuple[Numbers, Product]:
    """Return the lists, and the product that they took: a finer one if rows crowd."""
    shortlist = _Shortlist(X, Y, k, product)
    count = len(X) if numbers is None else len(numbers)
    # Beyond so many candidates, all pairs in float64 cost less than their exact keys.
    many = len(Y) * (_CROWDED * k + count // 64)
    size = max(1, BLOCK // len(Y))
    for pairs, error in X.map_blocks(shortlist.candidates, size, numbers, first=32 * k):
        shortlist.add(pairs, error)
        if shortlist.kept > many and not product.tells_keys:
            return _lists(X, Y, numbers, k, product.finer())
        if shortlist.kept > many:
            shortlist.decide()
    return shortlist.decide().reshape(len(Y), k), product


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
        self._Y = rows
        self._lists = X.lists(-rows if farthest else rows, device)
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
        # In float64 an entry costs little beside a pass, and where rows crowd lists end soon.
        share = self._remaining // (32 if self._lists.crowded else 256)
        longest = max(16 * _SHORTEST, min(share, _LISTED // len(self._Y)))
        longest = max(longest, int(again.max()))
        k = min(int(np.maximum(need[tests], again).max()), longest, self._remaining)
        ranked = self._lists(tests, self._left, k)
        more = k - self._ranked.shape[1]
        if more > 0:
            self._ranked = np.pad(self._ranked, ((0, 0), (0, more)), constant_values=-1)
        self._ranked[tests, :k] = ranked
        self._length[tests], self._at[tests], self._since[tests] = k, 0, self._rounds
        self._complete[tests] = k == self._remaining


def close_pairs(
    function: Callable[[torch.Tensor, Numbers, Numbers, Numbers], Result],
    X: UnitRows,
    Y: NDArray[np.floating],
    *,
    farthest: bool = False,
    euclidean: bool = False,
    device: str | None = None,
) -> Iterator[Result]:
    """Yield a function of all pairs that may be of a training row and its nearest test row.

    Nearest by cosine similarity or Euclidean distance. The function takes a block of (b, d) float32
    training rows; (p,) training and (p,) test rows of the pairs, the former ascending; (b,) where
    each row's begin.
    """
    # Equal test rows would all be among the pairs.
    _, first = np.unique(np.asarray(Y, np.float32), axis=0, return_index=True)
    first = np.sort(first)
    distinct = torch.tensor(np.asarray(Y[first], np.float32)) * (-1 if farthest else 1)
    # |x - y|² = |x|² - 2 (x·y - |y|²/2): the test row with the largest bracket is nearest.
    half = (distinct.double() ** 2).sum(dim=1) / 2 * (-1 if farthest else 1)
    product = Product(device or best_device(), torch.float32)

    def apply(numbers: Numbers, block: torch.Tensor) -> Result:
        for finer in (product, product.finer()):
            scores, slack = finer.scores(finer.factor(block), finer.factor(distinct))
            if euclidean:
                scores -= half.to(scores)
                slack += 8 * finer.rounding
            # 1e-10 is what equal keys may differ by.
            places = reaching(scores, scores.amax(dim=1, keepdim=True) - 2 * slack - 1e-10)
            if len(places) <= _CROWDED * len(block):
                break
        row, test = np.divmod(places, len(first))
        start = np.searchsorted(row, np.arange(len(numbers)))
        return function(block, numbers[row], first[test], start)

    return X.map_blocks(apply, max(1, BLOCK // len(first)))


def nearest_blocks(
    X: UnitRows, Y: NDArray[np.floating], *, farthest: bool = False, device: str | None = None
) -> Iterator[tuple[torch.Tensor, Numbers, Numbers]]:
    """Yield, block by block, the training rows, the nearest test row of each, and their exact key.

    Among equally near test rows the lowest counts; `farthest` too has the key of the similarity.
    """
    sign = -1 if farthest else 1
    exact = torch.tensor(np.asarray(Y, np.float32))

    def nearest(
        block: torch.Tensor, row: Numbers, test: Numbers, start: Numbers
    ) -> tuple[torch.Tensor, Numbers, Numbers]:
        key = sign * pair_keys(X, row, exact, test)
        best = np.maximum.reduceat(key, start)
        ties = np.flatnonzero(key == np.repeat(best, np.diff(start, append=len(row))))
        _, lowest = np.unique(row[ties], return_index=True)
        return block, test[ties[lowest]], sign * best

    return close_pairs(nearest, X, Y, farthest=farthest, device=device)
