"""A dataset in numbers: what was read, what was left out, how long and how often.

Tokens are counted by the tokenizer that is given, of the prompt and of the response each on its own
and without tokens at the ends; a row is over-long if the two together are more than `max_tokens`.
Languages are not told apart: nothing that is installed here can.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tma.data.instances import repeats
from tma.data.load import manifest
from tma.data.split import SPLITS
from tma.errors import DataError, check_count, wrong
from tma.store import digest

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset
    from matplotlib.figure import Figure
    from transformers import PreTrainedTokenizerBase

PERCENTILES = (5, 25, 50, 75, 95, 99, 100)
_AT_ONCE = 1000


def token_counts(dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> NDArray[np.int64]:
    """Return the tokens of each instance, (n, 2): of the prompt and of the response.

    No tokens are added at the ends.
    """
    out = [np.empty((0, 2), dtype=np.int64)]
    for part in _parts(dataset, ["prompt", "response"]):
        given: dict[str, Any] = {"add_special_tokens": False, "verbose": False}
        both = [tokenizer(part[c], **given)["input_ids"] for c in ("prompt", "response")]
        out.append(np.array([[len(text) for text in column] for column in both]).T)
    return np.concatenate(out)


def describe(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, *, max_tokens: int = 1024
) -> pd.DataFrame:
    """Return the report of a dataset: one row a quantity, column `value`.

    Args:
        dataset: instances as `tma.load` gives them.
        tokenizer: counts tokens.
        max_tokens: tokens of prompt and response together above which an instance is over-long.

    Returns:
        Rows read from the source and where they are: left out as empty, as longer than was asked
        for, by the split, a cap or a list of tasks (or as further right responses of one instance,
        or because no template of the suite fits), in the other split, not in this selection, or
        among the instances (only where the dataset comes from `tma.load`);
        instances, tasks, duplicates (rows whose task, prompt and response stand in an earlier row),
        over-long rows, and percentiles of the tokens of prompt, response and both.

    Raises:
        DataError: the dataset lacks a column of `tma.load`.
        ParameterError: this is no dataset, no tokenizer, or no number of tokens.
    """
    import pandas as pd

    _check(dataset, tokenizer, max_tokens)
    counts = token_counts(dataset, tokenizer)
    both = counts.sum(axis=1)
    tasks = _tasks(dataset)
    values = {
        **_read(dataset),
        "instances": len(dataset),
        "tasks": len(tasks) - (None in tasks),
        "instances without a task": tasks[None],
        "duplicates": int((repeats(_keys(dataset)) > 0).sum()),
        f"over-long (more than {max_tokens} tokens)": int((both > max_tokens).sum()),
    }
    for name, column in (("prompt", counts[:, 0]), ("response", counts[:, 1]), ("both", both)):
        if len(column):
            found = np.percentile(column, PERCENTILES, method="inverted_cdf")
            labels = [f"tokens, {name}, {p}th percentile" for p in PERCENTILES]
            values |= dict(zip(labels, map(int, found), strict=True))
    return pd.DataFrame({"value": pd.Series(values, dtype="int64")})


def data_figure(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, *, max_tokens: int = 1024
) -> Figure:
    """Return the figure of the report: share of instances over tokens, and instances a task.

    Args:
        dataset: instances as `tma.load` gives them.
        tokenizer: counts tokens.
        max_tokens: where a line marks the longest that fits.

    Raises:
        DataError, ParameterError: as `describe`.
    """
    from tma.study.figures import lengths_figure

    _check(dataset, tokenizer, max_tokens)
    tasks = _tasks(dataset)
    sizes = sorted((count for task, count in tasks.items() if task is not None), reverse=True)
    return lengths_figure(token_counts(dataset, tokenizer), sizes, max_tokens)


def _check(dataset: object, tokenizer: object, max_tokens: object) -> None:
    import datasets

    if not isinstance(dataset, datasets.Dataset):
        raise wrong("dataset", type(dataset).__name__, "a datasets.Dataset, as tma.load gives")
    if not callable(tokenizer):
        raise wrong("tokenizer", tokenizer, "one, as AutoTokenizer.from_pretrained gives")
    check_count("max_tokens", max_tokens, 1)
    for column in ("task", "prompt", "response"):
        if column not in dataset.column_names:
            has = ", ".join(dataset.column_names)
            raise DataError(
                f"dataset has no column {column}; it has {has}. Expected instances of tma.load."
            )


def _tasks(dataset: Dataset) -> Counter[str | None]:
    """Return the instances of each task; under None those without one."""
    return Counter(task for part in _parts(dataset, ["task"]) for task in part["task"])


def _read(dataset: Dataset) -> dict[str, int]:
    """Return what was counted when the source was read: the first is the sum of the others and of
    the instances.
    """
    found = manifest(dataset)
    files = {Path(entry["filename"]).stem for entry in dataset.cache_files}
    if found is None or not files & {*SPLITS}:  # rows that were made anew, as by `map`
        return {}
    empty, kept = sum(found["empty"].values()), sum(found["rows"].values())
    long = sum(count for count, _ in found["long"].values())
    own = sum(count for split, count in found["rows"].items() if split in files)
    return {
        "rows read": found["read"],
        "rows left out: empty prompt or response": empty,
        "rows left out: over max_instance_tokens": long,
        "rows left out: by split or cap": found["read"] - empty - long - kept,
        "rows in the other split": kept - own,
        "rows not in this selection": max(0, own - _different(dataset)),
    }


def _different(dataset: Dataset) -> int:
    """Return how many rows a dataset has, one that was selected twice counted once."""
    if dataset._indices is None:
        return len(dataset)
    return len(np.unique(dataset._indices.column(0).to_numpy()))


def _keys(dataset: Dataset) -> NDArray[np.uint64]:
    """Return a number of each instance's task, prompt and response, (n,)."""
    out = [np.empty(0, dtype=np.uint64)]
    for part in _parts(dataset, ["task", "prompt", "response"]):
        rows = zip(part["task"], part["prompt"], part["response"], strict=True)
        # A task that is missing is not the task of an empty name.
        made = [digest("" if t is None else f"={t}", p, r)[:16] for t, p, r in rows]
        out.append(np.array([int(key, 16) for key in made], dtype=np.uint64))
    return np.concatenate(out)


def _parts(dataset: Dataset, columns: list[str]) -> Iterator[dict[str, list[Any]]]:
    """Yield some columns in pieces, so that a large dataset stays on disk."""
    yield from dataset.select_columns(columns).iter(batch_size=_AT_ONCE)
