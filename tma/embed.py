"""Texts → unit rows: sentence embeddings, cached by content.

Any encoder of `tma.encoders` makes them; the default is the paper's all-MiniLM-L6-v2. Equal texts
have one embedding, bit for bit; encoded twice, among other texts, they would differ in the last
digit and not tie. That is why what stands in a batch together never changes either: slices of 512
texts, the longest first.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import sys
import zlib
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from tma.cluster import Kept, Tasks, check_cluster
from tma.data.load import texts as instance_texts
from tma.encoders import AnyEncoder, Encoder, ReadyRows, Uncached, find_encoder
from tma.errors import ParameterError, check_choice, check_length, first_line, wrong
from tma.store import cache_dir, digest, locked, new_file

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

Rows = NDArray[np.float32]
Text = Literal["both", "prompt"]
"""What is embedded of an instance: prompt and response, as in the paper, or the prompt alone."""

SLICE = 512
"""Texts that are encoded before a bar moves: eight batches of the default encoder."""
SHARD = 8 * SLICE
"""Texts that are written at a time: an interruption loses no more."""
FEW = 200
"""Texts that are encoded without a bar: a few seconds' work."""
KEY_BYTES = 16


def embed(
    data: Dataset | Sequence[str],
    encoder: AnyEncoder | None = None,
    *,
    text: Text = "both",
    cluster: str | None = None,
) -> Rows:
    """Return the unit embeddings of a dataset's instances, or of texts.

    An encoder is given each distinct text once, ever: another process that encodes with the same
    encoder is waited for.

    Args:
        data: instances as `tma.load` gives them, or a list of texts.
        encoder: name, folder, hub id, or object with `encode` (see `tma.encoders.find_encoder`);
            None: the paper's all-MiniLM-L6-v2.
        text: what is embedded of an instance: "both", prompt and response joined by one space, or
            the prompt alone where there is no response; "prompt": the prompt alone always.
        cluster: "ray" or "ray:ADDRESS": where texts without a cached row are encoded; None: here.

    Returns:
        (n, d) float32; `out[i]` is the embedding of text i, divided by its Euclidean length.

    Raises:
        ParameterError: data that is no list of texts, or is empty; an encoder or a cluster
            that cannot be used.
        ValueError: the encoder gave a row that is zero or not finite, or another number of rows or
            columns than expected.
        AssetError: a built-in encoder cannot be fetched.
        StateError: the cache cannot be written.
    """
    texts = _texts(data, text)
    if cluster is not None:
        check_cluster(cluster)
    found = find_encoder(encoder)
    keys = [text_key(one) for one in texts]
    cached = not isinstance(found, Uncached)
    shards = Shards(cache_dir() / "embeddings" / digest(found.name) if cached else None, keys)
    shards.read()
    if shards.missing:
        with shards.writing():
            _encode(_encoding(found, cluster), texts, keys, shards)
    return shards.of(keys)


def embed_pair(
    train: Dataset,
    test: Dataset,
    encoder: AnyEncoder | None = None,
    *,
    rows: Sequence[int] | NDArray[np.integer[Any]] | None = None,
    text: Text = "both",
    cluster: str | None = None,
) -> tuple[Rows, Rows]:
    """Return the unit embeddings of training and test instances, (n, d) and (m, d).

    As `embed`, and `encoder` may be two .npy files, whose rows are those of the two sets in their
    order; rows of length 1 are taken as they are.

    Args:
        train: training instances.
        test: test instances.
        encoder: see `tma.encoders.find_encoder`.
        rows: numbers of the training rows that are wanted, (n,); None: all.
        text: as in `embed`.
        cluster: as in `embed`.

    Raises:
        ParameterError: a file has another number of rows than its set, or does not hold rows.
        ValueError, AssetError, StateError: as `embed`.
    """
    found = find_encoder(encoder)
    if isinstance(found, ReadyRows):
        X, Y = (_ready(*own) for own in zip(found.files, (train, test), strict=True))
        return _unit(X if rows is None else X[np.asarray(rows)]), _unit(Y)
    source = train if rows is None else train.select(rows)
    X, Y = (embed(part, found, text=text, cluster=cluster) for part in (source, test))
    return X, Y


def _texts(data: Dataset | Sequence[str], text: Text) -> list[str]:
    """Return the texts to embed; whatever is not a text is refused, not turned into one."""
    check_choice("text", text, get_args(Text))
    expected = 'a dataset of tma.load, or a list of texts, such as ["one text"]'
    if isinstance(data, str | bytes):
        raise wrong("data", data[:60], expected)
    if isinstance(data, Mapping) or hasattr(data, "columns") or not isinstance(data, Iterable):
        raise ParameterError(f"data is a {type(data).__name__}; expected {expected}.")
    texts = _of_instances(data, text) if hasattr(data, "column_names") else list(data)
    for row, one in enumerate(texts):
        if not isinstance(one, str):
            raise wrong(f"data[{row}]", one, "a text")
    if not texts:
        raise wrong("data", texts, "at least one text")
    return texts


