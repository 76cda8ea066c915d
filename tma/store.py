"""Files that are complete or absent: the cache folder, atomic writes, locks and digests.

Everything is written under a temporary name beside its destination, flushed to disk and renamed. A
process that is killed leaves at most a `.new-…` entry, which the next writer of the same
destination removes under the lock.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tma.errors import ParameterError, StateError, first_line

_REFUSALS = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
_REFUSALS |= {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}


def cache_dir() -> Path:
    """Return the folder of everything that can be made again: `TMA_CACHE`, else `~/.cache/tma`."""
    return Path(os.environ.get("TMA_CACHE") or Path.home() / ".cache" / "tma").expanduser()


def digest(*parts: str | bytes) -> str:
    """Return the SHA-256 of length-prefixed parts: ("ab", "c") is not ("a", "bc")."""
    return digest_of(parts)


def digest_of(parts: Iterable[str | bytes]) -> str:
    """Return the `digest` of parts that need not all be in memory."""
    sha = hashlib.sha256()
    for part in parts:
        raw = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        sha.update(len(raw).to_bytes(8, "little") + raw)
    return sha.hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, as `sha256sum` prints it."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def known_digest(path: Path) -> str:
    """Return `file_digest`, computed once a process while the file's size and times stay."""
    real = path.resolve()
    found = real.stat()
    return _digest(real, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@cache
def _digest(path: Path, *_state: int) -> str:
    return file_digest(path)


def folder_digest(folder: Path, pattern: str, of_file: Callable[[Path], str] = file_digest) -> str:
    """Return the SHA-256 of the names and contents of a folder's files that match a pattern."""
    files = [file for file in sorted(folder.glob(pattern)) if file.is_file()]
    return digest(*(p for file in files for p in (str(file.relative_to(folder)), of_file(file))))


def checksums(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of files by name."""
    return {name: file_digest(folder / name) for name in names}


def canonical_json(value: Any) -> str:
    """Return JSON text that is the same for equal values: keys sorted, no NaN."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)


@contextmanager
def locked(path: Path, lock: Path | None = None) -> Iterator[None]:
    """Hold the lock of a destination, by default the file beside it, which stays; others wait."""
    file = lock or Path(f"{path}.lock")
    with ExitStack() as held:
        with writing(file):
            path.parent.mkdir(parents=True, exist_ok=True)
            file.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(FileLock(file))
        for stale in path.parent.glob(f"{_draft_prefix(path)}*"):
            shutil.rmtree(stale, ignore_errors=True)
        yield


def is_locked(path: Path) -> bool:
    """Return whether a process holds the lock of a destination; no lock file is ever created."""
    file = Path(f"{path}.lock")
    try:
        with FileLock(file, timeout=0) if file.is_file() else nullcontext():
            return False
    except Timeout:
        return True
    except OSError:
        return False


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the error of a full or read-only disk, met while `path` is written, into one message."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and not _is_refusal(error, path):
            raise
        reason = getattr(error, "strerror", None) or first_line(error)
        raise StateError(
            f"{path} could not be written: {reason}. Free space there, or name another folder "
            "(for the cache: TMA_CACHE)."
        ) from error


def _is_refusal(error: OSError, path: Path) -> bool:
    """Return whether the disk of `path` refuses to be written, not some other file to be read."""
    file = path if error.filename is None else Path(os.fsdecode(error.filename))
    near = file.is_relative_to(path.parent) or path.is_relative_to(file)
    return near and error.errno in _REFUSALS


def _draft_prefix(path: Path) -> str:
    """Return how the names of a destination's drafts begin, and of no other's."""
    return f".new-{digest(path.name)[:16]}-"


@contextmanager
def result_folder(path: Path, setting: str = "out") -> Iterator[Path]:
    """Yield an empty folder that becomes the user's `path`, which must not exist yet."""
    if path.exists():
        raise ParameterError(f"{setting}={str(path)!r} exists; expected the name of a new folder.")
    name = digest(str(path.absolute()))[:20]  # beside the folder the lock would stay
    with locked(path, cache_dir() / "locks" / f"{name}.lock"), new_folder(path) as draft:
        yield draft


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield the name of a file to write; it becomes `path` if the block ends without an error."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=_draft_prefix(path), dir=path.parent) as folder:
            draft = Path(folder) / path.name
            yield draft
            for file in (draft, *draft.rglob("*")):
                if file.is_file():
                    with file.open("rb") as stream:
                        os.fsync(stream.fileno())
            draft.replace(path)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `path`, which is absent, as `new_file` does."""
    with new_file(path) as draft:
        draft.mkdir()
        yield draft


def write_json(path: Path, value: Any) -> None:
    """Write a value as readable JSON, atomically."""
    with new_file(path) as draft:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
        draft.write_text(text + "\n", encoding="utf-8")
