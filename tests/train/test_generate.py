from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

import tma
from tests.conftest import tiny_run
from tma.errors import ParameterError, TrainingError
from tma.runs.config import RunConfig
from tma.runs.execute import RunExecutor, _Loaded
from tma.runs.store import ResolvedRun
from tma.train import loop, metrics, models
from tma.train.checkpoint import States
from tma.train.encode import encode
from tma.train.generate import answers, scored

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def test_answers_are_greedy_and_do_not_depend_on_the_batch(
    tiny_model: Path, dataset_file: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = encode(tma.load(str(dataset_file), split="train"), tokenizer, 64)[::5]
    model = models.load(str(tiny_model))[0]
    found = answers(model, tokenizer, rows, max_new_tokens=6, micro_tokens=200)
    for row, answer in zip(rows, found, strict=True):
        tokens = list(row.tokens[: row.response_start])
        for _ in range(6):
            with torch.inference_mode():
                tokens.append(int(model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
        made = tokens[row.response_start :]
        if tokenizer.eos_token_id in made:
            made = made[: made.index(tokenizer.eos_token_id)]
        assert answer == tokenizer.decode(made, skip_special_tokens=True).strip()


def test_settings_that_come_with_a_model_do_not_steer_its_answers(
    tiny_model: Path, dataset_file: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    from transformers import GenerationConfig

    rows = encode(tma.load(str(dataset_file), split="train"), tokenizer, 64)[::9]
    model = models.load(str(tiny_model))[0]
    plain = answers(model, tokenizer, rows, max_new_tokens=6)
    model.generation_config = own = GenerationConfig(
        encoder_repetition_penalty=2.0,
        forced_eos_token_id=2,
        exponential_decay_length_penalty=[1, 100.0],
        return_dict_in_generate=True,
        num_return_sequences=1,
        stop_strings=["a", "e"],
        suppress_tokens=list(range(3, 20_000)),
        repetition_penalty=9.0,
        min_new_tokens=6,
    )
    assert answers(model, tokenizer, rows, max_new_tokens=6) == plain
    assert model.generation_config is own


def test_the_real_model_answers(weights: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    from datasets import Dataset

    given = {
        "id": ["a", "b"],
        "task": [None, None],
        "prompt": ["What is the capital of France? Answer with one word.", "Say: yes"],
        "response": ["Paris", "yes"],
    }
    rows = encode(Dataset.from_dict(given), tokenizer, 64)
    model = models.load(str(weights))[0]
    found = answers(model, tokenizer, rows, max_new_tokens=8)
    assert "Paris" in found[0]
    entries = scored(rows, ["paris.", "no"], [["Paris"], ["yes", "Yes!"]])
    assert [e["exact_match"] for e in entries] == [1, 0]
    assert entries[0]["rougeL"] == 1
    assert entries[0]["id"] == "a"


def answering(model: Path, data: Path, **settings: Any) -> RunConfig:
    """Two steps, with answers before the first and after the last."""
    shape = {"order": "random", "steps": 2, "batch_size": 8}
    return tiny_run(model, data, **shape, generate_at=[0, 2], max_new_tokens=4, **settings)


def test_a_run_keeps_its_answers(cache: Path, tiny_model: Path, dataset_file: Path) -> None:
    config = answering(tiny_model, dataset_file)
    run = tma.run(config)
    test = tma.load(str(dataset_file), split="test")
    assert run.answers["step"].tolist() == [0] * len(test) + [2] * len(test)
    assert run.answers["id"].tolist() == list(test["id"]) * 2
    assert {"answer", "rouge1", "rougeL", "exact_match"} <= set(run.answers)
    assert run.config == replace(config, precision=run.config.precision)


def test_a_run_loads_its_reward_model_once_and_is_named_by_it(
    cache: Path,
    tiny_model: Path,
    dataset_file: Path,
    reward_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert cache.is_dir()
    config = answering(tiny_model, dataset_file, reward_model=str(reward_folder), seed=5)
    loaded: list[str] = []
    load = metrics._reward_model
    monkeypatch.setattr(metrics, "_reward_model", lambda name: (loaded.append(name), load(name))[1])
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
    monkeypatch.setattr("tma.train.loop.train", None)  # not reached
    with pytest.raises(ParameterError, match=r"reward_model=.* could not be loaded"):
        tma.run(config)


def test_a_run_without_answers_says_so(cache: Path, tiny_model: Path, dataset_file: Path) -> None:
    assert cache.is_dir()
    config = tiny_run(tiny_model, dataset_file, order="random", steps=2, batch_size=8)
    with pytest.raises(ParameterError, match=r"generate_at=\(\) of run .* asks for no answers"):
        _ = tma.run(config).answers


def test_a_step_past_the_last_stands_for_the_last(
    cache: Path, tiny_model: Path, dataset_file: Path
) -> None:
    # As where a file has fewer instances than were wanted.
    config = replace(answering(tiny_model, dataset_file), generate_at=(1, 3, 4))
    answered = tma.run(config).answers["step"]
    assert answered.tolist() == [1] * 8 + [2] * 8


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": "adafactor"},
        {"schedule": "linear"},
        {"schedule": "constant"},
        {"attention": "eager"},
        {"gradient_checkpointing": True},
        {"epochs": 2},
    ],
    ids=str,
)
def test_settings_of_training_do_what_they_say(
    cache: Path,
    tiny_model: Path,
    dataset_file: Path,
    change: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trained: list[Any] = []
    train = loop.train
    monkeypatch.setattr(loop, "train", lambda m, *a, **k: (trained.append(m), train(m, *a, **k))[1])
    config = tiny_run(
        tiny_model,
        dataset_file,
        order="random",
        steps=4,
        batch_size=8,
        learning_rate=1e-3,
        precision="fp32",
    )
    plain, changed = tma.run(config), tma.run(replace(config, **change))
    assert trained[-1].is_activation_checkpointing == ("gradient_checkpointing" in change)
    kernel = trained[-1].config._attn_implementation
    assert (kernel == "eager") == ("attention" in change)
    same = {"attention": 1e-4, "gradient_checkpointing": 1e-5}.get(next(iter(change)))
    difference = (plain.training["loss"] - changed.training["loss"][:4]).abs().max()
    if same is not None:  # other arithmetic, the same numbers
        assert difference < same
    rates = changed.training["learning_rate"].tolist()
    if change == {"schedule": "constant"}:
        assert rates == [1e-3] * 4
    if change == {"schedule": "linear"}:
        assert rates == pytest.approx([1e-3, 7e-4, 4e-4, 1e-4])
    if change == {"optimizer": "adafactor"}:
        assert difference > 1e-4
        fast = tma.run(replace(changed.config, learning_rate=0.2)).losses
        means = fast.groupby("step")["loss"].mean()
        assert means.iloc[-1] < means.iloc[0]
    if change == {"epochs": 2}:
        assert changed.manifest["steps"] == 8


def test_an_answer_is_compared_with_every_reference(
    tmp_path: Path, own_cache: Path, tiny_model: Path
) -> None:
    def scores(responses: list[list[str]]) -> list[dict[str, Any]]:
        rows = [{"prompt": f"Say {k}", "response": r} for k, r in enumerate(responses)]
        path = tmp_path / "a.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        train, test = (tma.load(str(path), split=split) for split in ("train", "test"))
        config = tiny_run(tiny_model, path, order="random", max_new_tokens=4)
        executor = RunExecutor(ResolvedRun(config, {}, train, test), States(tmp_path, None, None))
        model, tokenizer = models.load(str(tiny_model))
        encoded = encode(test, tokenizer, 64)
        return executor._answer(model, _Loaded(model, tokenizer, None, [], encoded), encoded)

    (alone,) = scores([["never said"]] * 3)
    (several,) = scores([["never said", alone["answer"]]] * 3)
    assert alone["answer"].strip()
    assert (alone["exact_match"], several["exact_match"]) == (0, 1)
