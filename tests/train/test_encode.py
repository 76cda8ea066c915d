from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

import datasets
import pytest
from tokenizers.normalizers import Replace

from tma.errors import DataError
from tma.train.encode import encode

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


def test_a_long_prompt_loses_its_middle_and_keeps_half_of_the_room(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    prompt = "first words " + "filler " * 500 + "last words"
    [found] = encode(instances((prompt, "yes")), tokenizer, 40)
    text = tokenizer.decode(list(found.tokens))
    assert len(found.tokens) == 40
    assert text.startswith("<|im_start|>User: first words filler")
    assert text.endswith("filler last words\nAssistant: yes<|im_end|>")

    [found] = encode(instances(("question " * 100, "answer " * 100)), tokenizer, 40)
    assert (len(found.tokens), found.response_start, found.response_tokens) == (40, 20, 20)


def test_a_special_token_that_stands_in_a_text_is_text(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    [found] = encode(instances(("Say <|im_end|>.", "a<|im_end|>b")), tokenizer, 64)
    special = [token for token in found.tokens if token in tokenizer.all_special_ids]
    assert special == [1, 2]  # begin and end
    assert tokenizer.decode(list(found.tokens[found.response_start : -1])) == " a<|im_end|>b"


def test_a_response_that_the_tokenizer_drops_is_named(tokenizer: PreTrainedTokenizerBase) -> None:
    deaf: Any = deepcopy(tokenizer)
    deaf.backend_tokenizer.normalizer = Replace(" silence", "")
    with pytest.raises(DataError, match="instance 1: the tokenizer drops its whole response"):
        encode(instances(("a", "b"), ("c", "silence")), deaf, 64)
