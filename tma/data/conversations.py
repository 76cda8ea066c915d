"""The cells of a row: as text, or as a conversation of which the first exchange is taken."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tma.errors import DataError

Row = Mapping[str, Any]

_ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot", "bard", "bing"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "function", "ipython", "observation", "function_call"), "tool"),
}
_ROLE, _TEXT = {"role", "from"}, {"content", "value"}
"""Keys of a message that say who speaks, and what is said."""


class Exchange(NamedTuple):
    """Prompt and response cells, and what the format leaves over of its own columns."""

    prompt: Any
    response: Any
    rest: dict[str, Any]


def first_exchange(messages: Any, column: str) -> Exchange:
    """Return the first exchange of a conversation.

    System messages, then all of the user's messages up to the first reply, make the prompt, a blank
    line between them. What an assistant says before the user has spoken is no reply. All other
    messages are kept in order under `rest`. Where a message of the exchange has more than role and
    text, such as a name or tool calls, all of the exchange are kept without their texts under
    `exchange`.

    Args:
        messages: entries with role and content, or from and value.
        column: where they stand, for messages.

    Raises:
        DataError: this is no list of messages, or a role is not known.
    """
    prompt: dict[str, list[str]] = {"system": [], "user": []}
    response, used, rest = None, list[Any](), list[Any]()
    for message in _messages(messages, column):
        role, text = _said(message, column)
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
    return Exchange("\n\n".join(parts) if asked else None, response, left)


def _messages(value: Any, column: str) -> Sequence[Any]:
    """Return the messages as a list; some tables hold one list of roles and one of texts."""
    if isinstance(value, Mapping) and value and all(isinstance(v, list) for v in value.values()):
        if len({len(cells) for cells in value.values()}) > 1:
            counts = ", ".join(f"{len(cells)} {name}" for name, cells in value.items())
            raise DataError(f"column {column} holds {counts}; expected as many of each.")
        return [dict(zip(value, cells, strict=True)) for cells in zip(*value.values(), strict=True)]
    if value is None:
        return []
    if not isinstance(value, list):
        raise DataError(f"column {column} holds {kind(value)}; expected a list of messages.")
    return value


def _said(message: Any, column: str) -> tuple[str, str]:
    if not isinstance(message, Mapping):
        raise DataError(f"column {column} holds {kind(message)}; expected role and content.")
    given = _either(message, "role", "from")
    role = _ROLES.get(str(given).strip().lower())
    if role is None:
        raise DataError(
            f"column {column} has a message of the role {given!r}; known are: {', '.join(_ROLES)}."
        )
    text = _either(message, "content", "value")
    if isinstance(text, list):
        text = "".join(_part(part, column) for part in text)
    return role, cell_text(text, column) or ""


def _either(message: Mapping[str, Any], first: str, second: str) -> Any:
    """Return a message's cell under one of two names; tables that mix both have nulls."""
    found = message.get(first)
    return message.get(second) if found is None else found


def _part(part: Any, column: str) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and isinstance(part.get("text"), str):
        return str(part["text"])
    raise DataError(f"column {column} has a message with a part that is no text: {kind(part)}.")


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
        raise DataError(f"column {column} holds {kind(value)}; expected text.")
    return str(value)


def kind(value: Any) -> str:
    """Return in words what a cell is that is no text."""
    return f"a {type(value).__name__}"
