"""A row as its source wrote it → task, prompt, response, and the rest as JSON text.

A format is recognised by the columns that are present. If two fit, the caller is asked for a
mapping: a wrong guess would train on the wrong text without a word. Every cell stays as it is
written; numbers and truth values become their text, blank cells count as missing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from tma.data.conversations import Exchange, Row, cell_text, first_exchange
from tma.data.json_text import DECODER, ENCODER
from tma.errors import DataError
from tma.store import digest

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
    """The id under which it was saved, if its content is still that one's."""


def content_key(task: str | None, prompt: str, response: str) -> str:
    """Return the part of an id that the content decides: 16 hexadecimal digits."""
    return digest(task or "", prompt, response)[:16]


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
    given = answers = row.get("answers")
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
    return Exchange(prompt, answers, {"answers": given} if _more_than_text(given) else {})


def _more_than_text(answers: Any) -> bool:
    """Return whether answers have more than texts, such as where each starts in the context."""
    objects = answers if isinstance(answers, list) else [answers]
    return any(isinstance(one, Mapping) and {*one} - {"text"} for one in objects)


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
        meta = _saved_meta(row) if self.saved else self._unused(row, rest)
        if len(responses) > 1:
            meta["references"] = _with_own(responses, meta.get("references"))
        cells = {**meta, **row} if self.saved else row
        task, source = (cell_text(cells.get(c), c) if c else None for c in (self.task, self.source))
        made = Instance(task, source, prompt or None, responses[0] if responses else None, None)
        if self.saved and row.get("id") is not None:
            name = _own_id(row["id"], made)
            made = made._replace(id=name)
            meta = meta if name else {"id": row["id"]} | meta
        return made._replace(meta=_json(meta)) if meta else made

    def _unused(self, row: Row, rest: Mapping[str, Any]) -> dict[str, Any]:
        """Return the cells that are no part of the instance; the source dataset always."""
        used = {*self.format.needs, *self.format.also, self.task} - {self.source}
        return {k: v for k, v in row.items() if k not in used and v is not None} | dict(rest)


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


def _with_own(responses: list[str], own: Any) -> list[Any]:
    """Return responses, then what else a column `references` of the source has."""
    listed = own if isinstance(own, list) else [] if own is None else [own]
    return [*responses, *(one for one in listed if one not in responses)]


def _own_id(name: Any, made: Instance) -> str | None:
    """Return the id of a saved row if it is ours and its content is still that one's."""
    if not isinstance(name, str) or not _OWN_ID.fullmatch(name):
        return None
    key = content_key(made.task, str(made.prompt), str(made.response))
    return name if name.startswith(key) else None


def _saved_meta(row: Row) -> dict[str, Any]:
    """Return the meta that `tma.save` wrote; of another's text what is no object stays a text."""
    text = row.get("meta")
    if isinstance(text, str) and text.startswith("{"):
        try:
            return dict(DECODER.decode(text))
        except ValueError:
            return {"meta": text}
    if text is None:
        return {}
    return dict(text) if isinstance(text, Mapping) else {"meta": text}


def _json(meta: dict[str, Any]) -> str:
    try:
        return ENCODER.encode(meta)
    except ValueError:
        return ENCODER.encode(_finite(meta))


def _finite(value: Any) -> Any:
    """Return a value with None for what JSON has no number for."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    return [_finite(entry) for entry in value] if isinstance(value, list | tuple) else value
