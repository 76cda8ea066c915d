"""A row as its source wrote it → its exchanges, and from them an instance, or one each.

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

from tma.data.batches import ENCODER, Row
from tma.errors import DataError
from tma.store import canonical_json, digest

FIELDS = ("prompt", "response", "task", "source", "conversation")
"""What a mapping may name."""
_OPTIONAL = {"task", "source"}
SOURCE = "dataset"
"""Column with the name of the source dataset, where the mapping names none."""
VIEWS = ("first", "last", "all")
"""Which exchanges of a conversation are read."""

_ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot", "bard", "bing"), "assistant"),
    "function_call": "assistant",
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "function", "ipython", "observation"), "tool"),
}
_SYSTEM = ("system", "system_prompt")
"""Columns with a system prompt."""
_TEXT_PARTS = (None, "text", "input_text", "output_text", "refusal")
_REASONING = ("thinking", "reasoning", "redacted_thinking")
"""Types of the parts of a message that are text, and that are no part of an answer."""


_UNKNOWN = "a message of the role"


class Exchange(NamedTuple):
    """What the user says up to a reply, and the reply; None where it is missing or blank."""

    prompt: str | None
    """Without the system prompt; between a tool call and the answer also the call and its result.
    """
    response: str | None


class Instance(NamedTuple):
    """What is embedded and trained on of a row; None where a cell is missing or blank."""

    task: str | None
    source: str | None
    prompt: str | None
    response: str | None
    references: list[str] | None
    """All correct responses, where there are several."""
    exchanges: list[dict[str, str]] | None
    """All exchanges, where they are more than prompt and response."""
    key: str
    """The part of the id that the content decides: 16 hexadecimal digits."""


def content_key(task: str | None, prompt: str, response: str, *more: str) -> str:
    """Return the part of an id that the content decides; `more` is what else a trainer sees."""
    return digest(task or "", prompt, response, *more)[:16]


class Content(NamedTuple):
    """The texts of a row."""

    exchanges: list[Exchange]
    system: str | None = None
    references: list[str] | None = None
    more: tuple[str, ...] = ()
    """What a trainer sees beside prompt and response of one exchange, as JSON text."""


Note = Callable[[str], None]
"""Takes what of a row is not read, in words."""


@dataclass(frozen=True)
class Format:
    """A way in which texts are written."""

    name: str
    needs: tuple[str, ...]
    """Columns by which it is recognised; the last one holds the response."""
    read: Callable[[Row, Note], Content]


def _pair(prompt: str, response: str, name: str = "mapping") -> Format:
    """Return the format with prompt and response in a column each."""

    def read(row: Row, note: Note) -> Content:
        return _content(cell_text(row.get(prompt), prompt), row.get(response), response)

    return Format(name, (prompt, response), read)


def _content(prompt: str | None, cell: Any, column: str) -> Content:
    """Return the content of a row with one exchange; every different answer is a reference."""
    answers = _different_texts(cell, column)
    response = answers[0] if answers else None
    return Content([Exchange(prompt, response)], references=answers if len(answers) > 1 else None)


def _conversation(column: str, name: str = "mapping") -> Format:
    """Return the format with a list of messages in a column."""

    def read(row: Row, note: Note) -> Content:
        messages = _messages(row.get(column), column)
        notes = list[str]()
        system, exchanges = _exchanges(messages, column, notes.append)
        unknown = [words for words in notes if words.startswith(_UNKNOWN)]
        if messages and len(unknown) == len(messages):  # a mapping of roles is missing, not a turn
            raise DataError(f"column {column} has {unknown[0]}; known are: {', '.join(_ROLES)}.")
        for words in notes:
            note(words)
        seen = {"messages": _without_nulls(messages), "tools": _without_nulls(row.get("tools"))}
        return Content(exchanges, system, more=(canonical_json(seen),))

    return Format(name, (column,), read)


def _without_nulls(value: Any) -> Any:
    """Return a cell without the nulls that a table puts where a message lacks a key."""
    if isinstance(value, Mapping):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [_without_nulls(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _joined(row: Row, columns: Sequence[str]) -> str:
    """Return the cells that are not blank, a blank line between them."""
    cells = (cell_text(row.get(column), column) for column in columns)
    return "\n\n".join(cell for cell in cells if cell)


def _alpaca(row: Row, note: Note) -> Content:
    """Put earlier turns, a list of pairs under history, before the instruction."""
    earlier = row.get("history") or []
    if not isinstance(earlier, list):
        raise _wrong_kind(earlier, "a list of pairs", "history")
    turns = [turn if isinstance(turn, list | tuple) else [turn] for turn in earlier]
    texts = [text for turn in turns for part in turn if (text := cell_text(part, "history"))]
    asked = _joined(row, ("instruction", "input"))
    return _content("\n\n".join([*texts, asked]) if asked else None, row.get("output"), "output")


def _squad(row: Row, note: Note) -> Content:
    """Put the question after its context."""
    given = row.get("answers")
    if isinstance(given, str) and cell_text(given, "answers"):
        # A table may hold a list or an object as text: the answer would include its brackets.
        raise DataError(
            "column answers holds text; expected a list, or an object with text. If the text is "
            'the answer, say so with columns={"prompt": ..., "response": ...}.'
        )
    answers = given.get("text") if isinstance(given, Mapping) else given
    if isinstance(answers, list):
        answers = [one.get("text") if isinstance(one, Mapping) else one for one in answers]
    asked = cell_text(row.get("question"), "question")
    return _content(_joined(row, ("context", "question")) if asked else None, answers, "answers")


FORMATS = (
    _pair("prompt", "response", "prompt/response"),
    _pair("prompt", "completion", "prompt/completion"),
    # P3's `inputs` and `targets` are the same texts as token numbers of another model.
    _pair("inputs_pretokenized", "targets_pretokenized", "P3"),
    Format("Alpaca", ("instruction", "output"), _alpaca),
    _conversation("messages", "chat messages"),
    _conversation("conversations", "ShareGPT"),
    Format("SQuAD", ("question", "context", "answers"), _squad),
)
_PROMPTS_ALONE = {form.needs[0]: form for form in reversed(FORMATS) if len(form.needs) > 1}
"""Column of a prompt → the first format that begins with it, for rows without any answer."""


@dataclass(frozen=True)
class Reading:
    """How the rows of one dataset are read."""

    format: Format
    task: str | None
    """Column of the task."""
    source: str | None
    """Column of the source dataset."""
    view: str = "first"
    systems: tuple[str, ...] = ()
    """Columns with a system prompt."""

    def instances(self, row: Row, note: Note) -> list[Instance]:
        """Return the instances of a row: one, or with view "all" one for each exchange."""
        content = self.format.read(row, note)
        column = _joined(row, self.systems) if self.systems else ""
        system = _paragraphs([column, content.system or ""])
        exchanges = content.exchanges or [Exchange(None, None)]
        said = None
        if system or len(exchanges) > 1:
            asked = [one for one in exchanges if one.prompt]
            said = [{"prompt": str(e.prompt), "response": e.response or ""} for e in asked] or None
            exchanges = [one for one in asked if one.response] or exchanges
        if len(exchanges) > 1 and self.view != "all":
            note(f"more than one exchange, of which view={self.view!r} reads one")
            exchanges = exchanges[:1] if self.view == "first" else exchanges[-1:]
        references = content.references
        if "references" in row:
            references = _references(row["references"], references)
        task, source = (cell_text(row.get(c), c) if c else None for c in (self.task, self.source))
        out = []
        for alone, response in exchanges:
            prompt = f"{system}\n\n{alone}" if alone and system else alone
            key = content_key(task, prompt or "", response or "", *content.more)
            out.append(Instance(task, source, prompt, response, references, said, key))
        return out


def _references(given: Any, answers: list[str] | None) -> list[str] | None:
    """Return the different answers, then those under `references`."""
    listed = [one for one in given if isinstance(one, str)] if isinstance(given, list) else []
    return list(dict.fromkeys([*(answers or []), *listed])) or None


def recognise(
    present: Collection[str],
    columns: Mapping[str, str] | None,
    name: str,
    *,
    view: str = "first",
    prompts: bool = False,
) -> Reading:
    """Return how rows with the columns `present` are read; `columns` is the caller's mapping.

    With `prompts` a row may lack an answer.
    """
    given = dict(columns or {})
    for field, column in given.items():
        if field not in FIELDS:
            raise DataError(
                f"columns={given!r} cannot be used; expected column names under "
                f"{', '.join(FIELDS)}."
            )
        if column not in present and field not in _OPTIONAL:
            raise _no_column(column, present, name)
    task = given.get("task", "task" if "task" in present else None)
    source = given.get("source", SOURCE if SOURCE in present else None)
    mapped = bool({*given} - _OPTIONAL)
    systems = () if mapped else tuple(column for column in _SYSTEM if column in present)
    return Reading(_format(present, given, name, prompts), task, source, view, systems)


def check_mapped(present: Collection[str], columns: Mapping[str, str] | None, name: str) -> None:
    """Refuse a mapping of task or source to a column that no row has: in JSON it may come late."""
    for column in (columns or {}).values():
        if present and column not in present:
            raise _no_column(column, present, name)


def _no_column(column: str, present: Collection[str], name: str) -> DataError:
    return DataError(f"dataset={name!r} has no column {column}; it has {_listed(present)}.")


def _listed(names: Collection[str]) -> str:
    """Return the first names in words, quoted where blanks are at an end; a broken file may have
    thousands.
    """
    shown = [name[:80] if name == name.strip() else repr(name[:80]) for name in [*names][:20]]
    return ", ".join(shown) + (", …" if len(names) > 20 else "")


def _format(present: Collection[str], given: Mapping[str, str], name: str, prompts: bool) -> Format:
    mapped = {*given} - _OPTIONAL
    if mapped == {"conversation"}:
        return _conversation(given["conversation"])
    if mapped == {"prompt", "response"} or (prompts and mapped == {"prompt"}):
        return _pair(given["prompt"], given.get("response", ""))
    if mapped:
        raise DataError(
            f"columns={dict(given)!r} cannot be used; give prompt and response, or a conversation."
        )
    fitting = [form for form in FORMATS if {*form.needs} <= {*present}]
    if not fitting and prompts:
        fitting = [form for column, form in _PROMPTS_ALONE.items() if column in present]
    if len(fitting) == 1:
        return fitting[0]
    both = " and ".join(f"{form.name} ({', '.join(form.needs)})" for form in fitting)
    fits = both or f"no known format; it has the columns {_listed(present)}"
    alone = not (fitting or prompts or _PROMPTS_ALONE.keys().isdisjoint(present))
    hint = " Prompts alone are read with answers='optional'." if alone else ""
    raise DataError(
        f'dataset={name!r} fits {fits}. Say which columns to read with columns={{"prompt": ..., '
        f'"response": ...}} or {{"conversation": ...}}.{hint}'
    )


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


def _exchanges(
    messages: Sequence[Any], column: str, note: Note
) -> tuple[str | None, list[Exchange]]:
    """Return the system prompt and the exchanges of a conversation.

    The user's messages up to a reply make a prompt, a blank line between them. A reply before the
    user has spoken does not count, nor one of weight 0, which trainers do not train on.
    """
    system, said, out = list[str](), list[str](), list[Exchange]()
    asked = replied = False
    for message in messages:
        role, text = _spoken(message, column, note)
        if role == "system":
            system.append(text)
        elif role == "assistant" and asked and message.get("weight") == 0:
            note("a reply of weight 0, which is not read")
            out.append(Exchange(_paragraphs(said), None))
            said, asked = [], False
        elif role == "assistant" and asked:
            out.append(Exchange(_paragraphs(said), text or None))
            said, asked, replied = [*said, text], False, True
        elif role == "user" or (role == "tool" and said):
            said = [text] if role == "user" and replied else [*said, text]
            asked, replied = True, replied and role == "tool"
    if asked:
        out.append(Exchange(_paragraphs(said), None))
    return _paragraphs(system), out


def _paragraphs(texts: Sequence[str]) -> str | None:
    """Return the texts that are not blank, a blank line between them."""
    return "\n\n".join(text for text in texts if text.strip()) or None


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


def _spoken(message: Any, column: str, note: Note) -> tuple[str | None, str]:
    """Return who speaks in a message, and what is said; None: somebody unknown."""
    if not isinstance(message, Mapping):
        raise _wrong_kind(message, "role and content", column)
    # Tables that mix both kinds of names have nulls under one.
    given, content = (
        message.get(second) if message.get(first) is None else message[first]
        for first, second in (("role", "from"), ("content", "value"))
    )
    if given is None:
        raise DataError(f"column {column} has a message without a role; expected role or from.")
    role = _ROLES.get(str(given).strip().lower())
    if role is None:
        note(f"{_UNKNOWN} {str(given)[:40]!r}, which is not read")
    parts = content if isinstance(content, list) else [content]
    texts = "".join(filter(None, (_part(part, column, note) for part in parts)))
    if message.get("reasoning_content"):
        note("reasoning, which is not read")
    called = message.get("tool_calls") or message.get("function_call") or []
    calls = called if isinstance(called, list) else [called]
    return role, "\n".join(filter(None, (texts, *map(_call, calls))))


def _part(part: Any, column: str, note: Note) -> str | None:
    """Return the text of a message, or of one of its parts."""
    kind = part.get("type") if isinstance(part, Mapping) and ("type" in part) else None
    if kind in _REASONING:
        note("reasoning, which is not read")
        return None
    if kind not in _TEXT_PARTS:
        raise DataError(
            f"column {column} has a message with a part of type {kind!r}; only text can be read. "
            "Remove such parts or rows."
        )
    known = isinstance(part, Mapping) and "text" in part
    return cell_text(part["text"] if known else part, column)


def _call(call: Any) -> str:
    """Return a tool call as JSON text, with its arguments as an object."""
    if not isinstance(call, Mapping):
        return str(call)
    inner = call.get("function")
    called = inner if isinstance(inner, Mapping) else call
    arguments = called.get("arguments")
    if isinstance(arguments, str):
        with suppress(ValueError):  # some models write no JSON: it stays text
            arguments = json.loads(arguments)
    return ENCODER.encode({"name": called.get("name"), "arguments": _without_nulls(arguments)})
