"""Which rows train and which test: a source's own split, or one by task, source dataset, instance.

Only labels are looked at, one number a row, so that the rows themselves can stay on disk.
"""

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
"""Share of tasks (source datasets, instances) that test where a dataset has no test split."""
SPLITS = ("train", "test")
TRAIN, TEST = 1, 2
"""What a row is for; 0: neither."""
OWN = "own"
"""Stands for the source's own split, even where its test is empty."""
ALL = "all"
"""Stands for every row as training, none held out."""


@dataclass(frozen=True)
class Plan:
    """How a dataset is split."""

    by: str | None = None
    """What is never shared by training and test: task, source, or instance. None: the source's own
    split where it has one (own: in any case), else task, else (without tasks) instance. all:
    nothing is held out."""
    per_task: tuple[int | None, int | None] = (None, None)
    """Instances a task at most, in training and in test; rows without a task are not counted."""
    tasks: tuple[int, int] | None = None
    """Training tasks at most, and test tasks; a smaller dataset is divided in their ratio."""
    held_out: tuple[str, ...] = ()
    """Tasks and source datasets that test while all others train; (): as `by` says."""
    left_out: tuple[str, ...] = ()
    """Those that do neither."""
    partial: bool = False
    """Whether the dataset may lack some of these names."""
    first_test: bool = False
    """Whether the cap takes a test task's first instances; otherwise it chooses by seed."""
    seed: int = 0
    """Seed of what is held out, and of the choice under a cap."""


@dataclass(frozen=True)
class Labels:
    """What is known of n rows."""

    part: NDArray[np.int8]
    """The source's own split, TRAIN, TEST or 0, (n,)."""
    task: Numbers
    """Number of the task in `tasks`, -1 without one, (n,)."""
    source: Numbers
    """Number of the source dataset in `sources`, -1 without one, (n,)."""
    key: NDArray[np.uint64]
    """Digest of the content, (n,)."""
    tasks: Sequence[str]
    """Names of the tasks."""
    sources: Sequence[str]
    """Names of the source datasets."""
    has_test: bool = False
    """Whether the source has test rows beside these: all of them may be empty."""
    long: NDArray[np.bool_] | None = None
    """Whether a row has more tokens than wanted, (n,); None: none has."""


def assign(labels: Labels, plan: Plan) -> NDArray[np.int8]:
    """Return what every row is for before a cap, (n,): TRAIN, TEST or 0 (left out); -TRAIN or -TEST
    if it is too long for that. What is held out does not depend on lengths.

    Raises:
        DataError: there is too little to hold anything out, no source dataset to split by, or the
            source's own split has tasks on both sides, or is not there.
        ParameterError: a name that is held out is none of the dataset's.
    """
    if plan.by == ALL:
        out = np.full(len(labels.part), TRAIN, dtype=np.int8)
    elif plan.held_out:
        out = _by_name(labels, plan)
    elif is_own(labels, plan):
        _check_own(labels)
        out = labels.part.copy()
        _check_apart(out, labels)
    else:
        units, number = _units(labels, plan.by or "task")
        out = _divided(number, plan)[units]
        out[_named(labels, plan.left_out)] = 0
    if labels.long is not None:
        out[labels.long] *= -1
    return out


def capped(chosen: NDArray[np.int8], labels: Labels, plan: Plan) -> NDArray[np.int8]:
    """Return what every row is for under the plan's caps, (n,); too long rows are not counted."""
    out = chosen.copy()
    for split, most in zip((TRAIN, TEST), plan.per_task, strict=True):
        if most is not None:
            _cap(out, split, most, labels, plan)
    return out


def is_own(labels: Labels, plan: Plan) -> bool:
    """Return whether the source's own split stands."""
    tests = labels.has_test or bool((labels.part == TEST).any())
    return not plan.held_out and (plan.by == OWN or (plan.by is None and tests))


def _by_name(labels: Labels, plan: Plan) -> NDArray[np.int8]:
    if not plan.partial:
        _check_names(labels, plan.held_out)
    out = np.full(len(labels.part), TRAIN, dtype=np.int8)
    out[_named(labels, plan.held_out)] = TEST
    out[_named(labels, plan.left_out)] = 0
    return out


def _named(labels: Labels, names: Sequence[str]) -> NDArray[np.bool_]:
    """Return which rows are of these tasks and source datasets, (n,); a task is taken whole, also
    where only some of its rows are of such a dataset.
    """
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
    for name in names:
        if name in known:
            continue
        if not known:
            raise wrong("held_out", name, "None: the dataset has neither tasks nor source datasets")
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known[:3]
        raise wrong(
            "held_out",
            name,
            f"names of the {len(known)} tasks and source datasets, such as {', '.join(near)}",
        )


