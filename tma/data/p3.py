"""P3's tasks and what T0 did with them: its training datasets, those it held out, and folds.

`p3.toml` lists the datasets; a task is one of their prompt templates. What T0 neither trained on
nor held out has no part in a split.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache, lru_cache
from importlib.resources import files
from itertools import groupby
from typing import TypeVar

from tma.config import FOLDS
from tma.data.batches import Batch, Row
from tma.errors import DataError

T = TypeVar("T")
_GIVES = {"train": ("train", ""), "test": ("validation", "test", "train", "")}
"""Role of a task → the first of its splits that is there gives its rows."""


@cache
def datasets() -> list[tuple[str, str, str]]:
    """Return (dataset, split, cluster) of T0's datasets, in the sequence of the table."""
    table = tomllib.loads(files("tma.data").joinpath("p3.toml").read_text(encoding="utf-8"))
    return [
        (dataset, split, cluster)
        for split, clusters in table.items()
        for cluster, datasets in clusters.items()
        for dataset in datasets
    ]


def fold(number: int) -> tuple[list[str], list[str]]:
    """Return the datasets that a fold tests, and those that it leaves out: what T0 held out.

    T0's training datasets are dealt out cluster by cluster, so that every fold tests nearly as many
    of each, whatever a file holds of them.
    """
    by_split = {part: [d for d, split, _ in datasets() if split == part] for part in _GIVES}
    return by_split["train"][number :: len(FOLDS["p3"])], by_split["test"]


@lru_cache(maxsize=2**12)
def _role(task: str) -> tuple[str, str, str] | None:
    """Return split, dataset and cluster of a P3 task in T0; None where it has no part in it."""
    name = task.replace(".", "_")
    known = [entry for entry in datasets() if name.startswith(f"{entry[0]}_")]
    # Tasks ending in `_score_eval` write out every answer option; T0 used them for ranking only.
    if name.endswith("_score_eval") or not known:
        return None
    dataset, split, cluster = max(known, key=lambda entry: len(entry[0]))
    return split, dataset, cluster


def splits_of_tasks(tasks: Mapping[str, Callable[[], Mapping[str, T]]]) -> dict[str, T]:
    """Return the split that gives the rows of each task of T0; `tasks` load their splits."""
    out = dict[str, T]()
    for task, load in tasks.items():
        role = _role(task)
        if role is not None:
            found, order = load(), _GIVES[role[0]]
            name = next((split for split in order if split in found), None)
            if name is None:
                has = ", ".join(found)
                raise DataError(f"dataset='p3': {task} has no split {order[0]!r}; it has {has}.")
            out[task] = found[name]
    return out


def with_tasks(parts: Iterable[tuple[str, Callable[[], Iterator[Batch]]]]) -> Iterator[Batch]:
    """Yield the rows of P3's configurations, each with its name as the task."""
    for task, batches in parts:
        for batch in batches():
            yield replace(batch, rows=[{"task": task, **row} for row in batch.rows])


def with_roles(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Give every row the split, dataset and cluster of its task in T0; count the others out."""
    for batch in batches:
        kept, left_out = list[tuple[str, int, Row]](), batch.left_out
        for k, row in enumerate(batch.rows):
            if "task" not in row:
                raise DataError(f"{batch.at(k)} has no task; it has {', '.join(row)}.")
            role = _role(str(row["task"]))
            if role is None:
                left_out += 1
            else:
                split, dataset, cluster = role
                kept.append((split, k, {"dataset": dataset, "cluster": cluster, **row}))
        for part, group in groupby(kept, key=lambda entry: entry[0]):
            _, at, rows = zip(*group, strict=True)
            yield replace(batch.take(at, rows), part=part, left_out=left_out)
            left_out = 0
        if left_out:
            yield replace(batch.take([]), left_out=left_out)
