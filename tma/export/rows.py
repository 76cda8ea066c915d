"""Original rows → the rows that a trainer reads: chats whole, with all turns and tools.

A row with `messages` or `conversations` is a chat; any other is a prompt with its response.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from tma.arrange.receipt import Receipt
from tma.errors import DataError
from tma.export.consumed import ID, read_lines

if TYPE_CHECKING:
    from datasets import Dataset

Message = dict[str, Any]
Rows: TypeAlias = "Dataset | Sequence[Mapping[str, Any]] | Path | str"
"""The training set, as `tma.load` gives it; or rows in their order with the column `tma_id`, as
`tma.save` writes them: a list, or the JSONL file."""

_CHATS = ("messages", "conversations")
_PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("inputs_pretokenized", "targets_pretokenized"),
)
_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function": "tool",
}
"""Roles of ShareGPT by the names of chat templates; others stay."""


class Placed(NamedTuple):
    """A row in the order."""

    id: str
    place: str
    """Where it stands: in the user's file if that is known, else in the order."""
    row: Mapping[str, Any]
    """As the user's file has it."""
    pair: tuple[str, str] | None
    """Prompt and response as `tma.load` read them."""


def in_order(receipt: Receipt, rows: Rows) -> list[Placed]:
    """Return the rows of an order, in its sequence.

    Raises:
        OrderError: rows with ids of their own stand in another sequence.
        DataError: a row is missing or has no id.
    """
    if hasattr(rows, "column_names") and "id" in rows.column_names and ID not in rows.column_names:
        return _selected(receipt, rows)
    if isinstance(rows, str | Path):
        rows = read_lines(rows, ID)
    given = [dict(row) for row in rows]
    for number, row in enumerate(given, start=1):
        if not isinstance(row.get(ID), str):
            raise DataError(f"row {number} has no {ID}; expected rows as tma.save writes them.")
    receipt.check([row[ID] for row in given])
    return [
        Placed(row.pop(ID), f"place {number} of the order", row, None)
        for number, row in enumerate(given, start=1)
    ]


def _selected(receipt: Receipt, dataset: Any) -> list[Placed]:
    """Return the rows of an order out of what `tma.load` gives."""
    where = {name: row for row, name in enumerate(dataset["id"][:])}
    missing = [name for name in receipt.ids if name not in where]
    if missing:
        raise DataError(
            f"rows has none with the id {missing[0]} ({len(missing)} are missing); expected the "
            "training set that the receipt is of."
        )
    found = list[Placed]()
    for name in receipt.ids:
        row = dataset[where[name]]
        place = row.get("place") or f"row {where[name]}"
        found.append(Placed(name, place, _original(row), (row["prompt"], row["response"] or "")))
    return found


