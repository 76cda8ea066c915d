"""A local folder with a copy of a hub dataset's files → its rows, each file read as what it is.

`datasets` reads such folders too, but to it names with `*`, `[` or `::` mean other files, its JSON
reader turns dates into timestamps, and a malformed line is not named.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tma.config import PACKED, data_suffix
from tma.data.batches import Batch, named, wanted
from tma.data.readers import read
from tma.data.split import SPLITS
from tma.errors import DataError
from tma.store import digest, known_digest

_SPLIT = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
}
"""Words in the names of files and folders, in small letters → split."""
_SHARD = re.compile(r"(.+)-[0-9]{5}-of-[0-9]{5}")
_NO_DATA = ("config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json")
"""Files that describe a dataset."""


@dataclass(frozen=True)
class Part:
    """One file of a copy."""

    file: Path
    """Where it is."""
    split: str | None
    """Split to which its rows belong; None: the copy has no splits."""

    def batches(self) -> Iterator[Batch]:
        """Yield its rows."""
        yield from read(self.file, self.split)


def parts(root: Path, only: str | None = None) -> list[Part]:
    """Return the files of a copy that are read: training first, then test, by name.

    Args:
        root: the folder.
        only: the one file that is wanted, if it is there.

    Raises:
        DataError: there is none, there are several kinds, or none is of training or test.
    """
    if only is not None and (root / only).is_file():
        return [Part(root / only, None)]
    found = by_split(root)
    if set(found) == {""}:
        return [Part(file, None) for file in found[""]]
    names = [split or "(files of no split)" for split in found]
    return [Part(file, split) for split in wanted(names, str(root)) for file in found[split]]


def by_split(root: Path) -> dict[str, list[Path]]:
    """Return the data files of a folder, by name, under their split; "": of no split.

    Raises:
        DataError: there is none, or there are several kinds.
    """
    files = _data_files(root)
    kinds = sorted({data_suffix(file) or "" for file in files})
    if len(kinds) != 1:
        has = f"it has {' and '.join(kinds)} files" if kinds else "it has none"
        raise DataError(
            f"{root} cannot be read: {has}; expected .jsonl, .json, .csv or .parquet files of one "
            "kind. Give the one file instead of the folder, or move the others away."
        )
    out: dict[str, list[Path]] = {}
    for file in files:
        out.setdefault(_split(file, root), []).append(file)
    return out


def says_split(root: Path) -> bool:
    """Return whether a file or folder that lies right in a folder says what is training or test.

    Nothing deeper is looked at: a folder that was named by mistake may be large.
    """
    with named(root):
        entries = [path for path in root.iterdir() if not path.name.startswith(".")]
    files = [path for path in entries if path.is_file() and data_suffix(path) is not None]
    below = {path.name.lower() for path in entries if path.is_dir()} & {*_SPLIT}
    return bool({*SPLITS} & ({_split(file, root) for file in files} | {_SPLIT[n] for n in below}))


def configurations(root: Path) -> list[Path]:
    """Return the subfolders that hold one configuration each; none where the files lie plain."""
    base = root / "data" if (root / "data").is_dir() else root
    folders = [path for path in sorted(base.iterdir()) if path.is_dir()]
    return [path for path in folders if path.name.lower() not in _SPLIT and _data_files(path)]


def key(chosen: Sequence[Part], root: Path) -> str:
    """Return the SHA-256 of names, splits and contents of the files."""
    texts = []
    for part in chosen:
        with named(part.file):
            name = part.file.relative_to(root).as_posix()
            texts += [name, part.split or "", known_digest(part.file)]
    return digest(*texts)


def _data_files(root: Path) -> list[Path]:
    with named(root):
        below = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return [
        path
        for path in below
        if data_suffix(path) is not None
        and path.name not in _NO_DATA
        and not any(step.startswith((".", "__")) for step in path.relative_to(root).parts)
    ]


def _split(file: Path, root: Path) -> str:
    """Return the split that a folder above the file, else the file itself is named after."""
    for step in file.relative_to(root).parts[:-1]:
        if step.lower() in _SPLIT:
            return _SPLIT[step.lower()]
    plain = file.with_suffix("") if file.suffix in PACKED else file
    stem = plain.stem.lower()
    shard = _SHARD.fullmatch(stem)
    found = {_SPLIT[word] for word in re.split(r"[-_. 0-9]+", stem) if word in _SPLIT}
    if shard is not None and found:
        # A shard's split is named in full: train_sft is not train.
        return _SPLIT.get(shard[1], shard[1])
    if len(found) > 1:
        raise DataError(
            f"{file}: the name speaks of {' and '.join(sorted(found))}; expected one split. "
            "Rename the file."
        )
    return next(iter(found), "")
