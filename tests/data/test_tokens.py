from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tma.data import tokens

pytestmark = pytest.mark.usefixtures("cache")

PARTS = [
    "[MASK]",
    "[CLS",
    "]",
    " ",
    "\n",
    "\x1c",
    "\x00",
    "\u00a0",
    "\u0301",
    "é",
    "中文",
    "한국",
    "_",
]
TEXTS = st.one_of(
    st.text(max_size=60),
    st.text(st.characters(max_codepoint=127), max_size=200),
    st.lists(st.sampled_from([*PARTS, "word", "Unbelievable", "x" * 101, "3.14"])).map("".join),
)


def test_tokens_are_counted_with_the_two_at_the_ends() -> None:
    # [CLS] how many letters has aaa ##a ? four [SEP]
    assert tokens.count("How many letters has AAAA? four") == 10
    assert tokens.count("") == 2
    assert tokens.count("word " * 600) == 602


@given(TEXTS)
def test_a_count_is_that_of_the_tokenizer(text: str) -> None:
    assert tokens.count(text) == len(tokens._tokenizer().encode(text))


@given(TEXTS, TEXTS, st.integers(1, 40))
def test_longer_is_more_tokens_than_that(prompt: str, response: str, most: int) -> None:
    assert tokens.is_longer(prompt, response, most) == (tokens.count(f"{prompt} {response}") > most)
