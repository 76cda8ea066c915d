"""Exact nearest rows where the training rows lie in shards, and no process holds them all.

A shard lists its own nearest rows of each test row; lists are merged as a tree and cut to the k
best. At first a shard gives about its share of k. It is asked for more, and for those test rows
alone, only while its best key left may be among the k best: with rows stored task by task most
shards soon are not asked again. Where lists are used up and which rows a round takes is decided in
one place (`tma.arrange.exact_knn.Nearest`), whose memory is O(m · k) and one byte a row.
Shards keep no state, so that one that is lost on its way is simply asked again.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from os import PathLike, fspath
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import torch
from numpy.typing import NDArray

from tma.arrange.exact_knn import Product, Result, UnitRows, nearest_lists, pair_keys, ranks
from tma.arrange.spec import Numbers
from tma.cluster import Tasks
from tma.errors import ParameterError, first_line, wrong

Source = Any
"""A .npy file, local or of an object store, an array, or a function that returns one."""
Lists = tuple[Numbers, Numbers]
"""The pairs of several lists: `place · 2³⁵ - key`, ascending, and the training row."""


class Ask(NamedTuple):
    """What a shard is asked: its k nearest rows of some test rows, but for those that it gave."""

    tests: Numbers
    place: Numbers
    """Where the test rows stand in the search."""
    had: Numbers
    """How many rows of each list the shard gave before."""
    gone: Numbers
    """The shard's rows that are taken."""
    k: int
    checked: bool
    """Whether all rows have been read before and were of length 1."""


FAN = 8
"""Lists that are merged at once."""
PART = 2**26
"""Most bytes of an array that are one shard: a node has to hold it."""
_SPARE = 16
"""Entries that a shard gives beyond its share."""
_STEP = 2**35
_OPEN, _DONE = 2**34, -(2**34) - 1
"""Above the key of any row, where nothing is known, and below, where none is left."""
_FEWER = -(2**34)
"""What the k-th best key counts as where there are fewer than k."""


class ShardedRows(UnitRows):
    """Embeddings in shards, (n, d), the rows numbered shard after shard.

    Of `UnitRows` it has what the rounds of TMA and the distances of rows need, and no rows itself.
    """

    def __init__(self, sources: Sequence[Source], tasks: Tasks) -> None:
        self.tasks = tasks
        self.sources = [(tasks.put(one) if isinstance(one, np.ndarray) else one) for one in sources]
        shapes = tasks.result([tasks.submit(_shape, one) for one in self.sources])
        self._width = int(shapes[0][1])
        for source, (_, width) in zip(sources, shapes, strict=True):
            if width != self._width:
                raise ValueError(
                    f"{source} has {width} columns and {sources[0]} {self._width}; embed all with "
                    "one encoder."
                )
        self.starts = np.array([0, *accumulate(count for count, _ in shapes)])
        self._checked = False

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def width(self) -> int:
        """Columns, d."""
        return self._width

    def check(self) -> None:
        """Read and check all rows, unless that has been done."""
        if not self._checked:
            self.each(_check)

    def each(self, function: Callable[..., Result], *given: Any) -> list[Result]:
        """Return function(rows, …) of every shard, whose rows it reads whole."""
        submit, starts = self.tasks.submit, self.starts[:-1].tolist()
        parts = zip(self.sources, starts, strict=True)
        found: list[Result] = self.tasks.result(
            [submit(_apply, function, *part, *given) for part in parts]
        )
        self._checked = True
        return found

    def keys(self, row: Numbers, Y: torch.Tensor, test: Numbers) -> Numbers:
        """Return the exact keys of the pairs X[row[p]], Y[test[p]]."""
        out = np.empty(len(row), np.int64)
        shard = np.searchsorted(self.starts, row, side="right") - 1
        at = [np.flatnonzero(shard == number) for number in np.unique(shard)]
        asked = [
            self.tasks.submit(
                _keys, self.sources[(s := shard[own[0]])], row[own] - self.starts[s], Y[test[own]]
            )
            for own in at
        ]
        for own, keys in zip(at, self.tasks.result(asked), strict=True):
            out[own] = keys
        return out

    def lists(self, Y: torch.Tensor, device: str | None) -> _Search:
        """Return a search for the rows nearest to test rows; see `UnitRows.lists`."""
        self._checked = True  # the first lists need every row
        return _Search(self, Y, device)


