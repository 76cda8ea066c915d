"""P3's tasks and what T0 did with them: its training datasets, those it held out, and folds.

`p3.toml` lists the datasets; a task is one of their prompt templates. What T0 neither trained on
nor held out has no part in a split.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, lru_cache, partial
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tma.config import FOLDS
from tma.data import folders, hub
from tma.data.batches import Batch
from tma.data.split import SPLITS
from tma.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset


def copy_rows(
    tasks: Sequence[Path], place: Path
) -> tuple[Sequence[str], Callable[[], Iterator[Batch]]]:
    """Return key and reader of T0's tasks in a folder: each is a subfolder."""
    parts: list[tuple[str, folders.Part]] = []
    for task in tasks:
        role = _role(task.name)
        if role is not None:
            found = folders.by_split(task)
            split = _split(role[0], found, task.name)
            parts += [(task.name, folders.Part(file, None)) for file in found[split]]
    rows = ((task, part.batches) for task, part in parts)
    return ("p3", folders.key([part for _, part in parts], place)), partial(_with_task, [*rows])


def _with_task(parts: Iterable[tuple[str, Callable[[], Iterator[Batch]]]]) -> Iterator[Batch]:
    """Yield the rows of P3's configurations, each with its name as the task."""
    for task, batches in parts:
        for batch in batches():
            yield replace(batch, rows=[{"task": task, **row} for row in batch.rows])


def _split(role: str, found: Iterable[str], task: str) -> str:
    """Return the split that a task gives: training, or validation (else test) if held out."""
    names = list(found)
    order = ["train", ""] if role == "train" else ["validation", "test", "train", ""]
    for split in order:
        if split in names:
            return split
    raise DataError(f"dataset='p3': {task} has no split {order[0]!r}; it has {', '.join(names)}.")


def hub_rows(name: str) -> tuple[Sequence[str], Callable[[], Iterator[Batch]]]:
    """Return key and reader of T0's tasks: each is a configuration."""
    parts: dict[str, Dataset] = {}
    for task in hub.configurations(name):
        role = _role(task)
        if role is not None:
            found = hub.splits(name, task)
            parts[task] = found[_split(role[0], found, task)]
    rows = [(task, partial(hub.batches, one, task, None)) for task, one in parts.items()]
    return ("p3", hub.key(parts)), partial(_with_task, rows)


@cache
def datasets() -> list[tuple[str, str, str]]:
    """Return (dataset, split, cluster) of T0's datasets, as they stand in the table."""
    table = tomllib.loads(files("tma.data").joinpath("p3.toml").read_text(encoding="utf-8"))
    return [
        (dataset, split, cluster)
        for split, clusters in table.items()
        for cluster, datasets in clusters.items()
        for dataset in datasets
    ]


def fold(number: int) -> tuple[list[str], list[str]]:
    """Return the datasets that a fold tests: training datasets of T0; and those it leaves out.

    They are dealt out in the table's sequence, cluster by cluster, so that every fold tests nearly
    as many of each cluster, whatever a file holds of them. What T0 held out is left out.
    """
    by_split = {part: [d for d, split, _ in datasets() if split == part] for part in SPLITS}
    return by_split["train"][number :: len(FOLDS["p3"])], by_split["test"]


@lru_cache(maxsize=2**12)
def _role(task: str) -> tuple[str, str, str] | None:
    """Return split, dataset and cluster of a P3 task in T0; None where it has no part in it.

    Tasks ending in `_score_eval` write every answer option out; T0 used them for ranking only.
    """
    name = task.replace(".", "_")
    if name.endswith("_score_eval"):
        return None
    known = [entry for entry in datasets() if name.startswith(f"{entry[0]}_")]
    dataset, split, cluster = max(known, key=lambda entry: len(entry[0]), default=("", "", ""))
    return (split, dataset, cluster) if known else None


def with_roles(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Give every row the split that T0 gave its task; rows of other tasks are left out, counted."""
    for batch in batches:
        found = [_row(row, batch.at(k)) for k, row in enumerate(batch.rows)]
        kept = [(*own, at) for own, at in zip(found, batch.places, strict=True) if own is not None]
        left_out = batch.left_out + len(found) - len(kept)
        for part, group in groupby(kept, key=lambda entry: entry[0]):
            _, rows, places = zip(*group, strict=True)
            yield replace(batch, part=part, rows=rows, places=places, left_out=left_out)
            left_out = 0
        if left_out:
            yield replace(batch, rows=(), places=(), left_out=left_out)


def _row(row: Mapping[str, Any], where: str) -> tuple[str, Mapping[str, Any]] | None:
    """Return a row's split, and the row with what T0 says of its task; None outside T0."""
    if "task" not in row:
        raise DataError(f"{where} has no task; it has {', '.join(row)}.")
    role = _role(str(row["task"]))
    if role is None:
        return None
    split, dataset, cluster = role
    return split, {"dataset": dataset, "cluster": cluster, **row}
