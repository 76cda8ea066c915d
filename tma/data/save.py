"""Source rows written in an arranged order: JSONL, Parquet or an Arrow folder.

The order is cut into blocks that fit in memory. The rows of a block are fetched in the sequence in
which they are stored and put in order in memory; `Dataset.select` would look up every row alone.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tma.config import expanded
from tma.data.batches import COMPRESSION, ENCODER, decoded
from tma.data.readers import unpacked_suffix
from tma.errors import DataError, first_line, wrong
from tma.store import cache_dir, digest, locked, new_file, new_folder, write_json

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, Features

log = logging.getLogger(__name__)

BLOCK_BYTES = 2**28
"""Text of the rows that are put in order at once."""
ID = "tma_id"
"""Column with the id of each row that is written."""
PIECE_ROWS, PIECE_BYTES = 10_000, 2**24
"""About the most rows, and bytes, that are written at once."""


def save(dataset: Dataset, order: ArrayLike | None, path: Path | str) -> None:
    """Write the rows from which a dataset was read, whole, in an order, and `tma_id` beside them.

    Args:
        dataset: instances as `tma.load` gives them; of any other dataset its own rows are written.
        order: (k,) row numbers of the dataset, as `tma.arrange` gives them; None: all rows as they
            are stored. A row may be left out, or come twice.
        path: `.jsonl` (also `.jsonl.gz`, `.jsonl.zst`), `.parquet`, or, without suffix, a folder
            for `datasets.load_from_disk`. A file is replaced; a folder must not exist yet.

    Raises:
        DataError: the order names rows that are not there, the path cannot be written, or its
            format cannot hold the rows.
        ParameterError: this is no dataset, or no path.
    """
    import datasets

    if not isinstance(dataset, datasets.Dataset):
        raise wrong("dataset", type(dataset).__name__, "a datasets.Dataset")
    if not isinstance(path, str | Path) or path == "":
        raise wrong("path", path, "a text or a Path that names a file or a folder")
    target, rows = expanded(str(path)), _checked(order, len(dataset))
    if dataset._indices is not None:
        own = dataset._indices.column(0).to_numpy().astype(np.int64)
        rows = own if rows is None else own[rows]
    _warn_of_repeats(dataset, rows)
    # Beside the target the lock would stay in the user's folder.
    lock = cache_dir() / "locks" / f"{digest(str(target.absolute()))[:20]}.lock"
    try:
        with locked(target, lock=lock):
            _write(dataset, rows, target)
    except DataError:
        raise
    except (OSError, ValueError) as error:
        cause = error.__cause__ or error
        reason = getattr(cause, "strerror", None) or cause
        raise DataError(f"path={str(target)!r} could not be written: {reason}.") from error


def _warn_of_repeats(dataset: Dataset, rows: NDArray[np.int64] | None) -> None:
    """Warn of rows that are written again, since several of their exchanges are instances."""
    import pandas as pd

    table = dataset.data.table
    if "place" not in table.column_names:
        return
    several = table.column("exchanges").is_valid().to_numpy()
    at = np.flatnonzero(several) if rows is None else rows[several[rows]]
    found = pd.DataFrame(table.select(["place", "id"]).take(at).to_pydict()).drop_duplicates()
    if count := int(found["place"].duplicated().sum()) if len(found) else 0:
        first = found["place"][found["place"].duplicated()].iloc[0]
        log.warning(
            "%d rows are written more than once, a time for each exchange (first: %s)", count, first
        )


def _write(dataset: Dataset, rows: NDArray[np.int64] | None, target: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table, file = dataset.data.table, "data-00000-of-00001.arrow"
    if "row" in table.column_names:
        table = table.select(["row", "id"])
    if unpacked_suffix(target) == ".jsonl":
        # A stream that is compressed here stores no time: equal rows give equal bytes.
        with (
            new_file(target) as draft,
            draft.open("wb") as raw,
            pa.output_stream(raw, COMPRESSION.get(target.suffix)) as sink,
        ):
            for piece in _pieces(table, rows):
                sink.write(_json_lines(piece, dataset.features))
    elif target.suffix not in ("", ".parquet"):
        raise DataError(f"path={str(target)!r}: expected .jsonl, .parquet, or a folder's name.")
    elif target.suffix:
        schema = _schema(dataset, table)
        with (
            new_file(target) as draft,
            pq.ParquetWriter(draft, schema, write_page_checksum=True) as writer,
        ):
            for piece in _pieces(table, rows):
                writer.write_batch(_typed(piece, schema))
    elif target.exists():
        raise DataError(f"path={str(target)!r} exists. Remove it, or give another name.")
    else:
        schema = _schema(dataset, table)
        with new_folder(target) as draft:
            with pa.ipc.new_stream(draft / file, schema) as writer:
                for piece in _pieces(table, rows):
                    writer.write_batch(_typed(piece, schema))
            _describe_folder(draft, file, dataset._fingerprint, rows, schema)


def _is_text(schema: pa.Schema) -> bool:
    """Return whether source rows are stored as JSON text."""
    import pyarrow as pa

    return "row" in schema.names and pa.types.is_string(schema.field("row").type)


def _schema(dataset: Dataset, table: pa.Table) -> pa.Schema:
    """Return the columns that are written; of rows read as text, the types that hold all values."""
    import pyarrow as pa
    from datasets import Features, Value

    if "row" not in table.column_names:
        return table.schema
    if not _is_text(table.schema):
        return Features({**dataset.features["row"], ID: Value("string")}).arrow_schema
    try:
        found = [pa.Table.from_pylist(_rows(piece)).schema for piece in _pieces(table, None)]
        return pa.unify_schemas(found, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(
            f"the rows cannot be a table: {first_line(error)}. Save them as .jsonl."
        ) from error


def _rows(piece: pa.RecordBatch) -> list[dict[str, Any]]:
    """Return source rows with their ids."""
    if "row" not in piece.schema.names:
        listed: list[dict[str, Any]] = piece.to_pylist()
        return listed
    rows, names = (piece.column(column).to_pylist() for column in ("row", "id"))
    rows = map(json.loads, rows) if _is_text(piece.schema) else rows
    return [{**row, ID: name} for row, name in zip(rows, names, strict=True)]


def _typed(piece: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    import pyarrow as pa

    if "row" not in piece.schema.names:
        return piece
    if _is_text(piece.schema):
        return pa.RecordBatch.from_pylist(_rows(piece), schema)
    own = dict(zip(piece.column("row").type.names, piece.column("row").flatten(), strict=True))
    columns = own | {ID: piece.column("id")}
    return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)


def _checked(order: ArrayLike | None, count: int) -> NDArray[np.int64] | None:
    if order is None:
        return None
    try:
        rows = np.asarray(order)
    except ValueError as error:
        raise DataError(f"order: {error}; expected one dimension of row numbers.") from error
    rows = rows if rows.size else rows.astype(np.int64)
    if rows.ndim != 1 or not np.issubdtype(rows.dtype, np.integer):
        raise DataError(
            f"order has {rows.ndim} dimensions of {rows.dtype}; expected one of row numbers."
        )
    for at in np.flatnonzero((rows < 0) | (rows >= count))[:1]:
        raise DataError(f"order[{at}] is {rows[at]}; expected row numbers from 0 to {count - 1}.")
    return rows.astype(np.int64)


def _pieces(table: pa.Table, rows: NDArray[np.int64] | None) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    a_row = max(1, table.nbytes // max(1, len(table)))
    piece = max(1, min(PIECE_ROWS, PIECE_BYTES // a_row))
    if rows is None:
        yield from table.to_batches(max_chunksize=piece)
        return
    block = max(1, BLOCK_BYTES // a_row)
    for start in range(0, len(rows), block):
        chosen = rows[start : start + block]
        stored = np.argsort(chosen, kind="stable")
        fetched = table.take(pa.array(chosen[stored])).combine_chunks()
        places = pa.array(np.argsort(stored))
        for low in range(0, len(chosen), piece):
            yield from fetched.take(places[low : low + piece]).to_batches()


def _json_lines(piece: pa.RecordBatch, features: Features) -> bytes:
    try:
        if not _is_text(piece.schema):
            own = {ID: None, **features, **(features["row"] if "row" in piece.schema.names else {})}
            rows = (decoded(row, own, classes=False) for row in _rows(piece))
            lines = [ENCODER.encode(row) for row in rows]
        else:
            pairs = zip(piece.column("row").to_pylist(), piece.column("id"), strict=True)
            lines = [_with_id(text, name.as_py()) for text, name in pairs]
    except ValueError as error:
        raise DataError(
            f"a cell cannot be written as JSON: {error}. Save as .parquet, or replace it."
        ) from error
    return "".join(f"{line}\n" for line in lines).encode()


def _with_id(text: str, name: str) -> str:
    """Return a JSON object, otherwise as it was written, with its id."""
    if f'"{ID}"' in text:  # perhaps it was saved before
        return json.dumps(json.loads(text) | {ID: name}, ensure_ascii=False)
    return f'{text[:-1].rstrip()}, "{ID}": {json.dumps(name)}}}'


def _describe_folder(
    folder: Path, file: str, name: str, rows: NDArray[np.int64] | None, schema: pa.Schema
) -> None:
    """Write the two files that `Dataset.save_to_disk` puts beside the data."""
    from datasets import Features

    order = b"" if rows is None else rows.tobytes()
    state: dict[str, object] = {
        "_data_files": [{"filename": file}],
        "_fingerprint": digest(name, order)[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    write_json(folder / "state.json", state)
    features = Features.from_arrow_schema(schema).to_dict()
    write_json(folder / "dataset_info.json", {"features": features})
