"""Instances written in an arranged order: JSONL, Parquet or an Arrow folder.

`Dataset.select` keeps a table of row numbers and looks every row up on its own. Here the order is
cut into blocks as large as the memory set aside for them; the rows of a block are fetched chunk by
chunk in the order in which they are stored, and put into their places in memory.
"""

from __future__ import annotations

import gzip
import json
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tma.config import expanded, unpacked_suffix
from tma.data.json_text import ENCODER
from tma.errors import DataError, StateError, TmaError, wrong
from tma.store import cache_dir, digest, locked, new_file, new_folder

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

BLOCK_BYTES = 2**28
"""Text of the rows that are put in order at once."""
PIECE_ROWS, PIECE_BYTES = 10_000, 2**24
"""Rows and bytes written at once; a piece ends at the first of the two."""


def save(dataset: Dataset, order: ArrayLike | None, path: Path | str) -> None:
    """Write the instances of a dataset in an order.

    Args:
        dataset: instances as `tma.load` gives them, or any dataset.
        order: (k,) row numbers of the dataset, as `tma.arrange` gives them; None: all rows as they
            are stored. A row may be left out, or come twice.
        path: `.jsonl` (also `.jsonl.gz`, `.jsonl.zst`), `.parquet`, or a name without suffix: a
            folder that `datasets.load_from_disk` reads. A file is replaced, whole or not at all; a
            folder must not exist yet. `~` is the home folder, as in `tma.load`.

    Raises:
        DataError: the order names rows that are not there, or the path cannot be written.
        ParameterError: this is no dataset, or no path.
    """
    import datasets

    if not isinstance(dataset, datasets.Dataset):
        raise wrong("dataset", type(dataset).__name__, "a datasets.Dataset")
    if not isinstance(path, str | Path) or path == "":
        raise wrong("path", path, "a text or a Path that names a file or a folder")
    target = expanded(str(path))
    rows = _checked(order, len(dataset))
    if dataset._indices is not None:
        own = dataset._indices.column(0).to_numpy().astype(np.int64)
        rows = own if rows is None else own[rows]
    # The lock would else stay in the user's folder.
    lock = cache_dir() / "locks" / f"{digest(str(target.absolute()))[:20]}.lock"
    with _named(target), locked(target, lock=lock):
        _write(dataset, rows, target)


def _write(dataset: Dataset, rows: NDArray[np.int64] | None, target: Path) -> None:
    table = _table(dataset)
    if unpacked_suffix(target) == ".jsonl":
        with new_file(target) as draft, _packed(draft) as sink:
            _jsonl(_pieces(table, rows), sink)
    elif target.suffix == ".parquet":
        with new_file(target) as draft:
            _parquet(_pieces(table, rows), table.schema, draft)
    elif not target.suffix:
        _folder(_pieces(table, rows), table.schema, target, dataset, rows)
    else:
        raise DataError(f"path={str(target)!r}: expected .jsonl, .parquet, or a folder's name.")


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn every error of writing into one that names the path."""
    try:
        yield
    except StateError as error:
        raise _unwritten(path, error.__cause__ or error) from error
    except TmaError:
        raise
    except (OSError, ValueError) as error:
        raise _unwritten(path, error) from error


def _unwritten(path: Path | str, error: BaseException) -> DataError:
    reason = getattr(error, "strerror", None) or error
    return DataError(f"path={str(path)!r} could not be written: {reason}.")


def _checked(order: ArrayLike | None, count: int) -> NDArray[np.int64] | None:
    if order is None:
        return None
    try:
        rows = np.asarray(order)
    except ValueError as error:
        raise DataError(f"order: {error}; expected one dimension of row numbers.") from error
    if rows.size == 0:
        rows = rows.astype(np.int64)
    if rows.ndim != 1 or not np.issubdtype(rows.dtype, np.integer):
        raise DataError(
            f"order has {rows.ndim} dimensions of {rows.dtype}; expected one of row numbers."
        )
    outside = np.flatnonzero((rows < 0) | (rows >= count))
    if outside.size:
        raise DataError(
            f"order[{outside[0]}] is {rows[outside[0]]}; expected row numbers from 0 to "
            f"{count - 1}."
        )
    return rows.astype(np.int64)


def _table(dataset: Dataset) -> pa.Table:
    """Return the dataset's columns as they are stored, without what only `datasets` reads."""
    table = dataset.data.table
    return table.replace_schema_metadata(None)


def _pieces(table: pa.Table, rows: NDArray[np.int64] | None) -> Iterator[pa.RecordBatch]:
    """Yield the rows in their order."""
    sizes = _sizes(table)
    if rows is None:
        for start, stop in _cuts(sizes, PIECE_BYTES, PIECE_ROWS):
            yield from table.slice(start, stop - start).to_batches()
        return
    if table.nbytes <= BLOCK_BYTES:
        yield from _placed(table.combine_chunks(), rows)
        return
    batches = table.to_batches()
    ends = np.cumsum([0] + [len(batch) for batch in batches])
    for start, stop in _cuts(sizes[rows], BLOCK_BYTES, 10**7):
        yield from _block(batches, ends, rows[start:stop], table.schema)


