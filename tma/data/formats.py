"""A row as its source wrote it → task, prompt, response, and the rest as JSON text.

A format is recognised by the columns that are present. If two fit, the caller must choose: a wrong
guess would train on the wrong text in silence. Cells stay as written; numbers and truth values
become their text, blank cells count as missing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from tma.data.batches import DECODER, ENCODER, Row
from tma.errors import DataError
from tma.store import digest

FIELDS = ("prompt", "response", "task", "source", "conversation")
"""What a mapping may name."""
_OPTIONAL = {"task", "source"}
SOURCE = "dataset"
"""Column with the name of the source dataset, where the mapping names none."""
SAVED = {"id", "task", "prompt", "response", "meta"}
"""The columns that `tma.save` writes."""

_ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot", "bard", "bing"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "function", "ipython", "observation", "function_call"), "tool"),
}
_ROLE, _TEXT = {"role", "from"}, {"content", "value"}
"""Keys of a message that say who speaks, and what is said."""


class Instance(NamedTuple):
    """One row after reading; None where a cell is missing or blank."""

    task: str | None
    source: str | None
    prompt: str | None
    response: str | None
    meta: str | None
    """What else the source had, as a JSON object; `references` holds several responses."""


def content_key(task: str | None, prompt: str, response: str) -> str:
    """Return the part of an id that the content decides: 16 hexadecimal digits."""
    return digest(task or "", prompt, response)[:16]


Exchange = tuple[str | None, Any, dict[str, Any]]
"""Prompt and response cells, and what the format leaves over of its own columns."""


@dataclass(frozen=True)
class Format:
    """A way in which instances are written."""

    name: str
    needs: tuple[str, ...]
    """Columns by which it is recognised; the last one holds the response."""
    exchange: Callable[[Row], Exchange]
    also: tuple[str, ...] = ()
    """Optional columns that belong to it and do not go into meta."""


def _pair(prompt: str, response: str, name: str = "mapping", also: tuple[str, ...] = ()) -> Format:
    """Return the format with prompt and response in a column each."""

    def read(row: Row) -> Exchange:
        return cell_text(row.get(prompt), prompt), row.get(response), {}

    return Format(name, (prompt, response), read, also)


def _conversation(column: str, name: str = "mapping") -> Format:
    """Return the format with a list of messages in a column."""
    return Format(name, (column,), lambda row: _first_exchange(row.get(column), column))


def _joined(row: Row, columns: Sequence[str]) -> str:
    """Return the cells that are not blank, a blank line between them."""
    cells = (cell_text(row.get(column), column) for column in columns)
    return "\n\n".join(cell for cell in cells if cell)


def _alpaca(row: Row) -> Exchange:
    return _joined(row, ("instruction", "input")), row.get("output"), {}


def _squad(row: Row) -> Exchange:
    """Put the question after its context; every different answer is a reference."""
    given = row.get("answers")
    if isinstance(given, str) and cell_text(given, "answers"):
        # A table may hold a list or an object as text: the answer would include its brackets.
        raise DataError(
            "column answers holds text; expected a list, or an object with text. If the text is "
            'the answer, say so with columns={"prompt": ..., "response": ...}.'
        )
    listed = given if isinstance(given, list) else [given]
    answers = given.get("text") if isinstance(given, Mapping) else given
    if isinstance(answers, list):
        answers = [one.get("text") if isinstance(one, Mapping) else one for one in answers]
    # Answers may have more than text, such as where each starts in the context.
    more = any(isinstance(one, Mapping) and {*one} - {"text"} for one in listed)
    asked = cell_text(row.get("question"), "question")
    prompt = _joined(row, ("context", "question")) if asked else None
    return prompt, answers, {"answers": given} if more else {}


FORMATS = (
    _pair("prompt", "response", "prompt/response"),
    _pair("prompt", "completion", "prompt/completion"),
    # P3's `inputs` and `targets` are the same texts as token numbers of another model.
    _pair("inputs_pretokenized", "targets_pretokenized", "P3", ("inputs", "targets")),
    Format("Alpaca", ("instruction", "output"), _alpaca, ("input",)),
    _conversation("messages", "chat messages"),
    _conversation("conversations", "ShareGPT"),
    Format("SQuAD", ("question", "context", "answers"), _squad),
)


@dataclass(frozen=True)
class Reading:
    """How the rows of one dataset are read."""

    format: Format
    task: str | None
    """Column of the task."""
    source: str | None
    """Column of the source dataset."""
    saved: bool = False
    """Whether the rows are what `tma.save` writes."""

    def instance(self, row: Row) -> Instance:
        """Return a row as an instance."""
        row = _with_meta_open(row) if self.saved else row
        prompt, cell, rest = self.format.exchange(row)
        responses = _different_texts(cell, self.format.needs[-1])
        used = {*self.format.needs, *self.format.also, self.task} - {self.source}
        meta = {k: v for k, v in row.items() if k not in used and v is not None} | rest
        if len(responses) > 1:
            given = meta.get("references") or []
            listed = given if isinstance(given, list) else [given]
            meta["references"] = responses + [one for one in listed if one not in responses]
        task, source = (cell_text(row.get(c), c) if c else None for c in (self.task, self.source))
        response = responses[0] if responses else None
        return Instance(task, source, prompt or None, response, _json(meta) if meta else None)


def recognise(present: Collection[str], columns: Mapping[str, str] | None, name: str) -> Reading:
    """Return how rows with the columns `present` are read; `columns` is the caller's mapping."""
    given = dict(columns or {})
    for field, column in given.items():
        if field not in FIELDS:
            raise DataError(
                f"columns={given!r} cannot be used; expected column names under "
                f"{', '.join(FIELDS)}."
            )
        if column not in present and field not in _OPTIONAL:
            raise _no_column(column, present, name)
    saved = {*present} == SAVED and {*given} <= {"source"}
    task = given.get("task", "task" if "task" in present else None)
    source = given.get("source", SOURCE if saved or SOURCE in present else None)
    return Reading(_format(present, given, name), task, source, saved)


