from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tma.data.instances import encoder_tokenizer, ids, repeats, token_count

PARTS = ["[MASK]", "[CLS", "]", " ", "\n", "\x1c", "\x00", "\u00a0", "\u0301", "é", "中文", "_"]
TEXTS = st.one_of(
    st.text(max_size=60),
    st.text(st.characters(max_codepoint=127), max_size=200),
    st.lists(st.sampled_from([*PARTS, "word", "Unbelievable", "x" * 101, "3.14"])).map("".join),
)


@pytest.mark.usefixtures("cache")
def test_tokens_are_counted_with_the_two_at_the_ends() -> None:
    # [CLS] how many letters has aaa ##a ? four [SEP]
    assert token_count("How many letters has AAAA? four") == 10
    assert token_count("") == 2
    assert token_count("word " * 600) == 602


@pytest.mark.usefixtures("cache")
@given(TEXTS)
def test_a_count_is_that_of_the_tokenizer(text: str) -> None:
    assert token_count(text) == len(encoder_tokenizer().encode(text))


@given(st.lists(st.integers(0, 5), max_size=50))
def test_repeats_are_counted_in_row_order(keys: list[int]) -> None:
    found = repeats(np.array(keys, dtype=np.uint64)).tolist()
    assert found == [keys[:k].count(key) for k, key in enumerate(keys)]


def test_ids_have_a_counter_from_the_second_repeat_on() -> None:
    keys = np.array([255, 1, 255, 255], dtype=np.uint64)
    assert ids(keys, repeats(keys)) == [
        "00000000000000ff",
        "0000000000000001",
        "00000000000000ff-2",
        "00000000000000ff-3",
    ]