def _sizes(table: pa.Table) -> NDArray[np.int64]:
    """Return the bytes of each row, (n,): of its texts, and of all else the mean."""
    import pyarrow as pa
    import pyarrow.compute as pc

    sizes = np.ones(len(table), dtype=np.int64)
    for column in table.columns:
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            sizes += pc.fill_null(pc.binary_length(column), 0).to_numpy()
        else:
            sizes += column.nbytes // max(1, len(table))
    return sizes


def _cuts(sizes: NDArray[np.int64], most: int, rows: int) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of runs of `rows` rows or `most` bytes, at least one row each."""
    ends, start = np.cumsum(sizes), 0
    while start < len(sizes):
        before = ends[start - 1] if start else 0
        stop = min(int(np.searchsorted(ends, before + most, side="right")), start + rows)
        yield start, max(start + 1, stop)
        start = max(start + 1, stop)


def _block(
    batches: Sequence[pa.RecordBatch],
    ends: NDArray[np.int64],
    rows: NDArray[np.int64],
    schema: pa.Schema,
) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    stored = np.argsort(rows, kind="stable")
    wanted = rows[stored]
    cuts = np.searchsorted(wanted, ends)
    parts = [
        batch.take(pa.array(wanted[low:high] - first))
        for batch, first, low, high in zip(batches, ends, cuts[:-1], cuts[1:], strict=False)
        if high > low
    ]
    place = np.empty(len(rows), dtype=np.int64)
    place[stored] = np.arange(len(rows))
    yield from _placed(pa.Table.from_batches(parts, schema).combine_chunks(), place)


def _placed(block: pa.Table, rows: NDArray[np.int64]) -> Iterator[pa.RecordBatch]:
    """Yield rows of a table in memory, in their order; threads fetch while the last is written."""
    import pyarrow as pa

    threads = min(4, pa.cpu_count())
    ahead: deque[Future[pa.Table]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for start, stop in _cuts(_sizes(block)[rows], PIECE_BYTES, PIECE_ROWS):
            ahead.append(pool.submit(block.take, pa.array(rows[start:stop])))
            if len(ahead) > 2 * threads:
                yield from ahead.popleft().result().to_batches()
        while ahead:
            yield from ahead.popleft().result().to_batches()


def _jsonl(pieces: Iterator[pa.RecordBatch], sink: BinaryIO) -> None:
    for piece in pieces:
        try:
            lines = [ENCODER.encode(_opened(row)) for row in piece.to_pylist()]
        except ValueError as error:
            raise DataError(
                f"a cell cannot be written as JSON: {error}. Save as .parquet, or replace it."
            ) from error
        sink.write(("\n".join(lines) + "\n").encode("utf-8"))


def _opened(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with its meta as an object, so that a line can be read by eye.

    In datasets of others meta may be any text: one that is not to the letter as we write it stays
    as it is, since the object would say less (a key that stands there twice) or could not be
    written.
    """
    meta = row.get("meta")
    if isinstance(meta, str) and meta.startswith("{"):
        with suppress(ValueError, RecursionError):
            opened = json.loads(meta)
            return row | {"meta": opened} if ENCODER.encode(opened) == meta else row
    return row


@contextmanager
def _packed(path: Path) -> Iterator[BinaryIO]:
    """Yield where to write; equal rows give equal bytes, so no time is stored."""
    if path.suffix == ".gz":
        with path.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed:
            yield cast(BinaryIO, packed)
    elif path.suffix == ".zst":
        import pyarrow as pa

        with pa.OSFile(str(path), "wb") as raw, pa.CompressedOutputStream(raw, "zstd") as stream:
            yield cast(BinaryIO, stream)
    else:
        with path.open("wb") as plain:
            yield plain


def _parquet(pieces: Iterator[pa.RecordBatch], schema: pa.Schema, path: Path) -> None:
    import pyarrow.parquet as pq

    with pq.ParquetWriter(path, schema, write_page_checksum=True) as writer:
        for piece in pieces:
            writer.write_batch(piece)


def _folder(
    pieces: Iterator[pa.RecordBatch],
    schema: pa.Schema,
    path: Path,
    dataset: Dataset,
    rows: NDArray[np.int64] | None,
) -> None:
    """Write the three files of `Dataset.save_to_disk`."""
    import pyarrow as pa

    if path.exists():
        raise DataError(f"path={str(path)!r} exists. Remove it, or give another name.")
    with new_folder(path) as draft:
        file = "data-00000-of-00001.arrow"
        with pa.OSFile(str(draft / file), "wb") as sink, pa.ipc.new_stream(sink, schema) as out:
            for piece in pieces:
                out.write_batch(piece)
        order = b"" if rows is None else rows.tobytes()
        state: dict[str, Any] = {
            "_data_files": [{"filename": file}],
            "_fingerprint": digest(dataset._fingerprint, order)[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": None,
        }
        info = {"features": dataset.features.to_dict()}
        for name, value in (("state", state), ("dataset_info", info)):
            (draft / f"{name}.json").write_text(json.dumps(value, indent=2), encoding="utf-8")