def _original(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the user's row, which `tma.load` keeps under `row`: JSON text, or a struct."""
    kept = row.get("row")
    read = json.loads(kept) if isinstance(kept, str) else kept
    return read if isinstance(read, Mapping) else {}


def are_chats(rows: Iterable[Placed]) -> bool:
    """Return whether rows are written as messages: one is a chat, and none stands twice.

    Where `tma.load` made an instance of each exchange, a chat would come as often as it has any.
    """
    rows = list(rows)
    whole = len({one.place for one in rows}) == len(rows)
    return whole and any(_turns(one.row) for one in rows)


def _turns(row: Mapping[str, Any]) -> list[Any]:
    found: Any = next((row[name] for name in _CHATS if row.get(name)), [])
    return found if isinstance(found, list) else []


def as_messages(one: Placed) -> list[Message]:
    """Return a row as messages with role and content; what else a message has stays in it."""
    turns = _turns(one.row)
    if not turns:
        prompt, response = as_pair(one)
        roles = {"user": prompt, "assistant": response}
        return [{"role": role, "content": text} for role, text in roles.items()]
    made = list[Message]()
    for turn in turns:
        # A table has a null where a message lacks a key that others have.
        said = {k: v for k, v in turn.items() if v is not None}
        role, text = said.pop("from", None), said.pop("value", None)
        role = said.get("role", role)
        own = {"role": _ROLES.get(str(role), role), "content": said.get("content", text)}
        made.append(own | {k: v for k, v in said.items() if k not in own})
    system = one.row.get("system")
    if isinstance(system, str) and system and made[0]["role"] != "system":
        made.insert(0, {"role": "system", "content": system})
    return made


def as_pair(one: Placed) -> tuple[str, str]:
    """Return prompt and response of a row.

    Raises:
        DataError: it has none; names the row and its columns.
    """
    if one.pair is not None:
        return one.pair
    for prompt, response in _PAIRS:
        if isinstance(one.row.get(prompt), str) and isinstance(one.row.get(response), str):
            return one.row[prompt], one.row[response]
    if isinstance(one.row.get("instruction"), str) and isinstance(one.row.get("output"), str):
        asked = [one.row.get(name) for name in ("system", "instruction", "input")]
        return "\n\n".join(text for text in asked if text), one.row["output"]
    raise DataError(
        f"{one.id}, {one.place}: no prompt and response in the columns {', '.join(one.row)}; "
        "give the rows as tma.load(..., columns=...) reads them."
    )


def trl(one: Placed, *, chats: bool) -> dict[str, Any]:
    """Return a row for TRL: messages, or prompt and completion.

    TRL trains on prompt + completion, with nothing in between. Where the user's columns have other
    names, a line break ends the prompt.
    """
    if chats:
        return _with_tools({"messages": as_messages(one)}, one)
    prompt, completion = as_pair(one)
    apart = "" if "completion" in one.row or prompt[-1:].isspace() else "\n"
    return {"prompt": prompt + apart, "completion": completion}


def messages(one: Placed, *, chats: bool) -> dict[str, Any]:
    """Return a row for axolotl and ms-swift: always messages."""
    return _with_tools({"messages": as_messages(one)}, one)


def llama_factory(one: Placed, *, chats: bool) -> dict[str, Any]:
    """Return a row for LLaMA-Factory: Alpaca, or ShareGPT with the roles of its own.

    Its format `openai` would do with fewer changes, but adds a system prompt to rows without one.
    """
    if chats:
        return _sharegpt(one)
    if isinstance(one.row.get("instruction"), str) and isinstance(one.row.get("output"), str):
        columns = ("instruction", "input", "output", "system", "history")
        return {"input": ""} | {k: one.row[k] for k in columns if one.row.get(k) is not None}
    prompt, response = as_pair(one)
    return {"instruction": prompt, "input": "", "output": response}


def _sharegpt(one: Placed) -> dict[str, Any]:
    turns, system = list[Message](), ""
    for message in as_messages(one):
        role, content = message["role"], _text(message["content"])
        if role in ("system", "developer") and not turns:
            system = "\n\n".join(filter(None, [system, content]))
            continue
        if calls := message.get("tool_calls"):
            role, content = "function_call", json.dumps(_calls(calls), ensure_ascii=False)
        role = "observation" if role == "tool" else role
        if role == "observation" and turns and turns[-1]["role"] == role:  # they take turns
            turns[-1]["content"] += f"\n</tool_response>\n<tool_response>\n{content}"
        else:
            turns.append({"role": role, "content": content})
    tools = one.row.get("tools") or ""
    tools = tools if isinstance(tools, str) else json.dumps(tools, ensure_ascii=False)
    return {"conversations": turns, "system": system, "tools": tools}


def _text(content: Any) -> str:
    """Return a message's content as text; of a list, its texts."""
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in parts]
    return "".join(text for text in texts if isinstance(text, str))


def _calls(calls: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return tool calls with arguments as objects, which some sources write as text."""
    made = list[dict[str, Any]]()
    for call in calls:
        function = dict(call.get("function") or call)
        if isinstance(function.get("arguments"), str):
            function["arguments"] = json.loads(function["arguments"])
        made.append({k: function.get(k) for k in ("name", "arguments")})
    return made


def _with_tools(made: dict[str, Any], one: Placed) -> dict[str, Any]:
    tools = one.row.get("tools")
    if not tools:
        return made
    return made | {"tools": json.loads(tools) if isinstance(tools, str) else tools}
