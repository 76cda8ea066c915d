"""Which rows train and which test: a source's own split, or one by task, source or instance."""

from __future__ import annotations

import difflib
import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tma.errors import DataError, wrong

Numbers = NDArray[np.int64]

HELD_OUT = 0.1
"""Share of tasks, source datasets or instances that test where there is no test split."""
SPLITS = ("train", "test")
TRAIN, TEST = 1, 2
"""What a row is for; 0: neither."""
OWN = "own"
"""Stands for the source's own split, even where its test is empty."""
ALL = "all"
"""Stands for every row as training, none held out."""


@dataclass(frozen=True)
class SplitSpec:
    """How a dataset is split."""

    by: str | None = None
    """What training and test never share: task, source, or instance. None: the source's own split
    where it has one (own: in any case), else task, else instance. all: nothing is held out."""
    per_task: tuple[int | None, int | None] = (None, None)
    """Most instances per task, in training and in test; rows without a task are not capped."""
    tasks: tuple[int, int] | None = None
    """Most training and test tasks; a smaller dataset is divided in their ratio."""
    held_out: tuple[str, ...] = ()
    """Tasks and source datasets that test while all others train; (): as `by` says."""
    left_out: tuple[str, ...] = ()
    """Those that do neither."""
    partial: bool = False
    """Whether the dataset may lack some of these names."""
    first_test: bool = False
    """Whether the cap takes the first instances of a test task, not some drawn by seed."""
    seed: int = 0


@dataclass(frozen=True)
class Labels:
    """What is known of n rows; arrays are (n,)."""

    part: NDArray[np.int8]
    """The source's own split: TRAIN, TEST or 0."""
    task: Numbers
    """Number in `tasks`, -1 without one."""
    source: Numbers
    """Number in `sources`, the source datasets, -1 without one."""
    key: NDArray[np.uint64]
    """Digest of the content."""
    tasks: Sequence[str]
    sources: Sequence[str]
    has_test: bool = False
    """Whether the source has test rows that are not among these, since they are empty."""
    long: NDArray[np.bool_] | None = None
    """Whether a row has too many tokens; None: none has."""


def assign(labels: Labels, spec: SplitSpec) -> NDArray[np.int8]:
    """Return what every row is for before a cap, (n,): TRAIN, TEST or 0 (left out); negative if it
    is too long. What is held out does not depend on lengths.
    """
    out = np.full(len(labels.part), TRAIN, dtype=np.int8)
    if spec.held_out:
        if not spec.partial:
            _check_names(labels, spec.held_out)
        out[_rows_named(labels, spec.held_out)] = TEST
        out[_rows_named(labels, spec.left_out)] = 0
    elif is_own(labels, spec):
        _check_own(labels)
        out = labels.part.copy()
    elif spec.by != ALL:
        units, count = _units(labels, spec.by or "task")
        out = _divided(count, spec)[units]
        out[_rows_named(labels, spec.left_out)] = 0
    if labels.long is not None:
        out[labels.long] *= -1
    return out


def is_own(labels: Labels, spec: SplitSpec) -> bool:
    """Return whether the source's own split stands."""
    tests = labels.has_test or bool((labels.part == TEST).any())
    return not spec.held_out and (spec.by == OWN or (spec.by is None and tests))


def capped(chosen: NDArray[np.int8], labels: Labels, spec: SplitSpec) -> NDArray[np.int8]:
    """Return what every row is for under the caps, (n,); rows that are too long do not count."""
    import pandas as pd

    out = chosen.copy()
    for split, most in zip((TRAIN, TEST), spec.per_task, strict=True):
        rows = np.flatnonzero((out == split) & (labels.task >= 0) & (most is not None))
        for _, own in pd.Series(rows).groupby(labels.task[rows]):
            name, first = labels.tasks[labels.task[own.iloc[0]]], spec.first_test and split == TEST
            out[np.delete(own, under_cap(len(own), most, f"{spec.seed}/{name}", first))] = 0
    return out


def under_cap(count: int, most: int | None, seed: str, first: bool) -> list[int]:
    """Return which of a task's instances a cap keeps, rising: the first ones, or drawn by seed."""
    if most is None or count <= most:
        return list(range(count))
    return list(range(most)) if first else sorted(random.Random(seed).sample(range(count), most))


