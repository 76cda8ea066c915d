"""Local files and folders → batches of rows, streamed: JSONL, JSON, CSV, Parquet, Arrow.

Text is UTF-8. What is malformed is an error that names file and line, so that no row is lost in
silence. Libraries would lose some: `datasets` names no line, turns dates into timestamps and reads
`*` in a file name as a pattern; `ijson` turns half a character into a question mark.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, cast

from tma.data.batches import (
    COMPRESSION,
    DECODER,
    ENCODER,
    Batch,
    Row,
    arrow_batched,
    batched,
    check_unique,
    chosen_splits,
    file_errors,
)
from tma.errors import DataError, wrong
from tma.store import digest, digest_of, folder_digest, known_digest

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset

LONGEST_CELL = 2**28
"""Most bytes of a CSV cell; the csv module's own limit is 128 KiB."""
PARQUET_ROWS = 500
"""Rows of a Parquet file decoded at once: a text stored once may be repeated in each."""
_CHUNK = 2**20
"""Bytes of a text file read at once."""
_ARROW_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"
_SPACE = re.compile(r"[ \t\r\n]*")
_LINE_ENDS = re.compile(r"[\r\n]+")
"""In JSON they stand between values only."""
_HEAD = 4096
"""Bytes by which a file that cannot be read is told for what it is."""
_SHARD = re.compile(r"(.+)-[0-9]{5}-of-[0-9]{5}")
_SPLIT = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
}
"""Lower-case words in the names of files and folders → split."""
PACKED = (".gz", ".zst")
"""Suffixes of compression, after one of the others."""
_MAGIC = {".gz": (b"\x1f\x8b", "gzip"), ".zst": (b"\x28\xb5\x2f\xfd", "zstd")}
"""How compressed files begin, and what they are called."""
_NO_DATA = ("config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json")
"""Files that describe a dataset."""


class Rows(NamedTuple):
    """Rows that have not been read yet."""

    key: tuple[str, ...]
    """What decides them."""
    batches: Callable[[], Iterator[Batch]]
    root: str = ""
    """How the names of all files begin."""


def local_rows(path: Path, only: str | None = None) -> Rows:
    """Return the rows of a file or folder, of which the file `only`, if there, is read alone."""
    if only is not None and (path / only).is_file():
        path = path / only
    if path.is_dir() and not is_arrow_folder(path):
        found = by_split(path)
        names = [split or "(files of no split)" for split in found]
        chosen = [""] if {*found} == {""} else chosen_splits(names, str(path))
        parts = [(file, split or None) for split in chosen for file in found[split]]
        batches = lambda: (b for part in parts for b in read(*part))  # noqa: E731
        return Rows((files_key(parts, path),), batches, f"{path}{os.sep}")
    with file_errors(path):
        content = folder_digest(path, "**/*", known_digest) if path.is_dir() else known_digest(path)
    root = "" if path.parent == Path() else f"{path.parent}{os.sep}"
    return Rows((content, path.name), lambda: read(path), root)


def given_rows(data: Dataset | pd.DataFrame | Sequence[Row]) -> Rows:
    """Return the rows of a dataset, a data frame or a list of dicts."""
    import datasets
    import pandas as pd

    if isinstance(data, pd.DataFrame):
        data = datasets.Dataset.from_pandas(data, preserve_index=False)
    if isinstance(data, datasets.Dataset):
        made = data
        return Rows((made._fingerprint,), lambda: dataset_batches(made, "(given rows)", None))
    if not isinstance(data, list | tuple) or not all(isinstance(row, Mapping) for row in data):
        expected = "a name, a file, a datasets.Dataset, a data frame or a list of dicts"
        raise wrong("name", type(data).__name__, expected)
    texts = [ENCODER.encode(row) for row in data]
    rows = [(k, text, DECODER.decode(text)) for k, text in enumerate(texts, 1)]
    return Rows((digest_of(texts),), lambda: batched(rows, "(given rows)", None, "row"))


def files_key(parts: Iterable[tuple[Path, str | None]], root: Path) -> str:
    """Return the SHA-256 of names, splits and contents of the files of a folder."""
    texts = list[str]()
    for file, split in parts:
        with file_errors(file):
            texts += [file.relative_to(root).as_posix(), split or "", known_digest(file)]
    return digest(*texts)