def _of_instances(data: Any, text: Text) -> list[str]:
    if lacking := {"prompt", "response"} - {*data.column_names}:
        raise wrong("data", data.column_names, f"the columns of tma.load, {min(lacking)} too")
    return data["prompt"][:] if text == "prompt" else instance_texts(data)


def _ready(file: Path, part: Dataset) -> NDArray[Any]:
    """Return the array of a .npy file, mapped into memory, if it has a row for each instance."""
    try:
        found: NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ParameterError(
            f"encoder={str(file)!r} cannot be read: {first_line(error)}"
        ) from error
    if found.ndim != 2 or not np.issubdtype(found.dtype, np.floating):
        came = f"{file}, of shape {found.shape} and type {found.dtype},"
        raise ParameterError(f"encoder={came} cannot be used; expected one row of floats a text.")
    check_length(f"encoder={str(file)!r}", found, "its set, in the order of tma.load", len(part))
    return found


def _unit(ready: NDArray[Any]) -> Rows:
    """Return rows of length 1: the array itself if they are, as `tma.arrange` takes it."""
    parts = [range(at, min(at + SHARD, len(ready))) for at in range(0, len(ready), SHARD)]
    if ready.dtype == np.float32 and all(_is_unit(ready[part.start : part.stop]) for part in parts):
        return ready
    rows: Rows = np.empty(ready.shape, np.float32)
    for part in parts:
        rows[part.start : part.stop] = _unit_rows(ready[part.start : part.stop], part)
    return rows


def _is_unit(rows: Rows) -> bool:
    return bool(np.all(np.abs(np.linalg.norm(rows, axis=1) - 1) < 1e-3))


