"""Batches of rows → instances on disk, which `datasets` maps into memory.

The rows are gone through twice. First all of them are written as text, and one small number each is
kept of task, source and content; when all are known, the split and the counters of repeats are
decided; then the rows of each split are written with their ids. What grows with the number of rows
is about 60 bytes a row; the text never stands in memory.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tma.data.batches import BATCH_BYTES, BATCH_ROWS, Batch
from tma.data.formats import Instance, Reading, check_mapped, content_key, reading
from tma.data.split import SPLITS, TEST, TRAIN, Labels, Plan, assign, capped, is_own
from tma.data.tokens import is_longer
from tma.errors import DataError
from tma.store import write_json

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("id", "task", "prompt", "response", "meta")
MANIFEST = "manifest.json"
_PARTS = {None: 0, "train": TRAIN, "test": TEST}


@dataclass(frozen=True)
class Source:
    """Where rows come from, before anything is read."""

    key: str
    """Digest of everything that decides the rows."""
    batches: Callable[[], Iterator[Batch]]
    """Reads them."""
    plan: Plan = field(default_factory=Plan)
    """How they are split."""
    columns: Mapping[str, str] | None = None
    """Which columns they are read from; None: recognised."""
    max_tokens: int | None = None
    """Tokens of an instance at most (see `tma.data.tokens`); None: any number."""


def repeats(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return how often the same key stands before each, (n,)."""
    order = np.argsort(keys, kind="stable")
    ranked = keys[order]
    position = np.arange(len(keys))
    starts = np.ones(len(keys), dtype=bool)
    starts[1:] = ranked[1:] != ranked[:-1]
    out = np.empty(len(keys), dtype=np.int64)
    out[order] = position - np.maximum.accumulate(np.where(starts, position, 0))
    return out


def ids(keys: NDArray[np.uint64], before: NDArray[np.int64]) -> list[str]:
    """Return ids from keys and how often each key stands before."""
    pairs = zip(keys.tolist(), before.tolist(), strict=True)
    return [f"{key:016x}-{n + 1}" if n else f"{key:016x}" for key, n in pairs]


