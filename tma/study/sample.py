"""Two files as a practitioner has them, to try the commands on: chats, and what will be asked."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tma.data.load import load
from tma.errors import wrong
from tma.store import new_file

LEAKS = 12
"""Training chats that end with a question of the test set and its answer."""
EVERY = 4
"""Of so many test instances one is taken."""
SYSTEM = {"role": "system", "content": "You are a helpful assistant."}


def given_or_made(dataset: str | None, test_dataset: str | None, folder: Path) -> tuple[str, str]:
    """Return the user's training and test data; where none is given, the files of `sample`.

    Raises:
        ParameterError: only one of the two is given.
    """
    if (dataset is None) != (test_dataset is None):
        missing = "dataset" if dataset is None else "test_dataset"
        raise wrong(missing, None, "both dataset and test_dataset, or neither")
    if dataset is not None and test_dataset is not None:
        return dataset, test_dataset
    train, test = sample(folder)
    return str(train), str(test)


def sample(folder: Path | str, *, leaks: int = LEAKS, seed: int = 0) -> tuple[Path, Path]:
    """Write `train.jsonl` and `test.jsonl` of the dataset `pocket`; return their paths.

    Training rows are chats with a system prompt, every third of them with a second turn. `leaks` of
    them, drawn by seed, end with a question of the test set and its answer.

    Raises:
        AssetError, StateError: as `tma.load`.
    """
    train, test = (load("pocket", split=split) for split in ("train", "test"))
    test = test.select(range(0, len(test), EVERY))
    rng = random.Random(seed)
    rows = rng.sample(range(len(train)), len(train))
    chats = [[SYSTEM, *_turns(train[row])] for row in rows[: len(rows) * 3 // 4]]
    for chat, row in zip(chats[::3], rows[len(chats) :], strict=False):
        chat.extend(_turns(train[row]))
    for chat, row in zip(
        rng.sample(chats, leaks), rng.sample(range(len(test)), leaks), strict=True
    ):
        chat.extend(_turns(test[row]))
    written = Path(folder) / "train.jsonl", Path(folder) / "test.jsonl"
    for path, lines in zip(written, (chats, map(_turns, test)), strict=True):
        _write(path, lines)
    return written


def _turns(row: Mapping[str, Any]) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": row["prompt"]},
        {"role": "assistant", "content": row["response"]},
    ]


def _write(path: Path, chats: Iterable[list[dict[str, str]]]) -> None:
    with new_file(path) as draft, draft.open("w", encoding="utf-8") as lines:
        lines.writelines(f"{json.dumps({'messages': chat})}\n" for chat in chats)
