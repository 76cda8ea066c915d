"""Local files and folders → batches of rows, streamed: JSONL, JSON, CSV, Parquet, Arrow.

Text is UTF-8, with or without a byte-order mark; lines end in LF or CRLF. What is malformed is an
error that names file and line: a reader that skips, repairs or guesses would lose rows without a
word.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from tma.config import data_suffix
from tma.data.batches import BATCH_BYTES, Batch, arrow_rows, batched, named, wanted
from tma.data.conversations import Row
from tma.data.json_text import DECODER, UTF8, JsonText, bad_text
from tma.errors import DataError
from tma.store import folder_digest, known_digest

LONGEST = 2**28
"""Bytes of one line or one CSV cell at most."""
PARQUET_ROWS = 500
"""Rows of a Parquet file that are decoded at once at most."""
_OTHER_TEXT = {  # the mark of UTF-32 first: it begins with that of UTF-16
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"
"""What the writers of an Arrow stream put at its end."""


def read(path: Path, part: str | None = None) -> Iterator[Batch]:
    """Yield the rows of a file or of an Arrow folder.

    Args:
        path: a .jsonl, .json, .csv or .parquet file, perhaps .gz or .zst after that; or a folder
            that `datasets.save_to_disk` wrote.
        part: split to which a file's rows belong.

    Raises:
        DataError: the first malformed line, or why the file cannot be read.
    """
    suffix = data_suffix(path)
    if path.is_dir():
        yield from _folder(path)
    elif suffix is None:
        raise DataError(f"{path} cannot be read; expected a .jsonl, .json, .csv or .parquet file.")
    else:
        with named(path):
            if path.stat().st_size == 0:
                raise DataError(f"{path} could not be read: the file is empty.")
            yield from _READERS[suffix](path, part)


def content(path: Path) -> str:
    """Return the SHA-256 of what is read: of a file, or of names and contents in a folder."""
    with named(path):
        if not path.is_dir():
            return known_digest(path)
        return folder_digest(path, "**/*", known_digest)


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Yield the decompressed bytes of a file."""
    if path.suffix == ".gz":
        with gzip.open(path, "rb") as packed:
            yield cast(BinaryIO, packed)
    elif path.suffix == ".zst":
        import pyarrow as pa

        with pa.CompressedInputStream(pa.OSFile(str(path)), "zstd") as stream:
            yield cast(BinaryIO, io.BufferedReader(stream, 2**20))
    else:
        with path.open("rb") as plain:
            yield plain


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines with their ends, decoded."""
    number = 0
    with opened(path) as stream:
        while raw := stream.readline(LONGEST + 1):
            number += 1
            if len(raw) > LONGEST:
                raise DataError(f"{path}, line {number}: longer than {LONGEST} bytes.")
            if number == 1:
                raw = _without_mark(raw, path)
            try:
                yield raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(f"{path}, line {number}: {bad_text(error)}") from error


def _without_mark(raw: bytes, path: Path) -> bytes:
    for mark, encoding in _OTHER_TEXT.items():
        if raw.startswith(mark):
            raise DataError(f"{path} is {encoding} text; expected UTF-8. {UTF8}")
    return raw.removeprefix(b"\xef\xbb\xbf")


def _jsonl(path: Path, part: str | None) -> Iterator[Batch]:
    def rows() -> Iterator[tuple[int, int, Row]]:
        for number, line in enumerate(_lines(path), 1):
            if line and not line.isspace():
                yield number, len(line), _object(line, f"{path}, line {number}")

    yield from batched(rows(), str(path), part)


def _object(line: str, where: str) -> Row:
    try:
        row = DECODER.decode(line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where}: {error.msg} at character {error.pos + 1}; expected one JSON object a line."
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: {error}; expected one JSON object a line.") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: a {type(row).__name__}; expected one JSON object a line.")
    return row


def _json(path: Path, part: str | None) -> Iterator[Batch]:
    with opened(path) as stream:
        yield from batched(JsonText(stream, path, LONGEST).objects(), str(path), part)


def _csv(path: Path, part: str | None) -> Iterator[Batch]:
    lines = csv.reader(_lines(path), strict=True)
    with _csv_errors(path, lines):
        header = next((cells for cells in lines if cells), [])
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(
            f"{path}, line {lines.line_num}: the column {twice[0]!r} stands there twice."
        )
    while True:
        with _csv_errors(path, lines):
            batch = next(batched(_cells(lines, header, path), str(path), part), None)
        if batch is None:
            return
        yield batch


def _cells(lines: Any, header: Sequence[str], path: Path) -> Iterator[tuple[int, int, Row]]:
    start = lines.line_num + 1
    for cells in lines:
        if cells and len(cells) != len(header):
            raise DataError(
                f"{path}, line {start}: {len(cells)} cells; expected {len(header)}, one for each "
                "column of the first line. Quote cells that hold commas or line ends."
            )
        if cells:
            yield start, sum(map(len, cells)), dict(zip(header, cells, strict=True))
        start = lines.line_num + 1


@contextmanager
def _csv_errors(path: Path, lines: Any) -> Iterator[None]:
    """Name the line of an error; allow long cells, which the module csv limits for all readers."""
    before = csv.field_size_limit(LONGEST)
    try:
        yield
    except csv.Error as error:
        raise DataError(
            f"{path}, line {lines.line_num}: {error}; expected comma-separated cells in which "
            'quotes are closed and doubled ("").'
        ) from error
    finally:
        csv.field_size_limit(before)


def _parquet(path: Path, part: str | None) -> Iterator[Batch]:
    import pyarrow.parquet as pq

    with (
        _seekable(path) as source,
        pq.ParquetFile(
            source, pre_buffer=False, buffer_size=2**20, page_checksum_verification=True
        ) as file,
    ):
        meta, seen = file.metadata, 0
        _unique(file.schema_arrow.names, path)
        for batch in file.iter_batches(batch_size=_rows_at_once(meta)):
            yield from arrow_rows([batch], str(path), part, seen)
            seen += len(batch)
        if seen != meta.num_rows:
            raise DataError(f"{path} is damaged: {seen} rows; expected {meta.num_rows}.")


def _rows_at_once(meta: Any) -> int:
    """Return how many rows of the longest row group fit a batch on average.

    The sizes are those of encoded pages: a text that is repeated counts once and is decoded as
    often as it stands there. No size of decoded text is written, so the rows are few in any case.
    """
    groups = [meta.row_group(k) for k in range(meta.num_row_groups)]
    longest = max((g.total_byte_size / max(1, g.num_rows) for g in groups), default=1)
    return int(min(PARQUET_ROWS, max(1, BATCH_BYTES // max(1, longest))))


@contextmanager
def _seekable(path: Path) -> Iterator[Any]:
    """Yield a Parquet file's name; of a packed one an unpacked copy, as its end is read first."""
    if path.suffix == ".parquet":
        yield str(path)
        return
    with tempfile.TemporaryFile() as copy, opened(path) as stream:
        shutil.copyfileobj(stream, copy, 2**20)
        copy.seek(0)
        yield copy