class AsStored:
    """The caller's numbers of rows that are numbered as the caller does: no memory a row."""

    def __getitem__(self, rows: Numbers) -> Numbers:
        return rows


class _Search:
    """The k nearest rows left of some test rows, of all shards."""

    crowded = False

    def __init__(self, X: ShardedRows, Y: torch.Tensor, device: str | None) -> None:
        self._X, self._device = X, device
        self._Y = X.tasks.put(Y)
        shape = len(X.sources), len(Y)
        # The best key that a shard had left when it was last asked, and its part of the last list.
        self._best = np.full(shape, _OPEN)
        self._share = np.full(shape, 1 / shape[0])

    def __call__(self, tests: Numbers, left: NDArray[np.bool_], k: int) -> Numbers:
        """Return (len(tests), k) row numbers, nearest first."""
        starts = self._X.starts
        parts = [left[start:stop] for start, stop in pairwise(starts)]
        count = np.array([np.count_nonzero(part) for part in parts])
        gone = [np.flatnonzero(~part) for part in parts]
        bound = np.where(count[:, None] > 0, self._best[:, tests], _DONE)
        had = np.zeros(bound.shape, np.int64)
        likely = (bound > _DONE) & (self._share[:, tests] > 0)
        ask = np.where(likely.any(axis=0), likely, bound > _DONE)
        size = 1.25 * k * self._share[:, tests].max(axis=1) + _SPARE
        lists: Any = (np.empty(0, np.int64), np.empty(0, np.int64))
        while ask.any():
            size = np.clip(size, 1, np.minimum(k, count)).astype(np.int64)
            seen: NDArray[np.bool_] = np.any(self._best < _OPEN, axis=1)
            given = np.flatnonzero(ask.any(axis=1)).tolist()
            own = {s: np.flatnonzero(ask[s]) for s in given}
            asks = {
                s: Ask(tests[o], o, had[s, o], gone[s], int(size[s]), bool(seen[s]))
                for s, o in own.items()
            }
            lists, ends = self._asked(lists, asks, k)
            for (s, at), (best, last) in zip(own.items(), ends, strict=True):
                self._best[s, tests[at]] = best
                bound[s, at], had[s, at] = last, size[s]
            bound[(had >= k) | (had >= count[:, None])] = _DONE
            ask = bound >= _kth(lists[0], len(tests), k)
            size = np.full(len(count), k)
        ranked: Numbers = lists[1].reshape(len(tests), k)
        shard = np.searchsorted(starts, ranked, side="right") - 1
        for number, share in enumerate(self._share):
            share[tests] = (shard == number).sum(axis=1) / k
        return ranked

    def _asked(self, lists: Any, asks: dict[int, Ask], k: int) -> tuple[Lists, list[Lists]]:
        """Return the lists with what the shards give, and each one's best and last keys."""
        X, tasks, same = self._X, self._X.tasks, (self._Y, self._device)
        given = [
            tasks.submit(listed, X.sources[s], int(X.starts[s]), ask, *same, parts=2)
            for s, ask in asks.items()
        ]
        found = [lists, *(pairs for _, pairs in given)]
        while len(found) > 1:
            groups = [found[at : at + FAN] for at in range(0, len(found), FAN)]
            found = [tasks.submit(merged, k, *group) for group in groups]
        return tasks.result(found[0]), tasks.result([ends for ends, _ in given])


def merged(k: int, *lists: Lists) -> Lists:
    """Return the k best of each test row, of several lists; among equal keys the lowest rows."""
    code, row = (np.concatenate(parts) for parts in zip(*lists, strict=True))
    by = np.argsort(code, kind="stable")  # of sorted parts: a merge
    if (np.diff(row[by])[np.diff(code[by]) == 0] < 0).any():
        by = np.lexsort((row, code))
    code, row = code[by], row[by]
    keep = ranks(np.bincount(_test(code))) < k
    return code[keep], row[keep]