def text_key(text: str) -> bytes:
    """Return the key under which the embedding of a text is stored."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=KEY_BYTES).digest()


Encoding = Callable[[Iterable[list[str]]], Iterator[Any]]
"""Slices of texts → what the encoder gives for each, in their sequence."""


def _encoding(encoder: Encoder, cluster: str | None) -> Encoding:
    """Return how slices are encoded: here, or on a cluster."""
    if cluster is None:
        return partial(map, encoder.encode)
    tasks = Tasks(cluster)
    kept = tasks.keep(encoder)
    return lambda slices: tasks.map(_encoded, kept, over=slices)


def _encoded(encoder: Kept, texts: list[str]) -> Any:
    return np.asarray(encoder.value.encode(texts))


def _encode(encoding: Encoding, texts: list[str], keys: list[bytes], shards: Shards) -> None:
    """Encode the texts whose keys are missing, the longest first: a batch has similar lengths."""
    from tqdm import tqdm  # not sooner: TQDM_DISABLE is read when it is imported

    first = {key: row for row, key in reversed([*enumerate(keys)]) if key in shards.missing}
    left = sorted(first.values(), key=lambda row: (-len(texts[row]), row))
    seconds = 0.1 if sys.stderr.isatty() else 30
    # Given False, tqdm would not ask TQDM_DISABLE.
    hidden: dict[str, Any] = {"disable": True} if len(left) <= FEW else {}
    with tqdm(
        desc="embeddings", unit="text", total=len(left), mininterval=seconds, **hidden
    ) as bar:
        parts = [left[at : at + SLICE] for at in range(0, len(left), SLICE)]
        rows, done = list[Rows](), 0
        encoded = encoding([texts[row] for row in part] for part in parts)
        for part, given in zip(parts, encoded, strict=True):
            rows.append(_unit_rows(np.asarray(given), part))
            bar.update(len(part))
            if len(rows) * SLICE == SHARD or part is parts[-1]:
                written = left[done : done + SHARD]
                shards.add([keys[row] for row in written], np.concatenate(rows))
                rows, done = [], done + SHARD


def _unit_rows(embedded: NDArray[Any], rows: Sequence[int]) -> Rows:
    """Return embeddings divided by their length; `rows` say where the texts stand in the data."""
    if embedded.ndim != 2 or len(embedded) != len(rows):
        raise ValueError(
            f"the encoder gave an array of shape {embedded.shape} for {len(rows)} texts; expected "
            "one row a text."
        )
    length = np.linalg.norm(embedded.astype(np.float64), axis=1, keepdims=True)
    bad = np.flatnonzero(~np.isfinite(length[:, 0]) | (length[:, 0] == 0)).tolist()
    if bad:
        first = min(bad, key=lambda place: rows[place])
        raise ValueError(f"embedding row {rows[first]} has length {length[first, 0]}; expected > 0")
    return np.asarray(embedded / length, dtype=np.float32)


class Shards:
    """The rows of some keys: those in a folder of shards, and those added; None: no folder.

    A shard is a safetensors file with `keys`, (k, 16) uint8, the digests of texts, and `rows`,
    (k, d) float32. It never changes; new texts make another shard. Where two hold a key the older
    one counts, so that all readers get the same row. `missing` are the keys without a row yet.
    """

    def __init__(self, folder: Path | None, keys: Iterable[bytes]) -> None:
        self._folder = folder
        self._places = {key: place for place, key in enumerate(dict.fromkeys(keys))}
        self._rows: Rows = np.empty((len(self._places), 0), np.float32)
        self._seen = set[str]()
        self.missing = dict.fromkeys(self._places)

    def of(self, keys: Sequence[bytes]) -> Rows:
        """Return (n, d) float32; `out[i]` is the row of key i, which has one."""
        if len(keys) == len(self._places):
            return self._rows  # already in this order
        return self._rows[[self._places[key] for key in keys]]

    def read(self) -> None:
        """Take missing rows from the shards that have not been read."""
        for file in sorted(self._folder.glob("*.safetensors")) if self._folder else ():
            if self.missing and file.name not in self._seen:
                self._seen.add(file.name)
                self._take(*_read(file, self.missing))

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Wait for other writers of this folder, read what they wrote, then write alone."""
        if self._folder is None:
            yield
            return
        with locked(self._folder):
            # Only the holder of the lock writes here: drafts are those of killed processes.
            for stale in self._folder.glob(".new-*"):
                shutil.rmtree(stale, ignore_errors=True)
            self.read()
            yield

    def add(self, keys: Sequence[bytes], rows: Rows) -> None:
        """Write a shard of missing keys and their rows, (k, d) float32; the caller is `writing`."""
        self._take(keys, rows)
        if self._folder is None:
            return
        taken = [int(file.stem) for file in self._folder.glob(f"{'[0-9]' * 8}.*")]
        file = self._folder / f"{max(taken, default=0) + 1:08}.safetensors"
        packed = np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY_BYTES)
        raw = save({"keys": packed, "rows": rows}, {"crc32": _checksum(packed, rows)})
        with new_file(file) as draft:
            draft.write_bytes(raw)  # `save_file` would let nobody else read it
        self._seen.add(file.name)

    def _take(self, keys: Sequence[bytes], rows: Rows) -> None:
        if not keys:
            return
        if len(self.missing) == len(self._rows):
            self._rows = np.empty((len(self._rows), rows.shape[1]), np.float32)
        if rows.shape[1] != self._rows.shape[1]:
            raise ValueError(
                f"rows of {rows.shape[1]} columns beside rows of {self._rows.shape[1]} in "
                f"{self._folder}. Another model needs another name, or delete the folder."
            )
        self._rows[[self._places[key] for key in keys]] = rows
        for key in keys:
            del self.missing[key]


def _read(file: Path, missing: Container[bytes]) -> tuple[list[bytes], Rows]:
    """Return the missing keys that a shard holds, with their rows.

    A damaged shard holds none; it is renamed, so that one process warns once.
    """
    nothing: Rows = np.empty((0, 0), np.float32)
    try:
        with safe_open(file, framework="numpy") as shard:
            packed = shard.get_tensor("keys")
            keys = packed.view(f"V{KEY_BYTES}").ravel().tolist()
            at = [place for place, key in enumerate(keys) if key in missing]
            # Rows have a hundred times the bytes of keys, and most shards hold no missing key.
            rows = shard.get_tensor("rows") if at else nothing
            if at and (shard.metadata() or {}).get("crc32") != _checksum(packed, rows):
                raise ValueError("its checksum is another")
        return [keys[place] for place in at], rows[at]
    except FileNotFoundError:
        return [], nothing  # another process renamed it
    except (SafetensorError, ValueError) as error:
        log.warning("%s is damaged (%s); its texts are encoded again.", file, first_line(error))
        with suppress(OSError):
            file.replace(file.with_suffix(".damaged"))
        return [], nothing


def _checksum(keys: NDArray[np.uint8], rows: Rows) -> str:
    """Return a checksum of the bytes and the shape of a shard."""
    return f"{rows.dtype.str}{rows.shape}{zlib.crc32(rows.data, zlib.crc32(keys.data)):08x}"
