"""A row as its source wrote it → task, prompt, response, and the rest as JSON text.

A format is recognised by the columns that are present. If two fit, the caller is asked for a
mapping: a wrong guess would train on the wrong text without a word. Every cell stays as it is
written; numbers and truth values become their text, blank cells count as missing.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tma.errors import DataError

Row = Mapping[str, Any]
FIELDS = ("prompt", "response", "task", "source")
"""What a mapping may name."""
SOURCE = "dataset"
"""Column with the name of the source dataset, where the mapping names none."""

SAVED = {"id", "task", "prompt", "response", "meta"}
"""The columns of an instance."""
_OWN_ID = re.compile(r"[0-9a-f]{16}(-[0-9]+)?")

_ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot", "bard", "bing"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "function", "ipython", "observation", "function_call"), "tool"),
}


class Instance(NamedTuple):
    """One row after reading."""

    task: str | None
    """Its task; None where the source has none."""
    source: str | None
    """The dataset it came from, inside a collection."""
    prompt: str | None
    """None where it is missing or blank."""
    response: str | None
    """None where it is missing or blank."""
    meta: str | None
    """What else the source had, as a JSON object; `references` holds several responses."""


class Exchange(NamedTuple):
    """Prompt and response cells, and what the format leaves over of its own columns."""

    prompt: Any
    response: Any
    rest: dict[str, Any]


@dataclass(frozen=True)
class Format:
    """A way in which instances are written."""

    name: str
    """What it is called in messages."""
    needs: tuple[str, ...]
    """Columns by which it is recognised."""
    exchange: Callable[[Row], Exchange]
    """Row → prompt, response, rest."""
    also: tuple[str, ...] = ()
    """Columns that belong to it where they are present, and do not go into meta."""


def pair(prompt: str, response: str) -> Callable[[Row], Exchange]:
    """Return what reads prompt and response from two columns."""

    def read(row: Row) -> Exchange:
        return Exchange(_text(row.get(prompt), prompt), row.get(response), {})

    return read


def _alpaca(row: Row) -> Exchange:
    """Join instruction and input, where there is one, by a blank line."""
    parts = [_text(row.get(column), column) for column in ("instruction", "input")]
    return Exchange("\n\n".join(part for part in parts if part), row.get("output"), {})


def _squad(row: Row) -> Exchange:
    """Put the question after its context; every different answer is a reference."""
    parts = [_text(row.get(column), column) for column in ("context", "question")]
    answers = row.get("answers")
    if isinstance(answers, Mapping):
        answers = answers.get("text")
    if isinstance(answers, list):
        answers = [a.get("text") if isinstance(a, Mapping) else a for a in answers]
    # Without its question a context is no prompt.
    prompt = "\n\n".join(part for part in parts if part) if parts[1] else None
    return Exchange(prompt, answers, {})


def _conversation(column: str) -> Callable[[Row], Exchange]:
    def read(row: Row) -> Exchange:
        return first_exchange(row.get(column), column)

    return read


def first_exchange(messages: Any, column: str) -> Exchange:
    """Return the first exchange of a conversation.

    System messages, then all of the user's messages up to the first reply, make the prompt, a blank
    line between them. What an assistant says before the user has spoken is no reply. All other
    messages are kept in order under `rest`.

    Args:
        messages: entries with role and content, or from and value.
        column: where they stand, for messages.

    Raises:
        DataError: this is no list of messages, or a role is not known.
    """
    prompt: dict[str, list[str]] = {"system": [], "user": []}
    response, rest = None, []
    for message in _messages(messages, column):
        role, text = _said(message, column)
        if response is None and role == "assistant" and prompt["user"]:
            response = text
        elif response is None and role in prompt:
            prompt[role].append(text)
        else:
            rest.append(message)
    parts = [text for text in prompt["system"] + prompt["user"] if text.strip()]
    asked = any(text.strip() for text in prompt["user"])
    return Exchange("\n\n".join(parts) if asked else None, response, {"rest": rest} if rest else {})


def _messages(value: Any, column: str) -> Sequence[Any]:
    """Return the messages as a list; some tables hold one list of roles and one of texts."""
    if isinstance(value, Mapping) and value and all(isinstance(v, list) for v in value.values()):
        return [dict(zip(value, cells, strict=True)) for cells in zip(*value.values(), strict=True)]
    if value is None:
        return []
    if not isinstance(value, list):
        raise DataError(f"column {column} holds {_kind(value)}; expected a list of messages.")
    return value


def _said(message: Any, column: str) -> tuple[str, str]:
    if not isinstance(message, Mapping):
        raise DataError(f"column {column} holds {_kind(message)}; expected role and content.")
    given = message.get("role", message.get("from"))
    role = _ROLES.get(str(given).strip().lower())
    if role is None:
        raise DataError(
            f"column {column} has a message of the role {given!r}; known are: {', '.join(_ROLES)}."
        )
    text = message.get("content", message.get("value"))
    if isinstance(text, list):
        text = "".join(_part(part, column) for part in text)
    return role, _text(text, column) or ""


def _part(part: Any, column: str) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and isinstance(part.get("text"), str):
        return str(part["text"])
    raise DataError(f"column {column} has a message with a part that is no text: {_kind(part)}.")


FORMATS = (
    Format("prompt/response", ("prompt", "response"), pair("prompt", "response")),
    Format("prompt/completion", ("prompt", "completion"), pair("prompt", "completion")),
    Format(
        "P3",
        ("inputs_pretokenized", "targets_pretokenized"),
        pair("inputs_pretokenized", "targets_pretokenized"),
        ("inputs", "targets"),  # the same texts as token numbers of another model
    ),
    Format("Alpaca", ("instruction", "output"), _alpaca, ("input",)),
    Format("chat messages", ("messages",), _conversation("messages")),
    Format("ShareGPT", ("conversations",), _conversation("conversations")),
    Format("SQuAD", ("question", "context", "answers"), _squad),
)


@dataclass(frozen=True)
class Reading:
    """How the rows of one dataset are read."""

    format: Format
    """Where prompt and response are."""
    task: str | None
    """Column of the task."""
    source: str | None
    """Column of the source dataset."""
    saved: bool = False
    """Whether the rows are what `tma.save` writes."""

    def instance(self, row: Row) -> Instance:
        """Return a row as an instance.

        Raises:
            DataError: a cell is no text; the message names its column.
        """
        prompt, cell, rest = self.format.exchange(row)
        responses = _references(cell, self.format.needs[-1])
        used = {*self.format.needs, *self.format.also, self.task}
        if self.saved:
            meta = _saved_meta(row)
        else:
            meta = {k: v for k, v in row.items() if k not in used and v is not None} | rest
        if len(responses) > 1:
            meta["references"] = responses
        task, source = (_text(row.get(c), c) if c else None for c in (self.task, self.source))
        made = Instance(task, source, prompt or None, responses[0] if responses else None, None)
        return made._replace(meta=_json(meta)) if meta else made


def reading(present: Collection[str], columns: Mapping[str, str] | None, name: str) -> Reading:
    """Return how rows with these columns are read.

    Args:
        present: names of the columns.
        columns: the caller's mapping of `prompt`, `response`, `task`, `source` to columns; without
            `prompt` and `response` the format is recognised.
        name: the dataset, for messages.

    Raises:
        DataError: no format fits, two fit, or the mapping names what is not there.
    """
    given = dict(columns or {})
    for field, column in given.items():
        if field not in FIELDS or not isinstance(column, str):
            raise DataError(
                f"columns={given!r} cannot be used; expected column names under "
                f"{', '.join(FIELDS)}."
            )
        if column not in present:
            raise DataError(f"dataset={name!r} has no column {column}; it has {_listed(present)}.")
    task = given.get("task", "task" if "task" in present else None)
    source = given.get("source", SOURCE if SOURCE in present else None)
    return Reading(_format(present, given, name), task, source, not given and {*present} == SAVED)


def _format(present: Collection[str], given: Mapping[str, str], name: str) -> Format:
    if "prompt" in given and "response" in given:
        mapped = (given["prompt"], given["response"])
        return Format("mapping", mapped, pair(*mapped))
    if "prompt" in given or "response" in given:
        raise DataError(f"columns={dict(given)!r} cannot be used; give prompt and response both.")
    fitting = [form for form in FORMATS if set(form.needs) <= set(present)]
    ask = 'Say which with columns={"prompt": ..., "response": ...}.'
    if not fitting:
        raise DataError(
            f"dataset={name!r} fits no known format; it has the columns {_listed(present)}. {ask}"
        )
    if len(fitting) > 1:
        both = " and ".join(f"{form.name} ({', '.join(form.needs)})" for form in fitting)
        raise DataError(f"dataset={name!r} fits {both}. {ask}")
    return fitting[0]


def _listed(names: Iterable[str], most: int = 20) -> str:
    """Return names in words; a broken file may have thousands."""
    found = list(names)
    more = f", and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(name[:80] for name in found[:most]) + more if found else "none"


def _references(cell: Any, column: str) -> list[str]:
    """Return the different texts of a response cell that are not blank, the first one first."""
    cells = cell if isinstance(cell, list) else [cell]
    found = [_text(one, column) for one in cells]
    return list(dict.fromkeys(text for text in found if text))


def _text(value: Any, column: str) -> str | None:
    """Return a cell as text, None where it is missing or blank; 0 and False are text."""
    if isinstance(value, str):
        return value if value and not value.isspace() else None
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bytes):
        try:
            return _text(value.decode("utf-8"), column)
        except UnicodeDecodeError as error:
            raise DataError(f"column {column} holds bytes that are not UTF-8 text.") from error
    if isinstance(value, list | tuple | Mapping):
        raise DataError(f"column {column} holds {_kind(value)}; expected text.")
    return str(value)


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}"


def _saved_meta(row: Row) -> dict[str, Any]:
    """Return the meta that `tma.save` wrote, without the id, which the content gives again."""
    text, own = row.get("meta"), {}
    if isinstance(text, str) and text.startswith("{"):
        try:
            own = json.loads(text)
        except ValueError:
            own = {"meta": text}
    elif text is not None:
        own = dict(text) if isinstance(text, Mapping) else {"meta": text}
    name = row.get("id")
    return own if name is None or _OWN_ID.fullmatch(str(name)) else {"id": name} | own


def _json(meta: dict[str, Any]) -> str:
    try:
        return _encode(meta)
    except ValueError:
        return _encode(_finite(meta))


_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=str).encode


def _finite(value: Any) -> Any:
    """Return a value with None for what JSON has no number for."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    return [_finite(entry) for entry in value] if isinstance(value, list | tuple) else value
