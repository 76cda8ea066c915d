"""Files that are whole or absent: the cache folder, atomic writes, locks and content digests.

Everything is first written under a name of its own beside its destination, flushed to disk, and
then renamed. A process that is killed leaves at most a `.new-…` entry, which the next writer of the
same destination removes under the lock.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from tma.errors import StateError, first_line

_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
_CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)
_SETTLED = 2 * 10**9
"""Nanoseconds after which a second change of a file shows in its times, whatever they count in."""
_digests: dict[Path, tuple[tuple[int, ...], str]] = {}
"""Of each file its state, and the digest it had then."""


def cache_dir() -> Path:
    """Return the folder of everything that can be made again: `TMA_CACHE`, else `~/.cache/tma`."""
    return Path(os.environ.get("TMA_CACHE") or Path.home() / ".cache" / "tma").expanduser()


def digest(*parts: str | bytes) -> str:
    """Return the SHA-256 of the parts in hexadecimal; parts are length-prefixed, so that
    ("ab", "c") and ("a", "bc") differ.
    """
    return digest_of(parts)


def digest_of(parts: Iterable[str | bytes]) -> str:
    """Return the `digest` of parts that need not all be in memory."""
    sha = hashlib.sha256()
    for part in parts:
        raw = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        sha.update(len(raw).to_bytes(8, "little") + raw)
    return sha.hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal, as `sha256sum` prints it."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def known_digest(path: Path) -> str:
    """Return `file_digest` of data that nobody changes unseen: read once a process while size and
    times of the file stand.
    """
    real, now = path.resolve(), time.time_ns()
    found = real.stat()
    state = (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    if _digests.get(real, (None, ""))[0] != state:
        made = file_digest(real)
        if now - max(state[2:]) < _SETTLED:
            return made
        _digests[real] = (state, made)
    return _digests[real][1]


def folder_digest(folder: Path, pattern: str, of_file: Callable[[Path], str] = file_digest) -> str:
    """Return the SHA-256 of the names and contents of a folder's files that fit a pattern."""
    files = [file for file in sorted(folder.glob(pattern)) if file.is_file()]
    return digest_of(
        part for file in files for part in (str(file.relative_to(folder)), of_file(file))
    )


def canonical_json(value: Any) -> str:
    """Return JSON text that is the same for equal values: keys sorted, no NaN."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)


@contextmanager
def locked(path: Path, seconds: float = -1, lock: Path | None = None) -> Iterator[None]:
    """Hold the lock of a destination; a second process waits until it is free.

    Args:
        path: the destination.
        seconds: time to wait at most; -1: without end.
        lock: the file that is locked; None: one beside the destination, which stays.

    Raises:
        Timeout: the lock was not free in time.
        StateError: the lock cannot be written.
    """
    file = lock or Path(f"{path}.lock")
    with ExitStack() as held:
        with _written(file):
            path.parent.mkdir(parents=True, exist_ok=True)
            file.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(FileLock(file, timeout=seconds))
        for stale in path.parent.glob(f"{_draft(path)}*"):
            shutil.rmtree(stale, ignore_errors=True)
        yield


def is_locked(path: Path) -> bool:
    """Return whether some process holds the lock of a destination now.

    Without a file of the lock, or where none can be written, no process does.
    """
    file = Path(f"{path}.lock")
    if not file.is_file():
        return False
    try:
        with FileLock(file, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        return False


@contextmanager
def _written(path: Path) -> Iterator[None]:
    """Turn what a disk that takes nothing raises into one message."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if not _is_refusal(error, path):
            raise
        reason = getattr(error, "strerror", None) or first_line(error)
        raise StateError(
            f"{path} could not be written: {reason}. Free space there, or name another folder "
            "(for the cache: TMA_CACHE)."
        ) from error


def _is_refusal(error: OSError | SafetensorError, path: Path) -> bool:
    """Return whether an error says that the disk of a path is full or may not be written."""
    if isinstance(error, SafetensorError):
        return True
    if error.filename is not None:
        # What is written is made of other files; those that cannot be read are not meant.
        named = Path(os.fsdecode(error.filename))
        if not (named.is_relative_to(path.parent) or path.is_relative_to(named)):
            return False
    return error.errno in (*_FULL, *_CLOSED)


def _draft(path: Path) -> str:
    """Return how the names of a destination's drafts begin; no other destination's do."""
    return f".new-{digest(path.name)[:16]}-"


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `path` when the block ends without an error.

    The caller holds `locked(path)`; after an error nothing is left behind.

    Raises:
        StateError: the disk is full, or the place cannot be written.
    """
    with _written(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=_draft(path), dir=path.parent))
        try:
            yield draft
            for file in draft.rglob("*"):
                if file.is_file():
                    _flush(file)
            draft.chmod(0o755)
            draft.rename(path)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield the name of a file to write; it becomes `path` when the block ends without an error.

    Raises:
        StateError: the disk is full, or the place cannot be written.
    """
    with _written(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=_draft(path), dir=path.parent) as folder:
            draft = Path(folder) / path.name
            yield draft
            _flush(draft)
            draft.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write a value as readable JSON, atomically.

    Raises:
        StateError: the disk is full, or the place cannot be written.
    """
    with new_file(path) as draft:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
        draft.write_text(text + "\n", encoding="utf-8")


def _flush(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