def _rows_named(labels: Labels, names: Sequence[str]) -> NDArray[np.bool_]:
    """Return which rows are of these tasks and source datasets, (n,); a task is taken whole."""
    # A row without a name has the number -1: it reads the last entry.
    sources, tasks = (
        np.array([*(name in names for name in known), False])
        for known in (labels.sources, labels.tasks)
    )
    own = sources[labels.source]
    tasks[labels.task[own]] = True
    tasks[-1] = False
    return np.asarray(own | tasks[labels.task])


def _check_names(labels: Labels, names: Sequence[str]) -> None:
    known = sorted({*labels.tasks, *labels.sources})
    for name in (name for name in names if name not in known):
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known[:3]
        expected = f"names of the {len(known)} tasks and source datasets, such as {', '.join(near)}"
        none = "None: the dataset has neither tasks nor source datasets"
        raise wrong("held_out", name, expected if known else none)


def _check_own(labels: Labels) -> None:
    """Refuse a source whose own split is not there, or shares tasks."""
    if len(labels.part) and not labels.part.any() and not labels.has_test:
        raise DataError(
            "no row says whether it is for training or test. Give a folder with files named train "
            "and test, or hold out with by='task' or by='instance', or take all with split='all'."
        )
    train, test = (labels.task[labels.part == split] for split in (TRAIN, TEST))
    shared = np.intersect1d(train, test)
    names = sorted(labels.tasks[number] for number in shared[shared >= 0])
    if names:
        raise DataError(
            f"training and test share {len(names)} tasks in the source's own split "
            f"({', '.join(names[:3])}{', …' if len(names) > 3 else ''}). Hold out whole tasks with "
            "by='task', or single rows with by='instance'."
        )


def _units(labels: Labels, by: str) -> tuple[Numbers, int]:
    """Return the unit of each row, numbered by name and then by first row, and how many.

    A row without a task (or source) among rows with one is a unit with the rows equal to it.
    """
    import pandas as pd

    if by == "source":
        units, known = _linked_sources(labels)
    elif by == "task":
        units, known = _ranked(labels.task, labels.tasks), len(labels.tasks)
    else:
        units, known = np.full(len(labels.task), -1), 0
    unnamed = units < 0
    own, different = pd.factorize(labels.key[unnamed])
    units[unnamed] = known + own
    count = known + len(different)
    if count < 2:
        kind = f"{by}s" if known else "different instances"
        linked = by == "source" and len(labels.sources) > known
        hint = " Source datasets that share a task count as one." if linked else ""
        raise DataError(f"cannot hold out test data: {count} {kind}; expected at least 2.{hint}")
    return units, count


def _ranked(numbers: Numbers, names: Sequence[str]) -> Numbers:
    """Return the numbers of names as their ranks in alphabetical order; -1 stays."""
    rank = {name: place for place, name in enumerate(sorted(names))}
    return np.array([*(rank[name] for name in names), -1])[numbers]


def _linked_sources(labels: Labels) -> tuple[Numbers, int]:
    """Return a unit a source dataset; sources that share a task are one unit."""
    import pandas as pd
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not len(labels.sources):
        raise DataError(
            "by='source': no row has a source dataset. Name its column with "
            'columns={"source": ...}.'
        )
    source, task = _ranked(labels.source, labels.sources), _ranked(labels.task, labels.tasks)
    task = np.where(task >= 0, task + len(labels.sources), -1)
    count = len(labels.sources) + len(labels.tasks)
    ends = np.unique(np.stack([source, task])[:, (source >= 0) & (task >= 0)], axis=1)
    links = coo_array((np.ones(ends.shape[1]), (ends[0], ends[1])), shape=(count, count))
    known, unit = connected_components(links, directed=False)
    # Numbered by first name, whatever numbers the library gives them.
    unit = np.append(pd.factorize(unit)[0], -1)
    return unit[np.where(source >= 0, source, task)], int(known)


def _divided(units: int, spec: SplitSpec) -> NDArray[np.int8]:
    """Return what each unit is for: the first of the shuffled ones test."""
    order = array("q", range(units))  # there may be ten million
    random.Random(f"{spec.seed}/held out").shuffle(order)
    tests, trains = max(1, round(HELD_OUT * units)), units
    if spec.tasks is not None:
        trains, tests = spec.tasks
        if units < trains + tests:
            tests = max(1, round(units * tests / (trains + tests)))
    out = np.zeros(units, dtype=np.int8)
    out[order[tests : tests + trains]] = TRAIN
    out[order[:tests]] = TEST
    return out
