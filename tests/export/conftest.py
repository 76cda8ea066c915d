"""A tiny tokenizer, a tiny model and ten rows in an order."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import tma
from tma import Method

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

TEMPLATE = (
    "{% for m in messages %}{{ m.role }} {{ m.content }} {{ eos_token }} {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)
WORDS = ["<pad>", "<eos>", "<unk>", "user", "assistant", "system", "tool", "say", "w"]
ROWS = [
    {"tma_id": f"id{k}", "prompt": f"say {'w ' * (k % 3)}", "completion": f"n{k} w"}
    for k in range(10)
]


@pytest.fixture(scope="session")
def words() -> PreTrainedTokenizerFast:
    """A tokenizer of whole words: `say`, `w`, `n0` to `n9`."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    known = {word: k for k, word in enumerate([*WORDS, *(f"n{k}" for k in range(10))])}
    made = Tokenizer(WordLevel(known, unk_token=WORDS[2]))
    made.pre_tokenizer = WhitespaceSplit()
    special = {f"{name}_token": f"<{name}>" for name in ("pad", "eos", "unk")}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, **special)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture(scope="session")
def model(words: PreTrainedTokenizerFast) -> Callable[[], PreTrainedModel]:
    """A Llama of two layers, new at every call."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    def make() -> PreTrainedModel:
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
        return LlamaForCausalLM(LlamaConfig(vocab_size=len(words), **sizes, **heads))

    return make


@pytest.fixture
def receipt(tmp_path: Path) -> Path:
    """The file of the receipt of ROWS."""
    of(ROWS).save(tmp_path / "receipt.json")
    return tmp_path / "receipt.json"


def of(rows: list[dict[str, Any]]) -> tma.Receipt:
    """The receipt of rows in their sequence."""
    ids = tuple(row["tma_id"] for row in rows)
    return tma.Receipt(Method("random"), "", "", "", 0, ids)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