def _unique(names: Sequence[str], path: Path) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{path}: the column {twice[0]!r} stands there twice.")


def arrow_file(path: Path, part: str | None, seen: int = 0) -> Iterator[Batch]:
    """Yield the rows of an Arrow stream file, read block by block: mapped pages would count as
    memory in use.
    """
    import pyarrow as pa

    _check_ended(path)
    with named(path), pa.OSFile(str(path)) as source, pa.ipc.open_stream(source) as stream:
        _unique(stream.schema.names, path)
        for batch in stream:
            batch.validate(full=True)  # a damaged offset would read foreign memory
            yield from arrow_rows([batch], str(path), part, seen)
            seen += len(batch)
        _check_end(source.tell(), path)


def _check_ended(path: Path) -> None:
    """Refuse a stream without its end mark: cut between two blocks, it would read as a shorter one.

    How many rows there should be is written nowhere: `dataset_info.json` counts those of the
    dataset from which they were chosen.
    """
    with named(path), path.open("rb") as stream:
        stream.seek(-min(len(_END), path.stat().st_size), io.SEEK_END)
        if stream.read() != _END:
            raise DataError(f"{path} is cut off: its end is missing. Copy or save it again.")


def _check_end(at: int, path: Path) -> None:
    size = path.stat().st_size
    if at != size:
        raise DataError(
            f"{path} is damaged: it ends at byte {at}; expected {size}. Copy or save it again."
        )


def is_arrow_folder(path: Path) -> bool:
    """Return whether a folder is one that `datasets.save_to_disk` wrote."""
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def check_place(path: Path) -> None:
    """Refuse a folder that `datasets.save_to_disk` did not write, before its files are read."""
    if path.is_dir() and not is_arrow_folder(path):
        raise DataError(
            f"{path} is a folder; expected a .jsonl, .json, .csv or .parquet file, a folder with "
            "such files named train and test, or a folder that datasets.save_to_disk wrote."
        )


def _folder(path: Path) -> Iterator[Batch]:
    check_place(path)
    with named(path):
        if not (path / "dataset_dict.json").is_file():
            yield from _dataset(path, None)
            return
        listed = json.loads((path / "dataset_dict.json").read_text("utf-8"))["splits"]
        for part in wanted(listed, str(path)):
            yield from _dataset(path / part, part)


def _dataset(path: Path, part: str | None) -> Iterator[Batch]:
    state = json.loads((path / "state.json").read_text("utf-8"))
    if state.get("_indices_files") or state.get("_indices_data_files"):
        raise DataError(f"{path} holds a selection; write it with flatten_indices() first.")
    seen = 0
    for entry in state["_data_files"]:
        for batch in arrow_file(path / entry["filename"], part, seen):
            seen += len(batch.rows)
            yield batch


_READERS: dict[str, Callable[[Path, str | None], Iterator[Batch]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
