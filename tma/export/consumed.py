"""`consumed.jsonl`: the ids that a trainer consumed, in their sequence, against the receipt.

A line is a JSON object with `id`, and `step`, `epoch` and the beginning of the `text` if
`OrderGuard` wrote it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tma.arrange.receipt import read_receipt
from tma.errors import DataError, OrderError

ID = "tma_id"
"""Column with the ids, as `tma.save` writes it."""
BEGINNING = 80
"""Characters of a row that a message shows."""


def verify(
    receipt: Path | str, consumed: Path | str, *, epochs: int = 1, prefix: bool = False
) -> int:
    """Return how many instances were consumed, all in the order of the receipt.

    Args:
        receipt: file that `Arranged.save` wrote.
        consumed: JSON lines with an `id` each, such as `OrderGuard` writes.
        epochs: how often the order was gone through.
        prefix: whether training may have ended early.

    Raises:
        OrderError: another instance was consumed; names the first place that differs, with both
            ids and the beginnings of both texts, where `consumed`, or `train.jsonl` beside the
            receipt, tells them.
        DataError: a file cannot be read.
    """
    lines = read_lines(consumed)
    texts = {line["id"]: line["text"] for line in lines if isinstance(line.get("text"), str)}
    ids = [line["id"] for line in lines]
    if not ids:
        raise DataError(f"{consumed} holds no id; expected a line for each row that was consumed.")
    found = read_receipt(receipt).departure(ids, epochs=epochs, prefix=prefix)
    if found is not None:
        raise OrderError(found.told(_beginnings(Path(receipt)) | texts))
    return len(ids)


def _beginnings(receipt: Path) -> dict[str, str]:
    """Return the beginning of each row of `train.jsonl` beside a receipt, if there is one."""
    file = receipt.with_name("train.jsonl")
    if not file.is_file():
        return {}
    rows = ((row.pop(ID), row) for row in read_lines(file, ID))
    return {name: _text(row)[:BEGINNING] for name, row in rows}


def _text(row: dict[str, Any]) -> str:
    """Return what tells a row from others: of a chat what is said first, but by the system."""
    turns = row.get("messages") or row.get("conversations")
    for turn in turns if isinstance(turns, list) else []:
        said = turn.get("content", turn.get("value")) if isinstance(turn, dict) else None
        if isinstance(said, list):
            said = " ".join(
                part["text"] for part in said if isinstance(part, dict) and "text" in part
            )
        if isinstance(said, str) and said and turn.get("role", turn.get("from")) != "system":
            return said
    return json.dumps(row, ensure_ascii=False)


def read_lines(path: Path | str, key: str = "id", *, torn: bool = False) -> list[dict[str, Any]]:
    """Return the objects of a JSONL file; `torn`: a last line without its end is left out.

    Raises:
        DataError: the file is missing, or a line is no object with a text under `key`.
    """
    try:
        lines = Path(path).read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if torn:
        lines.pop()
    found = list[dict[str, Any]]()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            read = json.loads(line)
        except ValueError:
            read = None
        if not isinstance(read, dict) or not isinstance(read.get(key), str):
            raise DataError(
                f"{path}, line {number} is no JSON object with a text under {key}: {line[:60]!r}"
            )
        found.append(read)
    return found
