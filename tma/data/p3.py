"""P3's tasks and what T0 did with them: its training datasets, those it held out, and folds.

`p3.toml` lists the datasets; a task is one of their prompt templates. What T0 neither trained on
nor held out has no part in a split.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, lru_cache, partial
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import TypeVar

from tma.config import FOLDS
from tma.data import hub
from tma.data.batches import Batch, Row
from tma.data.readers import read
from tma.data.split import ALL, OWN, SplitSpec
from tma.errors import DataError

T = TypeVar("T")
_GIVES = {"train": ("train", ""), "test": ("validation", "test", "train", "")}
"""Role of a task → the first of its splits that is there gives its rows."""
_FILE = re.compile(r"(?P<task>[^/]+)/(?P<split>\w+)-[0-9]{5}-of-[0-9]{5}\.parquet")
"""A configuration's file on the hub."""


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


def files_of_tasks(files: Iterable[str], left_out: Sequence[str] = ()) -> dict[str, list[str]]:
    """Return the files of each task's split among those on the hub; `left_out`: not these."""
    found = dict[str, dict[str, list[str]]]()
    for match in filter(None, map(_FILE.fullmatch, sorted(files))):
        found.setdefault(match["task"], {}).setdefault(match["split"], []).append(match[0])
    loads = {task: partial(found.__getitem__, task) for task in found}
    tasks = splits_of_tasks(loads)
    return {task: own for task, own in tasks.items() if not _named(task, left_out)}


def _named(task: str, names: Iterable[str]) -> bool:
    """Return whether a task of T0, or its dataset, is among some names."""
    role = _role(task)
    return role is not None and bool({task, role[1]} & {*names})


def cap(task: str, spec: SplitSpec) -> int | None:
    """Return the cap on a task of T0; None: there is none, or the split of the rows decides it."""
    role, (train, test) = _role(task), spec.per_task
    if spec.held_out:
        return test if _named(task, spec.held_out) else train
    if spec.by == OWN:
        return test if role is not None and role[0] == "test" else train
    whole = spec.by == ALL or (spec.by in ("task", "source") and train == test)
    return train if whole else None


def on_hub(pin: hub.Pin, spec: SplitSpec, early: bool) -> Iterator[Batch]:
    """Yield the rows of T0's tasks, with the task; `early`: under a cap only those that it draws,
    as it would draw from a local copy, so that little else is fetched.
    """
    sizes = hub.listed(pin)
    tasks = files_of_tasks(sizes, spec.left_out)
    if not tasks:
        raise hub.lacking(pin, "folders of T0's tasks with Parquet files")
    caps = {task: cap(task, spec) if early else None for task in tasks}
    count = len({file.split("/")[0] for file in sizes if _FILE.fullmatch(file)})
    most = "at most " if any(caps.values()) else ""
    asked = [file for own in tasks.values() for file in own]
    hub.announce(pin, asked, f"{len(tasks)} of {count} configurations, ", most)
    whole = [file for task, own in tasks.items() if caps[task] is None for file in own]
    root = hub.fetched(pin, whole) if whole else Path()

    def rows(task: str) -> Iterator[Batch]:
        most, own = caps[task], tasks[task]
        if most is not None:
            return hub.drawn(pin, own, most, f"{spec.seed}/{task}")
        return hub.placed((batch for file in own for batch in read(root / file)), root, pin)

    yield from with_tasks([(task, partial(rows, task)) for task in tasks])


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
