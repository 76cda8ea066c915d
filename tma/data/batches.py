"""Rows on their way: batches that know where they stand, the JSON codec, errors naming a file."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tma.errors import DataError, TmaError, first_line

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa
    from datasets import Features

log = logging.getLogger(__name__)

Row = Mapping[str, Any]
"""Column → cell."""
BATCH_ROWS, BATCH_BYTES = 10_000, 2**24
"""A batch ends at the first of the two."""
COMPRESSION = {".gz": "gzip", ".zst": "zstd"}
"""Suffix of a compressed file → what pyarrow calls it."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    cells = dict(pairs)
    if len(cells) < len(pairs):  # perhaps two rows that were run together
        check_unique([name for name, _ in pairs], "the key")
    return cells


def check_unique(names: Sequence[str], what: str) -> None:
    """Refuse a name that appears twice; `what` says what the names are, and where."""
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{what} {twice!r} appears twice")


DECODER = json.JSONDecoder(parse_constant=lambda _: None, object_pairs_hook=_object)
"""Reads NaN and infinities as missing; a repeated key is a DataError."""
ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=str)
"""Writes what JSON has no form for, such as a date, as text; NaN is a ValueError."""


@dataclass(frozen=True)
class Batch:
    """Some consecutive rows of one file."""

    rows: Sequence[Row]
    file: str
    places: Sequence[int]
    """Line (or row) number of each, from 1."""
    unit: str = "line"
    """What the numbers count."""
    part: str | None = None
    """The split that the source puts them in; None: it has no splits."""
    left_out: int = 0
    """Rows read since the last batch that are in no batch: over a cap, outside the tasks asked for,
    or merged into another row."""
    written: Sequence[str] | pa.RecordBatch | None = None
    """The rows as the source wrote them: JSON objects as text, or Arrow; None: `rows` are that."""

    def at(self, k: int) -> str:
        """Return where row k of the batch stands, in words."""
        return f"{self.file}, {self.unit} {self.places[k]}"

    def take(self, at: Sequence[int], rows: Sequence[Row] | None = None) -> Batch:
        """Return the rows of some places in the batch, which may have been changed to `rows`."""
        import pyarrow as pa

        written = self.written
        if isinstance(written, pa.RecordBatch):
            written = written.take(pa.array(at, pa.int64()))
        elif written is not None:
            written = [written[k] for k in at]
        return replace(
            self,
            rows=[self.rows[k] for k in at] if rows is None else rows,
            places=[self.places[k] for k in at],
            written=written,
        )


@contextmanager
def file_errors(path: Path | str) -> Iterator[None]:
    """Turn every error of reading into one that names the file."""
    try:
        yield
    except TmaError:
        raise
    except Exception as error:
        # Every library below has its own error classes; the user needs one message.
        raise DataError(f"{path} could not be read: {first_line(error).rstrip('.')}.") from error


def batched(
    rows: Iterable[tuple[int, str, Row]], file: str, part: str | None, unit: str = "line"
) -> Iterator[Batch]:
    """Yield (line number, JSON text, row) triples as batches."""
    size, places, held, written = 0, list[int](), list[Row](), list[str]()
    for place, text, row in rows:
        places.append(place)
        held.append(row)
        written.append(text)
        size += len(text)
        if len(held) == BATCH_ROWS or size >= BATCH_BYTES:
            yield Batch(held, file, places, unit, part, written=written)
            size, places, held, written = 0, [], [], []
    if held:
        yield Batch(held, file, places, unit, part, written=written)


def arrow_batched(
    batches: Iterable[pa.RecordBatch | pa.Table], file: str, part: str | None
) -> Iterator[Batch]:
    """Yield Arrow rows in pieces that fit in memory."""
    import pyarrow as pa

    seen = 0
    for batch in batches:
        if not seen:
            check_unique(batch.schema.names, f"{file}: the column")
        batch.validate(full=True)  # a damaged offset would read foreign memory
        table = batch if isinstance(batch, pa.Table) else pa.Table.from_batches([batch])
        features = _features(table.schema)
        if features is not None:
            table = table.cast(features.arrow_schema)
        step = max(1, min(BATCH_ROWS, BATCH_BYTES * len(table) // max(1, table.nbytes)))
        for piece in table.combine_chunks().to_batches(max_chunksize=step):
            rows = piece.to_pylist()
            if features is not None:
                rows = [decoded(row, features) for row in rows]
            places = range(seen + 1, seen + 1 + len(rows))
            written = None if features is None else piece
            yield Batch(rows, file, places, "row", part, written=written)
            seen += len(rows)


def _features(schema: pa.Schema) -> Features | None:
    """Return what `datasets` stores beside the types; None: it has no form for one of them."""
    from datasets import Features

    try:
        return Features.from_arrow_schema(schema)
    except (ValueError, NotImplementedError, TypeError):
        return None


def decoded(value: Any, feature: Any, *, classes: bool = True) -> Any:
    """Return a cell as its writer meant it: JSON text as its value, a class by its name."""
    from datasets import ClassLabel, Json, List

    if value is None:
        return None
    if isinstance(feature, Json):
        return DECODER.decode(value) if isinstance(value, str) else value
    if classes and isinstance(feature, ClassLabel):
        return feature.names[value] if 0 <= value < len(feature.names) else None
    if isinstance(feature, dict):
        cells = value.items()
        return {name: decoded(cell, feature[name], classes=classes) for name, cell in cells}
    if isinstance(feature, List):
        return [decoded(one, feature.feature, classes=classes) for one in value]
    return value


def chosen_splits(parts: Iterable[str], name: str) -> list[str]:
    """Return which splits of a dataset are read, train before test; warn of all others."""
    found = [str(part) for part in parts]
    chosen: list[str] = [part for part in ("train", "test") if part in found]
    if not chosen:
        raise DataError(
            f"dataset={name!r} has no split 'train'; it has {', '.join(found)}. Save the split "
            "you want as a .jsonl or .parquet file and give that file."
        )
    ignored = ", ".join(part for part in found if part not in chosen)
    if ignored:
        log.warning("dataset %s: splits that are not read: %s", name, ignored)
    return chosen