def check_mapped(present: Collection[str], columns: Mapping[str, str] | None, name: str) -> None:
    """Refuse a mapping of task or source to a column that no row has: in JSON it may come late."""
    for field, column in (columns or {}).items():
        in_meta = field == "source" and {*present} == SAVED
        if present and column not in present and not in_meta:
            raise _no_column(column, present, name)


def _no_column(column: str, present: Collection[str], name: str) -> DataError:
    return DataError(f"dataset={name!r} has no column {column}; it has {_listed(present)}.")


def _listed(names: Collection[str]) -> str:
    """Return the first names in words; a broken file may have thousands."""
    return ", ".join(name[:80] for name in list(names)[:20]) + (", …" if len(names) > 20 else "")


def _format(present: Collection[str], given: Mapping[str, str], name: str) -> Format:
    mapped = {*given} - _OPTIONAL
    if mapped == {"conversation"}:
        return _conversation(given["conversation"])
    if mapped == {"prompt", "response"}:
        return _pair(given["prompt"], given["response"])
    if mapped:
        raise DataError(
            f"columns={dict(given)!r} cannot be used; give prompt and response, or a conversation."
        )
    fitting = [form for form in FORMATS if {*form.needs} <= {*present}]
    if len(fitting) == 1:
        return fitting[0]
    both = " and ".join(f"{form.name} ({', '.join(form.needs)})" for form in fitting)
    fits = both or f"no known format; it has the columns {_listed(present)}"
    raise DataError(
        f'dataset={name!r} fits {fits}. Say which columns to read with columns={{"prompt": ..., '
        '"response": ...} or {"conversation": ...}.'
    )


def _with_meta_open(row: Row) -> Row:
    """Return a row that `tma.save` wrote with what is in its meta as columns."""
    meta = row.get("meta")
    if isinstance(meta, str) and meta.startswith("{"):
        with suppress(ValueError):
            meta = DECODER.decode(meta)
    cells = {name: cell for name, cell in row.items() if name != "meta"}
    return {**meta, **cells} if isinstance(meta, Mapping) else {**cells, "meta": meta}


