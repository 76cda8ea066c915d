from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, GenerationConfig

import tma
from tma.errors import ParameterError, TrainingError
from tma.runs.config import RunConfig
from tma.train import metrics, models
from tma.train.encode import Encoded, encode
from tma.train.generate import answers, scored

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@pytest.fixture
def rows(dataset_file: Path, tokenizer: PreTrainedTokenizerBase) -> list[Encoded]:
    return encode(tma.load(str(dataset_file), split="train"), tokenizer, 64)[::5]


def test_answers_are_greedy_and_do_not_depend_on_the_batch(
    tiny_model: Path, rows: list[Encoded], tokenizer: PreTrainedTokenizerBase
) -> None:
    model = models.load(str(tiny_model))[0]
    found = answers(model, tokenizer, rows, max_new_tokens=6, micro_tokens=200)
    for row, answer in zip(rows, found, strict=True):
        tokens = list(row.tokens[: row.response_start])
        for _ in range(6):
            with torch.inference_mode():
                tokens.append(int(model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
        expected = tokens[row.response_start :]
        if tokenizer.eos_token_id in expected:
            expected = expected[: expected.index(tokenizer.eos_token_id)]
        assert answer == tokenizer.decode(expected, skip_special_tokens=True).strip()


def test_settings_that_come_with_a_model_do_not_steer_its_answers(
    tiny_model: Path, rows: list[Encoded], tokenizer: PreTrainedTokenizerBase
) -> None:
    model = models.load(str(tiny_model))[0]
    plain = answers(model, tokenizer, rows, max_new_tokens=6)
    model.generation_config = own = GenerationConfig(
        forced_eos_token_id=2,
        exponential_decay_length_penalty=[1, 100.0],
        return_dict_in_generate=True,
        stop_strings=["a", "e"],
        suppress_tokens=list(range(3, 20_000)),
        repetition_penalty=9.0,
        min_new_tokens=6,
    )
    assert answers(model, tokenizer, rows, max_new_tokens=6) == plain
    assert model.generation_config is own


def test_the_real_model_answers(weights: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    from datasets import Dataset

    prompt = "What is the capital of France? Answer with one word."
    given = {"id": ["a"], "task": [None], "prompt": [prompt], "response": ["Paris"]}
    rows = encode(Dataset.from_dict(given), tokenizer, 64)
    found = answers(models.load(str(weights))[0], tokenizer, rows, max_new_tokens=8)
    assert "Paris" in found[0]


def test_an_answer_is_compared_with_every_reference() -> None:
    rows = [Encoded(name, "t", (1, 2, 3), 2) for name in ("a", "b")]
    entries = scored(rows, ["paris.", "no"], [["Lyon", "Paris"], ["yes", "Yes!"]])
    assert [e["exact_match"] for e in entries] == [1, 0]
    assert entries[0] == {
        "id": "a", "task": "t", "answer": "paris.", "rouge1": 1, "rougeL": 1, "exact_match": 1,
    }  # fmt: skip


@pytest.fixture
def config(config: RunConfig) -> RunConfig:
    """Two steps, with answers before the first and after the last."""
    return replace(config, limit=16, batch_size=8, max_new_tokens=4, generate_at=(0, 2))


def test_a_run_keeps_its_answers(config: RunConfig) -> None:
    config = replace(config, generate_at=(0, 3, 4))  # past the last step: the last
    run, test = tma.run(config), tma.load(config.dataset, split="test")
    assert run.answers["step"].tolist() == [0] * len(test) + [2] * len(test)
    assert run.answers["id"].tolist() == list(test["id"]) * 2
    assert {"answer", "rouge1", "rougeL", "exact_match"} <= set(run.answers)
    assert run.config == config


def test_a_run_loads_its_reward_model_once_and_is_named_by_it(
    config: RunConfig, reward_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, reward_model=str(reward_folder), seed=5)
    loaded: list[str] = []
    load = metrics.load_complete

    def noted(setting: str, name: str, *given: Any, **named: Any) -> Any:
        loaded.append(name)
        return load(setting, name, *given, **named)

    monkeypatch.setattr(metrics, "load_complete", noted)
    run = tma.run(config)
    assert loaded == [str(reward_folder)]
    assert run.answers["reward"].notna().all()
    model = AutoModelForSequenceClassification.from_pretrained(reward_folder)
    with torch.no_grad():
        model.score.weight.fill_(float("nan"))
    model.save_pretrained(reward_folder)  # the same name, other weights
    with pytest.raises(TrainingError, match="step 0: reward is nan; instances"):
        tma.run(config)
    (reward_folder / "config.json").unlink()
    with pytest.raises(ParameterError, match=r"reward_model=.* could not be loaded"):
        tma.run(config)