def _check_own(labels: Labels) -> None:
    """Refuse rows of which none says its split, where the source's own is wanted."""
    if len(labels.part) and not labels.part.any() and not labels.has_test:
        raise DataError(
            "no row says whether it is for training or test. Give a folder with files named train "
            "and test, or hold out with by='task' or by='instance', or take all with split='all'."
        )


def _check_apart(out: NDArray[np.int8], labels: Labels) -> None:
    shared = np.intersect1d(labels.task[out == TRAIN], labels.task[out == TEST])
    names = sorted(labels.tasks[number] for number in shared[shared >= 0])
    if names:
        raise DataError(
            f"training and test share {len(names)} tasks in the source's own split "
            f"({', '.join(names[:3])}{', …' if len(names) > 3 else ''}). Hold out whole tasks with "
            "by='task', or single rows with by='instance'."
        )


def _units(labels: Labels, by: str) -> tuple[Numbers, int]:
    """Return the unit of each row, numbered in the order of names and then of rows, and how many.

    A row without a task (or source) among rows with one stands for itself, and for the rows that
    are equal to it.
    """
    if by == "source":
        units, known = _sources(labels)
    elif by == "task":
        units, known = _ranked(labels.task, labels.tasks), len(labels.tasks)
    else:
        units, known = np.full(len(labels.task), -1), 0
    alone = units < 0
    own, count = _by_content(labels.key[alone])
    units[alone] = known + own
    if known + count < 2:
        kind = f"{by}s" if known else "different instances"
        linked = by == "source" and len(labels.sources) > known
        hint = " Source datasets that share a task count as one." if linked else ""
        raise DataError(
            f"cannot hold out test data: {known + count} {kind}; expected at least 2.{hint}"
        )
    return units, known + count


def _by_content(keys: NDArray[np.uint64]) -> tuple[Numbers, int]:
    """Return the unit of each row, equal content in one, in the order of first rows; how many."""
    _, first, units = np.unique(keys, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[units], len(first)


def _ranked(numbers: Numbers, names: Sequence[str]) -> Numbers:
    """Return the numbers of names as their ranks in alphabetical order; -1 stays."""
    rank = np.empty(len(names) + 1, dtype=np.int64)
    rank[sorted(range(len(names)), key=names.__getitem__)] = np.arange(len(names))
    rank[-1] = -1
    return rank[numbers]


def _sources(labels: Labels) -> tuple[Numbers, int]:
    """Return a unit a source dataset; sources that share a task are one unit."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not len(labels.sources):
        raise DataError(
            "by='source': no row has a source dataset. Name its column with "
            'columns={"source": ...}.'
        )
    source, task = _ranked(labels.source, labels.sources), _ranked(labels.task, labels.tasks)
    count = len(labels.sources) + len(labels.tasks)
    both = (source >= 0) & (task >= 0)
    ends = np.unique(np.stack([source[both], task[both] + len(labels.sources)]), axis=1)
    links = coo_array((np.ones(ends.shape[1]), (ends[0], ends[1])), shape=(count, count))
    known, unit = connected_components(links, directed=False)
    # Numbered by their first name, whatever numbers the library gives them.
    _, first = np.unique(unit, return_index=True)
    unit = np.append(np.argsort(np.argsort(first))[unit], -1)
    node = np.where(source >= 0, source, np.where(task >= 0, task + len(labels.sources), -1))
    return unit[node].astype(np.int64), int(known)


def _divided(units: int, plan: Plan) -> NDArray[np.int8]:
    """Return what each unit is for: the first of the shuffled ones test."""
    shuffled = array("q", range(units))
    random.Random(f"{plan.seed}/held out").shuffle(shuffled)
    tests, trains = max(1, round(HELD_OUT * units)), units
    if plan.tasks is not None:
        trains, tests = plan.tasks
        if units < trains + tests:
            tests = max(1, round(units * tests / (trains + tests)))
    out = np.zeros(units, dtype=np.int8)
    order = np.frombuffer(shuffled, dtype=np.int64)
    out[order[tests : tests + trains]] = TRAIN
    out[order[:tests]] = TEST
    return out


def _cap(out: NDArray[np.int8], split: int, most: int, labels: Labels, plan: Plan) -> None:
    """Leave out all but `most` rows of each task of a split."""
    rows = np.flatnonzero((out == split) & (labels.task >= 0))
    rows = rows[np.argsort(labels.task[rows], kind="stable")]
    starts = np.flatnonzero(np.diff(labels.task[rows], prepend=-1))
    for own in np.split(rows, starts[1:]) if len(rows) else ():
        if len(own) > most:
            keep = np.arange(most)
            if not (plan.first_test and split == TEST):
                name = labels.tasks[labels.task[own[0]]]
                keep = np.array(random.Random(f"{plan.seed}/{name}").sample(range(len(own)), most))
            out[np.delete(own, keep)] = 0
