"""The objects of a JSON file of any size: a list of them, or one after the other.

Only as much text is held as the object that is being read is long.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tma.errors import DataError

UTF8 = "Save the file as UTF-8, e.g. with `iconv -f <its encoding> -t utf-8`."
_CHUNK = 2**20
_SPACE = re.compile(r"[ \t\r\n]*")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object; a key that comes twice may be two rows that were run together."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"the key {twice!r} stands there twice")
    return made


DECODER = json.JSONDecoder(parse_constant=lambda _: None, object_pairs_hook=_once)
"""NaN and the infinities, which are no JSON, count as missing."""
ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=str)
"""A ValueError for them; what JSON has no form for, such as a date, is written as text."""


def bad_text(error: UnicodeDecodeError) -> str:
    """Return in words which byte is no UTF-8, and what to do."""
    return f"byte 0x{error.object[error.start]:02x} is not UTF-8 text. {UTF8}"


class JsonText:
    """The text of a JSON file, read as far as it is needed."""

    def __init__(self, stream: BinaryIO, path: Path, longest: int) -> None:
        self._stream, self._path, self._longest = stream, path, longest
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text, self._at, self._line, self._ended = "", 0, 1, False

    def objects(self) -> Iterator[tuple[int, int, dict[str, Any]]]:
        """Yield line number, length and content of each object.

        Raises:
            DataError: something else stands there, or the text ends too early.
        """
        if self._next() != "[":
            while self._next():
                yield self._object()
            return
        self._at += 1
        closed = self._next() == "]"
        while not closed:
            yield self._object()
            closed = self._next() == "]"
            if not closed:
                self._expect(",", "a comma or the end of the list")
        self._at += 1
        if self._next():
            raise self._error("more text after the list", "its end")

    def _object(self) -> tuple[int, int, dict[str, Any]]:
        self._next()
        line, (value, length) = self._line, self._value()
        if not isinstance(value, dict):
            raise self._error(f"a {type(value).__name__}", "an object")
        self._line += self._text.count("\n", self._at, self._at + length)
        self._at += length
        return line, length, value

    def _value(self) -> tuple[Any, int]:
        """Return the value that stands here, and how long its text is."""
        while True:
            try:
                value, end = DECODER.raw_decode(self._text, self._at)
                return value, end - self._at
            except DataError as error:
                raise self._error(str(error), "every key once") from error
            except (ValueError, RecursionError) as error:
                # The value may only have been cut off by the end of what was read.
                if len(self._text) - self._at > self._longest or not self._more():
                    reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
                    at = error.pos if isinstance(error, json.JSONDecodeError) else self._at
                    self._line += self._text.count("\n", self._at, at)
                    raise self._error(reason, "an object") from error

    def _next(self) -> str:
        """Go to the next character that is no white space; return it, nothing at the end."""
        while True:
            found = _SPACE.match(self._text, self._at)
            end = found.end() if found else self._at
            self._line += self._text.count("\n", self._at, end)
            self._at = end
            if end < len(self._text) or not self._more():
                return self._text[end : end + 1]

    def _expect(self, character: str, words: str) -> None:
        found = self._next()
        if found != character:
            raise self._error(repr(found) if found else "the end of the file", words)
        self._at += 1

    def _more(self) -> bool:
        """Read on; return whether there was more."""
        rest = self._text[self._at :]
        raw = b"" if self._ended else self._stream.read(max(_CHUNK, len(rest)))
        self._ended = not raw
        try:
            new = self._decoder.decode(raw, final=self._ended)
        except UnicodeDecodeError as error:
            good = error.object[: error.start].decode("utf-8", "replace")
            self._line += rest.count("\n") + good.count("\n")
            raise DataError(f"{self._path}, line {self._line}: {bad_text(error)}") from error
        self._text, self._at = rest + new, 0
        return not self._ended

    def _error(self, found: str, expected: str) -> DataError:
        return DataError(
            f"{self._path}, line {self._line}: {found}; expected {expected}, in a list of JSON "
            "objects or in JSON Lines."
        )
