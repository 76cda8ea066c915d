from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tma.errors import DataError
from tma.train.encode import BATCH_COST, Encoded, _cuts, encode, micro_batches

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def instances(*pairs: tuple[str, str]) -> datasets.Dataset:
    prompts, responses = zip(*pairs, strict=True)
    ids = [str(k) for k in range(len(pairs))]
    columns = {"id": ids, "task": ["t"] * len(ids), "prompt": prompts, "response": responses}
    return datasets.Dataset.from_dict(columns)


def test_the_prompt_format_is_the_papers(tokenizer: PreTrainedTokenizerBase) -> None:
    [found] = encode(instances(("Say hi.", "Hello there")), tokenizer, 64)
    text = tokenizer.decode(list(found.tokens))
    assert text == "<|im_start|>User: Say hi.\nAssistant: Hello there<|im_end|>"
    response = tokenizer.decode(list(found.tokens[found.response_start :]))
    assert response == " Hello there<|im_end|>"
    assert found.tokens == (1, 11126, 42, 16172, 15876, 30, 198, 9519, 9531, 42, 38699, 665, 2)
    assert (found.response_start, found.response_tokens) == (10, 3)


def test_a_long_prompt_loses_its_middle(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = "first words " + "filler " * 500 + "last words"
    [found] = encode(instances((prompt, "yes")), tokenizer, 40)
    text = tokenizer.decode(list(found.tokens))
    assert len(found.tokens) == 40
    assert text.startswith("<|im_start|>User: first words filler")
    assert text.endswith("filler last words\nAssistant: yes<|im_end|>")


def test_a_long_response_keeps_half_of_the_room_for_the_prompt(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    pair = ("question " * 100, "answer " * 100)
    [found] = encode(instances(pair), tokenizer, 40)
    assert (len(found.tokens), found.response_start, found.response_tokens) == (40, 20, 20)


def test_an_instance_without_response_is_named(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(DataError, match="instance 1 has no response"):
        encode(instances(("a", "b"), ("c", " ")), tokenizer, 64)


def test_a_special_token_that_stands_in_a_text_is_text(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    [found] = encode(instances(("Say <|im_end|>.", "a<|im_end|>b")), tokenizer, 64)
    special = [token for token in found.tokens if token in tokenizer.all_special_ids]
    assert special == [1, 2]  # begin and end
    assert tokenizer.decode(list(found.tokens[found.response_start : -1])) == " a<|im_end|>b"


def test_a_response_that_the_tokenizer_drops_is_named(tokenizer: PreTrainedTokenizerBase) -> None:
    from copy import deepcopy

    from tokenizers.normalizers import Replace

    deaf: Any = deepcopy(tokenizer)
    deaf.backend_tokenizer.normalizer = Replace(" silence", "")
    with pytest.raises(DataError, match="instance 1: the tokenizer drops its whole response"):
        encode(instances(("a", "b"), ("c", "silence")), deaf, 64)


def made(*shapes: tuple[int, int]) -> list[Encoded]:
    return [
        Encoded(str(k), None, tuple(range(100 * k, 100 * k + length)), start)
        for k, (length, start) in enumerate(shapes)
    ]


def test_each_response_token_is_predicted_from_the_place_before_it() -> None:
    [batch] = micro_batches(made((5, 3), (4, 2)), 64)
    assert (batch.members, batch.ids) == ((0, 1), ("0", "1"))
    assert batch.tokens.tolist() == [[0, 1, 2, 3, 4], [100, 101, 102, 103, 0]]
    row, position = batch.places
    assert list(zip(row.tolist(), position.tolist(), strict=True)) == [
        (0, 2),
        (0, 3),
        (1, 1),
        (1, 2),
    ]
    assert batch.targets.tolist() == [3, 4, 102, 103]


def test_the_budget_counts_padding() -> None:
    batches = micro_batches(made((10, 5), (9, 5), (8, 5)), 20)
    assert [b.members for b in batches] in ([(0, 1), (2,)], [(0,), (1, 2)])
    assert max(b.tokens.numel() for b in batches) <= 20


@given(st.lists(st.integers(2, 300), min_size=1, max_size=9), st.integers(300, 900))
def test_the_grouping_is_the_cheapest_of_all(lengths: list[int], budget: int) -> None:
    falling = sorted(lengths, reverse=True)

    def cost(cuts: list[int]) -> float:
        groups = list(itertools.pairwise(cuts))
        if any(falling[a] * (b - a) > budget for a, b in groups):
            return float("inf")
        return sum(falling[a] * (b - a) + BATCH_COST for a, b in groups)

    inner = range(1, len(falling))
    every = [
        [0, *(c for c in inner if chosen >> c & 1), len(falling)]
        for chosen in range(0, 2 ** len(falling), 2)
    ]
    assert cost(_cuts(falling, budget, packed=False)) == min(cost(cuts) for cuts in every)


@given(st.lists(st.tuples(st.integers(2, 40), st.integers(1, 39)), max_size=30))
def test_every_instance_is_in_one_micro_batch(shapes: list[tuple[int, int]]) -> None:
    rows = made(*((length, min(start, length - 1)) for length, start in shapes))
    batches = micro_batches(rows, 64)
    assert sorted(m for b in batches for m in b.members) == list(range(len(rows)))
    for batch in batches:
        for r, member in enumerate(batch.members):
            targets = batch.targets[batch.places[0] == r].tolist()
            assert targets == list(rows[member].tokens[rows[member].response_start :])


def test_packed_instances_follow_each_other_without_padding() -> None:
    [batch] = micro_batches(made((4, 2), (5, 3), (3, 1)), 64, packed=True)
    assert (batch.members, batch.lengths, batch.packed) == ((1, 0, 2), (5, 4, 3), True)
    assert batch.tokens.tolist() == [[100, 101, 102, 103, 104, 0, 1, 2, 3, 200, 201, 202]]
    assert batch.places[0].tolist() == [0] * 6
    assert batch.places[1].tolist() == [2, 3, 6, 7, 9, 10]
    assert batch.targets.tolist() == [103, 104, 2, 3, 201, 202]
    assert batch.owners.tolist() == [0, 0, 1, 1, 2, 2]


def test_the_budget_of_packed_instances_counts_their_tokens() -> None:
    batches = micro_batches(made((10, 5), (9, 5), (1000, 5), (8, 5)), 19, packed=True)
    assert [b.members for b in batches] == [(2,), (0,), (1, 3)] or [b.members for b in batches] == [
        (2,),
        (0, 1),
        (3,),
    ]
    assert next(b.tokens.numel() for b in batches) == 1000