def _test(code: Numbers) -> Numbers:
    return (code + _STEP // 2) // _STEP


def _kth(code: Numbers, tests: int, k: int) -> Numbers:
    """Return the k-th best key of each test row."""
    count = np.bincount(_test(code), minlength=tests)
    out = np.full(tests, _FEWER)
    full = np.flatnonzero(count >= k)
    out[full] = full * _STEP - code[np.cumsum(count)[full] - 1]
    return out


def listed(
    source: Source, start: int, ask: Ask, Y: torch.Tensor, device: str | None
) -> tuple[Lists, Lists]:
    """Return the best and the last key of a shard's k nearest rows, and the pairs not yet had."""
    rows, k = opened(source, start), ask.k
    rows._checked = ask.checked
    numbers = np.delete(np.arange(len(rows)), ask.gone) if len(ask.gone) else None
    row = nearest_lists(rows, Y[ask.tests], numbers, k, Product.on(device)).ravel()
    key = pair_keys(rows, row, Y, np.repeat(ask.tests, k))
    new = np.tile(np.arange(k), len(ask.tests)) >= np.repeat(ask.had, k)
    code = np.repeat(ask.place, k) * _STEP - key
    best, last = key.reshape(-1, k)[:, [0, -1]].T
    return (best, last), (code[new], row[new] + start)


def _apply(function: Callable[..., Any], source: Source, start: int, *given: Any) -> Any:
    return function(opened(source, start), *given)


def _check(rows: UnitRows) -> None:
    rows.check()


def _keys(source: Source, row: Numbers, Y: torch.Tensor) -> Numbers:
    return pair_keys(opened(source, 0), row, Y, np.arange(len(row)))


def _shape(source: Source) -> tuple[int, int]:
    rows = opened(source, 0)
    return len(rows), rows.width


def opened(source: Source, start: int) -> UnitRows:
    """Return the rows of a shard: of a local file mapped into memory."""
    if isinstance(source, np.ndarray):
        return UnitRows(source, f"X[{start}:]" if start else "X")
    if callable(source):
        return UnitRows(source(), str(source))
    try:
        return UnitRows(_array(source), source)
    except (OSError, ValueError) as error:
        raise ParameterError(f"X={source!r} cannot be read: {first_line(error)}") from error


def _array(source: str) -> NDArray[np.floating]:
    if "://" not in source:
        local: NDArray[np.floating] = np.load(source, mmap_mode="r", allow_pickle=False)
        return local
    from pyarrow import fs

    system, path = fs.FileSystem.from_uri(source)
    with system.open_input_file(path) as stream:
        rows: NDArray[np.floating] = np.load(io.BytesIO(stream.read()), allow_pickle=False)
    return rows


def shard_sources(X: Any, parts: int) -> list[Source]:
    """Return the shards of an array, which is cut, of a folder of .npy files, or of their list."""
    if isinstance(X, np.ndarray):
        UnitRows(X, "X")  # refuses what has no rows
        parts = max(parts, -(-X.nbytes // PART))
        return np.array_split(X, min(parts, len(X)))
    X = fspath(X) if isinstance(X, PathLike) else X
    files = _files(X) if isinstance(X, str) else X
    if not files or not all(isinstance(one, str | PathLike) or callable(one) for one in files):
        raise wrong("X", X, "an array, a folder of .npy files, or a list of them")
    return [one if callable(one) else _absolute(fspath(one)) for one in files]


def _absolute(place: str) -> str:
    return place if "://" in place else str(Path(place).absolute())


def _files(place: str) -> list[str]:
    """Return the .npy files of a folder by name, or the one that `place` is."""
    if "://" not in place:
        return [*map(str, sorted(Path(place).glob("*.npy")))] if Path(place).is_dir() else [place]
    if place.endswith(".npy"):
        return [place]
    from pyarrow import fs

    try:
        system, path = fs.FileSystem.from_uri(place)
        names = [found.base_name for found in system.get_file_info(fs.FileSelector(path))]
    except (OSError, ValueError) as error:
        raise ParameterError(f"X={place!r} cannot be read: {first_line(error)}") from error
    names = sorted(name for name in names if name.endswith(".npy"))
    return [f"{place.rstrip('/')}/{quote(name)}" for name in names]