def read(path: Path, part: str | None = None) -> Iterator[Batch]:
    """Yield the rows of a file, which belong to the split `part`, or of an Arrow folder."""
    suffix = data_suffix(path)
    if suffix is None and not path.is_dir():
        raise _not_readable(path)
    with file_errors(path):
        if suffix is None or path.is_dir():
            yield from _arrow_folder(path)
            return
        with path.open("rb") as stream:
            head = stream.read(_HEAD)
        if not head:
            raise DataError(f"{path} could not be read: the file is empty.")
        if what := _foreign(head, path):
            raise DataError(f"{path} could not be read: {what}.")
        if suffix == ".parquet":
            yield from _parquet(path, part)
        else:
            yield from batched(_READERS[suffix](path), str(path), part)


def _not_readable(path: Path) -> DataError:
    expected = ", ".join([*DATA_SUFFIXES[:-1], f"{DATA_SUFFIXES[-1]} or .txt file"])
    small = path.with_name(path.name.lower())
    hint = ""
    if data_suffix(small) is not None:
        hint = f" Suffixes are in lower case: rename it to {small.name}."
    return DataError(f"{path} cannot be read; expected a {expected}.{hint}")


def _foreign(head: bytes, path: Path) -> str | None:
    """Return what a file is by its first bytes, and the remedy, if not what its suffix says."""
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer and not the data. Fetch the data with `git lfs pull`"
    for suffix, (magic, kind) in _MAGIC.items():
        if head.startswith(magic) and path.suffix != suffix:
            return f"it is compressed by {kind}. Name it {path.name}{suffix}"
    is_text = path.suffix not in PACKED and path.suffix != ".parquet"
    return _foreign_text(head, path) if is_text else None


def _foreign_text(head: bytes, path: Path) -> str | None:
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in head[:64]:
        return "it is UTF-16 text. Save it as UTF-8, e.g. with `iconv -f utf-16 -t utf-8`"
    if b"\r" in head and b"\n" not in head and len(head) < _HEAD:
        return "its line ends are those of old Macs (\\r alone). Save it with Unix line ends"
    if path.suffix == ".jsonl" and head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
        return "it is a JSON list and not JSON Lines. Name it .json"
    return None


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Yield the decompressed bytes of a file."""
    import pyarrow as pa

    with path.open("rb") as raw:
        stream = pa.input_stream(raw, COMPRESSION.get(path.suffix))
        yield cast(BinaryIO, io.BufferedReader(stream, _CHUNK))


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines with their ends, decoded."""
    with _opened(path) as stream:
        for number, raw in enumerate(stream, 1):
            try:
                yield raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise _not_utf8(error, path, number) from error


def _not_utf8(error: UnicodeDecodeError, path: Path, line: int) -> DataError:
    return DataError(
        f"{path}, line {line}: byte 0x{error.object[error.start]:02x} is not UTF-8 text. Save the "
        "file as UTF-8, e.g. with `iconv -f <its encoding> -t utf-8`."
    )


Placed = Iterator[tuple[int, str, Row]]
"""Line number, JSON text and content of each row."""


def _jsonl(path: Path) -> Placed:
    for number, line in enumerate(_lines(path), 1):
        if line and not line.isspace():
            try:
                row = _object(line)
            except (ValueError, RecursionError) as error:
                mark = " It begins with a byte-order mark: remove it." if "\ufeff" in line else ""
                raise DataError(
                    f"{path}, line {number}: {error}; expected one JSON object a line.{mark}"
                ) from error
            yield number, line.strip(), row


