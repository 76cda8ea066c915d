"""A row as its source wrote it → task, prompt, response, and the rest as JSON text.

A format is recognised by the columns that are present. If two fit, the caller is asked for a
mapping: a wrong guess would train on the wrong text without a word. Every cell stays as it is
written; numbers and truth values become their text, blank cells count as missing.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from tma.conversations import Exchange, Row, cell_text, first_exchange
from tma.errors import DataError

FIELDS = ("prompt", "response", "task", "source", "conversation")
"""What a mapping may name."""
_OPTIONAL = {"task", "source"}
"""Those that a row need not have."""
SOURCE = "dataset"
"""Column with the name of the source dataset, where the mapping names none."""

SAVED = {"id", "task", "prompt", "response", "meta"}
"""The columns of an instance."""
_OWN_ID = re.compile(r"[0-9a-f]{16}(-[0-9]{1,9})?")


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
    id: str | None = None
    """The id under which it was saved, if it was."""


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
        return Exchange(cell_text(row.get(prompt), prompt), row.get(response), {})

    return read


def _alpaca(row: Row) -> Exchange:
    """Join instruction and input, where there is one, by a blank line."""
    parts = [cell_text(row.get(column), column) for column in ("instruction", "input")]
    return Exchange("\n\n".join(part for part in parts if part), row.get("output"), {})


def _squad(row: Row) -> Exchange:
    """Put the question after its context; every different answer is a reference."""
    parts = [cell_text(row.get(column), column) for column in ("context", "question")]
    answers = row.get("answers")
    if isinstance(answers, str) and not answers.isspace() and answers:
        # A table may hold a list or an object as text here: the answer would be its brackets too.
        raise DataError(
            "column answers holds a text; expected a list, or an object with text. If the text is "
            'the answer, say so with columns={"prompt": ..., "response": ...}.'
        )
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
            row = {**meta, **row}
        else:
            meta = {k: v for k, v in row.items() if k not in used and v is not None} | rest
        if len(responses) > 1:
            meta["references"] = responses
        task, source = (cell_text(row.get(c), c) if c else None for c in (self.task, self.source))
        name = _saved_id(row) if self.saved else None
        one = responses[0] if responses else None
        made = Instance(task, source, prompt or None, one, None, name)
        return made._replace(meta=_json(meta)) if meta else made


def reading(present: Collection[str], columns: Mapping[str, str] | None, name: str) -> Reading:
    """Return how rows with these columns are read.

    Args:
        present: names of the columns.
        columns: the caller's mapping of `prompt`, `response` (or `conversation`), `task`, `source`
            to columns; without a prompt or a conversation the format is recognised.
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
        if column not in present and field not in _OPTIONAL:
            raise DataError(f"dataset={name!r} has no column {column}; it has {_listed(present)}.")
    task = given.get("task", "task" if "task" in present else None)
    saved = {*present} == SAVED and {*given} <= {"source"}
    source = given.get("source", SOURCE if saved or SOURCE in present else None)
    return Reading(_format(present, given, name), task, source, saved)


def check_mapped(present: Collection[str], columns: Mapping[str, str] | None, name: str) -> None:
    """Refuse a mapping to a column of tasks or source datasets that none of the rows has.

    It can only be known at the end: in JSON a column may first appear late.
    """
    saved = {*present} == SAVED
    for field in _OPTIONAL & {*(columns or {})}:
        column = (columns or {})[field]
        if present and column not in present and not (saved and field == "source"):
            raise DataError(f"dataset={name!r} has no column {column}; it has {_listed(present)}.")


def _format(present: Collection[str], given: Mapping[str, str], name: str) -> Format:
    if "conversation" in given:
        if "prompt" in given or "response" in given:
            raise DataError(
                f"columns={dict(given)!r}: give a conversation, or prompt and response."
            )
        return Format("mapping", (given["conversation"],), _conversation(given["conversation"]))
    if "prompt" in given and "response" in given:
        mapped = (given["prompt"], given["response"])
        return Format("mapping", mapped, pair(*mapped))
    if "prompt" in given or "response" in given:
        raise DataError(f"columns={dict(given)!r} cannot be used; give prompt and response both.")
    fitting = [form for form in FORMATS if set(form.needs) <= set(present)]
    ask = 'Say which with columns={"prompt": ..., "response": ...} or {"conversation": ...}.'
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
    found = [cell_text(one, column) for one in cells]
    return list(dict.fromkeys(text for text in found if text))


def _saved_id(row: Row) -> str | None:
    name = row.get("id")
    return name if isinstance(name, str) and _OWN_ID.fullmatch(name) else None


def _saved_meta(row: Row) -> dict[str, Any]:
    """Return the meta that `tma.save` wrote, without an id of ours."""
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
