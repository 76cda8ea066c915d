"""Two files as a practitioner has them, to try the commands on: chats, and what will be asked."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tma.data.load import load
from tma.store import new_file

SYSTEM = {"role": "system", "content": "You are a helpful assistant."}


def sample(folder: Path | str, *, leaks: int = 12, seed: int = 0) -> tuple[Path, Path]:
    """Write `train.jsonl` and `test.jsonl` of the data set `pocket`; return their paths.

    Training rows are chats with a system prompt, every third of them with a second turn. `leaks` of
    them, drawn by seed, end with a question of the test set and its answer.

    Raises:
        AssetError, StateError: as `tma.load`.
    """
    train, test = (load("pocket", split=split) for split in ("train", "test"))
    rng = random.Random(seed)
    rows = rng.sample(range(len(train)), len(train))
    chats = [[SYSTEM, *_turns(train[row])] for row in rows[: len(rows) * 3 // 4]]
    for chat, row in zip(chats[::3], rows[len(chats) :], strict=False):
        chat += _turns(train[row])
    for chat, row in zip(
        rng.sample(chats, leaks), rng.sample(range(len(test)), leaks), strict=True
    ):
        chat += _turns(test[row])
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