def _object(line: str) -> Row:
    try:
        row = DECODER.decode(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at character {error.pos + 1}") from error
    if not isinstance(row, dict):
        raise ValueError(f"a {type(row).__name__}")
    return row


def _json(path: Path) -> Placed:
    """Yield the objects of a list, or of a sequence."""
    with _opened(path) as stream:
        text = _JsonText(stream, path)
        listed = text.accepts("[")
        ended = text.accepts("]") if listed else not text.peek()
        while not ended:
            yield text.next_object()
            if not listed:
                ended = not text.peek()
            elif not text.accepts(","):
                ended = text.accepts("]")
                if not ended:
                    found = repr(text.peek()) if text.peek() else "the end of the file"
                    raise text.error(found, "a comma or the end of the list")
        if text.peek():
            raise text.error("more text after the list", "its end")


class _JsonText:
    """The text of a JSON file, held only as far as the current object reaches."""

    def __init__(self, stream: BinaryIO, path: Path) -> None:
        self._stream, self._path = stream, path
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text, self._at, self._line = "", 0, 1

    def peek(self) -> str:
        """Go to the next character that is not white space; return it, nothing at the end."""
        while True:
            found = _SPACE.match(self._text, self._at)
            self._go(found.end() if found else self._at)
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def accepts(self, mark: str) -> bool:
        """Return whether the next character is `mark`; if so, pass it."""
        found = self.peek() == mark
        self._go(self._at + found)
        return found

    def next_object(self) -> tuple[int, str, Row]:
        self.peek()
        while True:
            try:
                value, end = DECODER.raw_decode(self._text, self._at)
                break
            except DataError as error:
                raise self.error(str(error), "every key once") from error
            except (ValueError, RecursionError) as error:
                # The object may only have been cut off by the end of what was read.
                if not self._more():
                    self._go(getattr(error, "pos", self._at))
                    raise self.error(getattr(error, "msg", str(error)), "an object") from error
        if not isinstance(value, dict):
            raise self.error(f"a {type(value).__name__}", "an object")
        line, text = self._line, self._text[self._at : end]
        self._go(end)
        return line, _LINE_ENDS.sub(" ", text), value

    def error(self, found: str, expected: str) -> DataError:
        return DataError(
            f"{self._path}, line {self._line}: {found}; expected {expected}, in a list of JSON "
            "objects or in JSON Lines."
        )

    def _go(self, end: int) -> None:
        self._line += self._text.count("\n", self._at, end)
        self._at = end

    def _more(self) -> bool:
        """Read on; return whether there was more."""
        rest = self._text[self._at :]
        raw = self._stream.read(max(_CHUNK, len(rest)))
        try:
            self._text, self._at = rest + self._decoder.decode(raw, final=not raw), 0
        except UnicodeDecodeError as error:
            before = rest.count("\n") + error.object.count(b"\n", 0, error.start)
            raise _not_utf8(error, self._path, self._line + before) from error
        return bool(raw)


def _csv(path: Path) -> Placed:
    csv.field_size_limit(LONGEST_CELL)
    lines = csv.reader(_lines(path), strict=True)
    try:
        header = next((cells for cells in lines if cells), [])
        check_unique(header, f"{path}, line {lines.line_num}: the column")
        start = lines.line_num + 1
        for cells in lines:
            if cells and len(cells) != len(header):
                raise DataError(
                    f"{path}, line {start}: {len(cells)} cells; expected {len(header)}, one for "
                    "each column of the first line. Quote cells that hold commas or line ends."
                )
            if cells:
                row = dict(zip(header, cells, strict=True))
                yield start, ENCODER.encode(row), row
            start = lines.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{path}, line {lines.line_num}: {error}; expected comma-separated cells in which "
            'quotes are closed and doubled ("").'
        ) from error


def _txt(path: Path) -> Placed:
    """Yield every line that is not blank as a prompt."""
    for number, line in enumerate(_lines(path), 1):
        if not line.isspace():
            row = {"prompt": line.rstrip("\r\n")}
            yield number, ENCODER.encode(row), row


_READERS: dict[str, Callable[[Path], Placed]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".txt": _txt,
}
DATA_SUFFIXES = (*(suffix for suffix in _READERS if suffix != ".txt"), ".parquet")
"""Of the data files in a folder; a .txt file is read where it is named itself."""


def unpacked_suffix(path: Path) -> str:
    """Return a file's suffix without that of its compression."""
    return (path.with_suffix("") if path.suffix in PACKED else path).suffix


