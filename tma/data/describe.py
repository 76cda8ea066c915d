"""A dataset in numbers: what was read, what was left out, how long and how often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tma.data.load import manifest
from tma.data.split import SPLITS
from tma.errors import DataError, check_count, wrong

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

PERCENTILES = (5, 25, 50, 75, 95, 99, 100)
_CONTENT = ("id", "task", "prompt", "response")


def token_counts(dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> NDArray[np.int64]:
    """Return the tokens of prompt and response, (n, 2), each without tokens at the ends."""
    out = [np.empty((0, 2), dtype=np.int64)]
    for part in _parts(dataset, "prompt", "response"):
        given: dict[str, Any] = {"add_special_tokens": False, "verbose": False}
        texts = part["prompt"], [response or "" for response in part["response"]]
        both = [tokenizer(column, **given)["input_ids"] for column in texts]
        out.append(np.array([[len(text) for text in column] for column in both]).T)
    return np.concatenate(out)


def describe(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, *, max_tokens: int = 1024
) -> pd.DataFrame:
    """Return the report of a dataset: one row a quantity, column `value`.

    Args:
        dataset: instances as `tma.load` gives them.
        tokenizer: counts the tokens of prompt and response, each without tokens at the ends.
        max_tokens: tokens of both together above which an instance is over-long.

    Returns:
        Where the dataset comes from `tma.load`: rows read from the source, and how many are left
        out as empty, as longer than was asked for, or by split or cap (also as further responses of
        one instance, or since no template of the suite fits), in the other split, or not in this
        selection. Then instances, tasks, duplicates (content as an earlier row),
        over-long rows, and percentiles of the tokens of prompt, response and both.

    Raises:
        DataError: the dataset lacks a column of `tma.load`.
        ParameterError: this is no dataset, no tokenizer, or no number of tokens.
    """
    import pandas as pd

    check_described(dataset, tokenizer, max_tokens)
    counts, tasks = token_counts(dataset, tokenizer), task_sizes(dataset)
    values = {
        **_read(dataset),
        "instances": len(dataset),
        "tasks": len(tasks) - (None in tasks),
        "instances without a task": tasks[None],
        "duplicates": int(_keys(dataset).duplicated().sum()),
        f"over-long (more than {max_tokens} tokens)": int((counts.sum(axis=1) > max_tokens).sum()),
    }
    lengths = {"prompt": counts[:, 0], "response": counts[:, 1], "both": counts.sum(axis=1)}
    for name, column in lengths.items() if len(dataset) else ():
        found = np.percentile(column, PERCENTILES, method="inverted_cdf")
        for percent, value in zip(PERCENTILES, found, strict=True):
            values[f"tokens, {name}, {percent}th percentile"] = int(value)
    return pd.DataFrame({"value": pd.Series(values, dtype="int64")})


def check_described(dataset: object, tokenizer: object, max_tokens: object) -> None:
    """Refuse what cannot be described."""
    import datasets

    if not isinstance(dataset, datasets.Dataset):
        raise wrong("dataset", type(dataset).__name__, "a datasets.Dataset, as tma.load gives")
    if not callable(tokenizer):
        raise wrong("tokenizer", tokenizer, "one, as AutoTokenizer.from_pretrained gives")
    check_count("max_tokens", max_tokens, 1)
    for column in (column for column in _CONTENT if column not in dataset.column_names):
        has = ", ".join(dataset.column_names)
        raise DataError(
            f"dataset has no column {column}; it has {has}. Expected instances of tma.load."
        )


def task_sizes(dataset: Dataset) -> Counter[str | None]:
    """Return the instances of each task; under None those without one."""
    return Counter(task for part in _parts(dataset, "task") for task in part["task"])


def _read(dataset: Dataset) -> dict[str, int]:
    """Return what was counted when the source was read: first the sum, instances included."""
    found = manifest(dataset)
    files = {Path(entry["filename"]).stem for entry in dataset.cache_files}
    if found is None or not files & {*SPLITS}:  # changed rows, as by `map`
        return {}
    empty, kept = sum(found["empty"].values()), sum(found["rows"].values())
    long = sum(count for count, _ in found["long"].values())
    own = sum(count for split, count in found["rows"].items() if split in files)
    chosen = dataset._indices  # a row that was selected twice counts once
    different = len(dataset) if chosen is None else len(np.unique(chosen.column(0).to_numpy()))
    return {
        "rows read": found["read"],
        "rows left out: empty prompt or response": empty,
        "rows left out: over max_instance_tokens": long,
        "rows left out: by split or cap": found["read"] - empty - long - kept,
        "rows in the other split": kept - own,
        "rows not in this selection": max(0, own - different),
    }


def _keys(dataset: Dataset) -> pd.Series:
    """Return what the content decides of each id; that of a repeat has a counter behind it."""
    import pandas as pd

    return pd.Series(dataset["id"][:], dtype=str).str.partition("-")[0]


def _parts(dataset: Dataset, *columns: str) -> Iterator[dict[str, list[Any]]]:
    """Yield some columns in pieces, so that a large dataset stays on disk."""
    yield from dataset.select_columns([*columns]).iter(batch_size=1000)