def _json(meta: dict[str, Any]) -> str:
    try:
        return ENCODER.encode(meta)
    except ValueError:  # NaN and infinities become null
        return ENCODER.encode(DECODER.decode(json.dumps(meta, default=str)))


def _different_texts(cell: Any, column: str) -> list[str]:
    """Return the different texts of a response cell that are not blank, in their sequence."""
    cells = cell if isinstance(cell, list) else [cell]
    found = [cell_text(one, column) for one in cells]
    return list(dict.fromkeys(text for text in found if text))


def _wrong_kind(value: Any, expected: str, column: str) -> DataError:
    return DataError(f"column {column} holds a {type(value).__name__}; expected {expected}.")


def cell_text(value: Any, column: str) -> str | None:
    """Return a cell as text, None where it is missing or blank; 0 and False are text."""
    if isinstance(value, str):
        return value if value and not value.isspace() else None
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, bytes):
        try:
            return cell_text(value.decode("utf-8"), column)
        except UnicodeDecodeError as error:
            raise DataError(f"column {column} holds bytes that are not UTF-8 text.") from error
    if isinstance(value, list | tuple | Mapping):
        raise _wrong_kind(value, "text", column)
    return str(value)


def _first_exchange(messages: Any, column: str) -> Exchange:
    """Return the first exchange of a conversation.

    System messages, then the user's messages up to the first reply, make the prompt, a blank line
    between them. A reply before the user has spoken does not count. All other messages are kept in
    `rest`; in `exchange` what those of the exchange have beside role and text, such as tool calls.
    """
    prompt: dict[str, list[str]] = {"system": [], "user": []}
    response, used, rest = None, list[Any](), list[Any]()
    for message in _messages(messages, column):
        role, text = _spoken(message, column)
        if response is None and role == "assistant" and prompt["user"]:
            response = text
        elif response is None and role in prompt:
            prompt[role].append(text)
        else:
            rest.append(message)
            continue
        used.append({k: v for k, v in message.items() if k not in _TEXT and v is not None})
    parts = [text for text in prompt["system"] + prompt["user"] if text.strip()]
    asked = any(text.strip() for text in prompt["user"])
    left = {"exchange": used} if any({*one} - _ROLE for one in used) else {}
    left |= {"rest": rest} if rest else {}
    return "\n\n".join(parts) if asked else None, response, left


def _messages(value: Any, column: str) -> Sequence[Any]:
    """Return the messages as a list; some tables hold one list of roles and one of texts."""
    if isinstance(value, Mapping) and value and all(isinstance(v, list) for v in value.values()):
        if len({len(cells) for cells in value.values()}) > 1:
            counts = ", ".join(f"{len(cells)} {name}" for name, cells in value.items())
            raise DataError(f"column {column} holds {counts}; expected as many of each.")
        return [dict(zip(value, cells, strict=True)) for cells in zip(*value.values(), strict=True)]
    if value is not None and not isinstance(value, list):
        raise _wrong_kind(value, "a list of messages", column)
    return value or []


def _spoken(message: Any, column: str) -> tuple[str, str]:
    """Return who speaks in a message, and what is said."""
    if not isinstance(message, Mapping):
        raise _wrong_kind(message, "role and content", column)
    # Tables that mix both kinds of names have nulls under one.
    given, text = (
        message.get(second) if message.get(first) is None else message[first]
        for first, second in (("role", "from"), ("content", "value"))
    )
    role = _ROLES.get(str(given).strip().lower())
    if role is None:
        raise DataError(
            f"column {column} has a message of the role {given!r}; known are: {', '.join(_ROLES)}."
        )
    if isinstance(text, list):
        parts = [part.get("text") if isinstance(part, Mapping) else part for part in text]
        text = "".join(part for part in parts if isinstance(part, str))
        if not all(isinstance(part, str) for part in parts):
            raise DataError(f"column {column} has a message with a part that is no text.")
    return role, cell_text(text, column) or ""