def data_suffix(path: Path) -> str | None:
    """Return the suffix that says how to read a data file; None: it cannot be read."""
    suffix = unpacked_suffix(path)
    return suffix if suffix in (*_READERS, ".parquet") else None


def _parquet(path: Path, part: str | None) -> Iterator[Batch]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _opened(path) as stream:
        # The end is read first: a packed file is unpacked in memory.
        source = str(path) if path.suffix == ".parquet" else pa.BufferReader(stream.read())
        with pq.ParquetFile(source, pre_buffer=False, page_checksum_verification=True) as file:
            rows = 0
            for batch in arrow_batched(file.iter_batches(PARQUET_ROWS), str(path), part):
                rows += len(batch.rows)
                yield batch
            if rows != file.metadata.num_rows:
                expected = file.metadata.num_rows
                raise DataError(f"{path} is damaged: {rows} rows; expected {expected}.")


def is_arrow_folder(path: Path) -> bool:
    """Return whether a folder is one that `datasets.save_to_disk` wrote."""
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def _arrow_folder(path: Path) -> Iterator[Batch]:
    import datasets

    for file in sorted(path.rglob("*.arrow")):
        with file.open("rb") as stream:
            stream.seek(max(0, file.stat().st_size - len(_ARROW_END)))
            if stream.read() != _ARROW_END:  # cut between two blocks, it would read as shorter
                raise DataError(f"{file} is cut off: its end is missing. Copy or save it again.")
    found = datasets.load_from_disk(path)
    if isinstance(found, datasets.Dataset):
        yield from dataset_batches(found, str(path), None)
        return
    for part in chosen_splits(found, str(path)):
        yield from dataset_batches(found[part], str(path / part), part)


def dataset_batches(dataset: Dataset, name: str, part: str | None) -> Iterator[Batch]:
    """Yield the rows of a dataset that `datasets` has loaded."""
    with file_errors(name):
        pieces = dataset.with_format("arrow").iter(batch_size=1000)
        yield from arrow_batched(pieces, name, part)


def by_split(root: Path) -> dict[str, list[Path]]:
    """Return the data files of a folder, by name, under their split; "": of no split."""
    files = _data_files(root)
    kinds = sorted({data_suffix(file) or "" for file in files})
    if len(kinds) != 1:
        has = f"{' and '.join(kinds)} files" if kinds else "no such files"
        raise DataError(
            f"{root} is a folder with {has}; expected {', '.join(DATA_SUFFIXES)} files of one kind "
            "named train and test, or a folder that datasets.save_to_disk wrote. Give the one file "
            "instead of the folder, or move the others away."
        )
    out: dict[str, list[Path]] = {}
    for file in files:
        out.setdefault(_split(file, root), []).append(file)
    return out


def configurations(root: Path) -> list[Path]:
    """Return the subfolders that hold one configuration each; none where the files lie plain."""
    base = root / "data" if (root / "data").is_dir() else root
    folders = [path for path in sorted(base.iterdir()) if path.is_dir()]
    return [path for path in folders if path.name.lower() not in _SPLIT and _data_files(path)]


def _data_files(root: Path) -> list[Path]:
    with file_errors(root):
        below = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return [
        path
        for path in below
        if data_suffix(path) in DATA_SUFFIXES
        and path.name not in _NO_DATA
        and not any(step.startswith((".", "__")) for step in path.relative_to(root).parts)
    ]


def _split(file: Path, root: Path) -> str:
    """Return the split that a folder above the file, else the file itself is named after."""
    for step in file.relative_to(root).parts[:-1]:
        if step.lower() in _SPLIT:
            return _SPLIT[step.lower()]
    stem = (file.with_suffix("") if file.suffix in PACKED else file).stem.lower()
    found = {_SPLIT[word] for word in re.split(r"[-_. 0-9]+", stem) if word in _SPLIT}
    shard = _SHARD.fullmatch(stem)
    if shard is not None and found:
        # A shard's split is named in full: train_sft is not train.
        return _SPLIT.get(shard[1], shard[1])
    if len(found) > 1:
        raise DataError(
            f"{file}: the name says both {' and '.join(sorted(found))}; expected one split. "
            "Rename the file."
        )
    return next(iter(found), "")
