"""Rows on their way: batches that know where they stand, and errors that name the file."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tma.data.conversations import Row
from tma.errors import DataError, first_line

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

log = logging.getLogger(__name__)

BATCH_ROWS, BATCH_BYTES = 10_000, 2**24
"""Rows and bytes of a batch; it ends at the first of the two that is reached."""


@dataclass(frozen=True)
class Batch:
    """Some consecutive rows of one file."""

    rows: Sequence[Row]
    """Column name → cell."""
    file: str
    """Where they stand."""
    places: Sequence[int]
    """Line (or row) number of each, from 1."""
    unit: str = "line"
    """What the numbers count."""
    part: str | None = None
    """Split to which the source counts them; None: it has no splits."""
    left_out: int = 0
    """Rows of the source, read since the last batch, that are not among those of any batch: over a
    cap, outside the wanted tasks, or joined with another row."""

    def at(self, k: int) -> str:
        """Return where row k of the batch stands, in words."""
        return f"{self.file}, {self.unit} {self.places[k]}"


@contextmanager
def named(path: Path | str) -> Iterator[None]:
    """Turn every error of reading into one that names the file."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        # Every library below has its own error classes; the user needs one message.
        raise DataError(f"{path} could not be read: {first_line(error).rstrip('.')}.") from error


def batched(
    rows: Iterable[tuple[int, int, Row]], file: str, part: str | None, unit: str = "line"
) -> Iterator[Batch]:
    """Yield (line number, bytes, row) triples as batches."""
    size, places, held = 0, list[int](), list[Row]()
    for place, bytes_, row in rows:
        places.append(place)
        held.append(row)
        size += bytes_
        if len(held) == BATCH_ROWS or size >= BATCH_BYTES:
            yield Batch(held, file, places, unit, part)
            size, places, held = 0, [], []
    if held:
        yield Batch(held, file, places, unit, part)


def arrow_rows(
    batches: Iterable[pa.RecordBatch], file: str, part: str | None, seen: int = 0
) -> Iterator[Batch]:
    """Yield record batches as rows, in pieces that fit the memory; `seen` rows came before."""
    for batch in batches:
        step = int(max(1, min(BATCH_ROWS, BATCH_BYTES * len(batch) // max(1, batch.nbytes))))
        for start in range(0, len(batch), step):
            rows = batch.slice(start, step).to_pylist()
            places = range(seen + start + 1, seen + start + 1 + len(rows))
            yield Batch(rows, file, places, "row", part)
        seen += len(batch)


def wanted(parts: Iterable[str], name: str) -> list[str]:
    """Return which splits of a dataset are read: train and test; one warning names the others."""
    found = [str(part) for part in parts]
    chosen = [part for part in found if part in ("train", "test")]
    if not chosen:
        raise DataError(
            f"dataset={name!r} has no split 'train'; it has {', '.join(found)}. Save the one that "
            "is wanted as a .jsonl or .parquet file and give that file."
        )
    ignored = ", ".join(part for part in found if part not in chosen)
    if ignored:
        log.warning("dataset %s: splits that are not read: %s", name, ignored)
    return sorted(chosen, reverse=True)