def counters(keys: NDArray[np.uint64], saved: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how often each key counts as standing before: as its saved id says, if it is the
    first with that id, else the least number that is free, (n,).

    Args:
        keys: of the content, (n,).
        saved: what a saved id counts, from 1; 0 without one, (n,).
    """
    out = repeats(keys)
    if not saved.any():
        return out
    taken, late = set[tuple[int, int]](), list[int]()
    # Most keys are alone and have the first number: only the others are gone through.
    for row in np.flatnonzero(np.isin(keys, keys[(out > 0) | (saved > 1)])).tolist():
        pair = (int(keys[row]), int(saved[row]) - 1)
        if pair[1] < 0 or pair in taken:
            late.append(row)
        else:
            taken.add(pair)
            out[row] = pair[1]
    least = Counter[int]()
    for row in late:
        key = int(keys[row])
        while (key, least[key]) in taken:
            least[key] += 1
        taken.add((key, least[key]))
        out[row] = least[key]
    return out


def build(folder: Path, source: Source, empty: str, name: str) -> None:
    """Write `train.arrow`, `test.arrow` and, last, the manifest into a folder.

    Args:
        folder: an empty folder.
        source: where the rows come from.
        empty: "drop" or "error".
        name: the dataset, for messages.

    Raises:
        DataError: the first row that cannot be used, or why the dataset cannot be split.
    """
    draft = folder / "rows.arrow"
    staged = _Stage(source.columns, empty, name, source.max_tokens)
    _write(draft, _schema(COLUMNS[1:]), (staged.add(batch) for batch in source.batches()))
    staged.check()
    labels = staged.labels()
    there = assign(labels, source.plan)
    chosen = capped(there, labels, source.plan)
    counts, long = {}, {}
    for split, number in zip(SPLITS, (TRAIN, TEST), strict=True):
        kept = chosen == number
        before = counters(labels.key[kept], staged.counters()[kept])
        rows = _numbered(draft, kept, labels.key, before)
        _write(folder / f"{split}.arrow", _schema(COLUMNS), rows)
        counts[split] = int(kept.sum())
        too_long = int((there == -number).sum())
        long[split] = [too_long, too_long + int((there == number).sum())]
    draft.unlink()
    empties = {part or "none": staged.empty[code] for part, code in _PARTS.items()}
    found = {"rows": counts, "read": staged.read(), "empty": empties, "long": long}
    found |= {"max_instance_tokens": source.max_tokens, "source": staged.source_column()}
    own = is_own(labels, source.plan)
    write_json(folder / MANIFEST, found | {"name": name, "own_split": own})


def _schema(columns: Sequence[str]) -> pa.Schema:
    import pyarrow as pa

    return pa.schema([(column, pa.string()) for column in columns])


def _write(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    import pyarrow as pa

    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


@dataclass
class _Stage:
    """What is kept in memory of the rows that were written so far."""

    columns: Mapping[str, str] | None
    policy: str
    name: str
    most: int | None = None
    part: array[int] = field(default_factory=lambda: array("b"))
    task: array[int] = field(default_factory=lambda: array("q"))
    source: array[int] = field(default_factory=lambda: array("q"))
    key: array[int] = field(default_factory=lambda: array("Q"))
    counter: array[int] = field(default_factory=lambda: array("q"))
    long: array[int] = field(default_factory=lambda: array("b"))
    tasks: dict[str, int] = field(default_factory=dict)
    sources: dict[str, int] = field(default_factory=dict)
    empty: Counter[int] = field(default_factory=Counter)
    left_out: int = 0
    _present: dict[str, None] = field(default_factory=dict)
    _reading: Reading | None = None

    def add(self, batch: Batch) -> pa.RecordBatch:
        """Return the rows of a batch as they are written; keep their labels."""
        made = self._made(batch)
        self.left_out += batch.left_out
        part, tasks, sources = _PARTS[batch.part], self.tasks, self.sources
        for row in made:
            self.part.append(part)
            self.task.append(-1 if row.task is None else tasks.setdefault(row.task, len(tasks)))
            own = row.source
            self.source.append(-1 if own is None else sources.setdefault(own, len(sources)))
            key = content_key(row.task, str(row.prompt), str(row.response))
            self.key.append(int(key, 16))
            self.counter.append(_counter(row.id))
            self.long.append(self._is_long(row))
        return _texts(made, COLUMNS[1:])

    def _made(self, batch: Batch) -> list[Instance]:
        """Return the rows that have both prompt and response."""
        if not batch.rows:  # it only says what was left out
            return []
        read, made, at = self._reader(batch).instance, [], 0
        try:
            for k, row in enumerate(batch.rows):
                at, one = k, read(row)
                if one.prompt and one.response:
                    _check_text(one)
                    made.append(one)
                else:
                    self._skip(one, _PARTS[batch.part])
        except (DataError, RecursionError) as error:
            raise DataError(f"{batch.at(at)}: {error}") from error
        return made

    def _reader(self, batch: Batch) -> Reading:
        """Return how the rows are read; a column that only now appears may make it unclear."""
        before = len(self._present)
        for row in batch.rows if batch.unit == "line" else batch.rows[:1]:
            self._present.update(dict.fromkeys(row))
        if self._reading is None or len(self._present) > before:
            self._reading = reading(self._present, self.columns, self.name)
        return self._reading

    def _skip(self, row: Instance, part: int) -> None:
        if self.policy == "error":
            field_ = "response" if row.prompt else "prompt"
            raise DataError(f"the {field_} is empty; empty='drop' leaves such rows out.")
        self.empty[part] += 1

    def _is_long(self, row: Instance) -> bool:
        most, texts = self.most, (str(row.prompt), str(row.response))
        return most is not None and is_longer(*texts, most)

    def source_column(self) -> str | None:
        """Return the column with the source dataset of each row; None: there is none."""
        return self._reading.source if self._reading is not None else None

    def labels(self) -> Labels:
        """Return the labels of all rows."""
        task, source = (np.frombuffer(a, dtype=np.int64) for a in (self.task, self.source))
        part = np.frombuffer(self.part, dtype=np.int8)
        key, tests = np.frombuffer(self.key, dtype=np.uint64), self.empty[TEST] > 0
        long = np.frombuffer(self.long, dtype=np.bool_)
        return Labels(part, task, source, key, list(self.tasks), list(self.sources), tests, long)

    def counters(self) -> NDArray[np.int64]:
        """Return the counter of each row's saved id, from 1; 0 without one."""
        return np.frombuffer(self.counter, dtype=np.int64)

    def read(self) -> int:
        """Return how many rows the source has."""
        return len(self.part) + self.empty.total() + self.left_out

    def check(self) -> None:
        """Refuse a source without rows, and a mapping to a column that no row had."""
        if not self.read():
            raise DataError(f"dataset={self.name!r} could not be read: it has no rows.")
        check_mapped(self._present, self.columns, self.name)


def _counter(own: str | None) -> int:
    """Return what a saved id counts, from 1; 0 without one."""
    return 0 if own is None else int(own[17:] or 1)


def _check_text(row: Instance) -> None:
    """Refuse half a surrogate pair, which JSON can escape and no file can hold."""
    for cell in row:
        if cell is not None and not cell.isascii():
            try:
                cell.encode("utf-8")
            except UnicodeEncodeError as error:
                half = rf"\u{ord(cell[error.start]):04x}"
                raise DataError(f"the text holds {half}, which is half a character.") from error


def _texts(rows: Sequence[Any], columns: Sequence[str]) -> pa.RecordBatch:
    import pyarrow as pa

    cells = [pa.array([getattr(row, c) for row in rows], pa.string()) for c in columns]
    return pa.RecordBatch.from_arrays(cells, schema=_schema(columns))


def _numbered(
    path: Path, kept: NDArray[np.bool_], keys: NDArray[np.uint64], before: NDArray[np.int64]
) -> Iterator[pa.RecordBatch]:
    """Yield the kept rows with their ids, in batches of equal size.

    Few large batches: of each, `datasets` keeps a mapped page or more.
    """
    import pyarrow as pa

    own = keys[kept]
    done, held = 0, list[pa.RecordBatch]()
    for batch in _masked(path, kept):
        part = slice(done, done + len(batch))
        done += len(batch)
        names = pa.array(ids(own[part], before[part]), pa.string())
        held.append(pa.RecordBatch.from_arrays([names, *batch.columns], schema=_schema(COLUMNS)))
        if sum(map(len, held)) >= BATCH_ROWS or sum(b.nbytes for b in held) >= BATCH_BYTES:
            yield from pa.Table.from_batches(held).combine_chunks().to_batches()
            held = []
    if held:
        yield from pa.Table.from_batches(held).combine_chunks().to_batches()


def _masked(path: Path, kept: NDArray[np.bool_]) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    start = 0
    with pa.OSFile(str(path)) as source, pa.ipc.open_stream(source) as stream:
        for batch in stream:
            mask = kept[start : start + len(batch)]
            start += len(batch)
            if mask.any():
                yield batch.filter(pa.array(mask))
