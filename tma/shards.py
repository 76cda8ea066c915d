"""Rows by key, in shards on disk: what one process has computed, no other computes again.

A shard is a safetensors file with `keys`, (k, 16) uint8, and `rows`, (k, d) float32. It is whole or
absent and never written again; what is added makes another shard. Of all shards the keys are read,
and the rows of those that hold a key that is asked for: 100,000 rows take a fraction of a second,
a few out of millions hardly longer than a look at the keys. If two shards hold a key the older one
counts, so that all who read get the same row.
"""

from __future__ import annotations

import logging
import shutil
import zlib
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from tma.errors import first_line
from tma.store import locked, new_file

log = logging.getLogger(__name__)

KEY_BYTES = 16
"""Bytes of a key."""

Rows: TypeAlias = NDArray[np.float32]


class Shards:
    """The rows of some keys: those that a folder of shards has, and those that are added.

    Args:
        folder: the folder of the shards; it need not be there.
        keys: what is asked for, 16 bytes each; a key may stand there more than once.

    Attributes:
        missing: the keys that have no row yet, in their order.
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
        """Take the rows that are missing from the shards that were not there before.

        Raises:
            ValueError: rows of unequal width.
        """
        for file in sorted(self._folder.glob("*.safetensors")):
            if not self.missing:
                return
            if file.name not in self._seen:
                self._seen.add(file.name)
                self._take(*_found(file, self.missing))

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Wait for others that write in this folder and read what they wrote; then have it alone.

        Raises:
            StateError: the folder cannot be written.
        """
        with locked(self._folder):
            # Only who holds the lock writes here: what a killed process left is no longer written.
            for stale in self._folder.glob(".new-*"):
                shutil.rmtree(stale, ignore_errors=True)
            self.read()
            yield

    def add(self, keys: Sequence[bytes], rows: Rows) -> None:
        """Write a shard of missing keys and their rows, (k, d) float32; the caller is `writing`.

        Raises:
            ValueError: the rows are not as wide as others.
            StateError: the folder cannot be written.
        """
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


def _found(file: Path, wanted: Container[bytes]) -> tuple[list[bytes], Rows]:
    """Return the wanted keys that a shard holds, with their rows; a damaged shard holds none.

    It is put aside, under another suffix, so that one process says so once.
    """
    nothing: tuple[list[bytes], Rows] = ([], np.empty((0, 0), np.float32))
    try:
        return _load(file, wanted)
    except FileNotFoundError:
        return nothing  # another process put it aside
    except (SafetensorError, ValueError) as error:
        log.warning("%s is damaged (%s); what it held is made again.", file, first_line(error))
        with suppress(OSError):
            file.replace(file.with_suffix(".damaged"))
        return nothing


def _load(file: Path, wanted: Container[bytes]) -> tuple[list[bytes], Rows]:
    """Return the wanted keys that a shard holds, with their rows.

    Raises:
        ValueError, SafetensorError: the shard is damaged.
    """
    with safe_open(file, framework="numpy") as shard:
        packed = shard.get_tensor("keys")
        keys = packed.view(f"V{KEY_BYTES}").ravel().tolist()
        at = [place for place, key in enumerate(keys) if key in wanted]
        # Rows are a hundred times the bytes of keys: most shards are asked for few texts or none.
        rows = shard.get_tensor("rows") if at else np.empty((0, 0), np.float32)
        if at and (shard.metadata() or {}).get("crc32") != _checksum(packed, rows):
            raise ValueError("its checksum is another")
    return [keys[place] for place in at], rows[at]


def _checksum(keys: NDArray[np.uint8], rows: Rows) -> str:
    """Return a checksum of bytes and shape of a shard."""
    return f"{rows.dtype.str}{rows.shape}{zlib.crc32(rows.data, zlib.crc32(keys.data)):08x}"
