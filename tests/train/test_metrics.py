from __future__ import annotations

import json
from pathlib import Path

import pytest

from tma.errors import ParameterError
from tma.train.metrics import RewardModel, exact_match, rouge


@pytest.mark.parametrize(
    ("answer", "references", "expected"),
    [
        ("Paris", ["paris"], 1),
        ("  The capital:\nParis! ", ["the capital Paris"], 1),
        ("Paris", ["London", "Paris."], 1),
        ("Paris", ["London"], 0),
        ("", ["London"], 0),
        ("3.5", ["35"], 1),  # punctuation goes, as in the paper
        ("+", ["-"], 0),  # all of it would
        ("+", ["-", " +"], 1),
        ("", ["-"], 0),
    ],
)
def test_exact_match(answer: str, references: list[str], expected: int) -> None:
    assert exact_match(answer, references) == expected


def test_rouge_by_hand() -> None:
    # Stems: run dog / the dog run. Unigrams: 2 of 2 and 2 of 3; longest common sequence: 1.
    found = rouge("running dogs", ["the dog runs"])
    assert found["rouge1"] == pytest.approx(2 * 1 * (2 / 3) / (1 + 2 / 3))
    assert found["rougeL"] == pytest.approx(2 * 0.5 * (1 / 3) / (0.5 + 1 / 3))
    assert rouge("a b", ["c d", "a b"]) == {"rouge1": 1.0, "rougeL": 1.0}
    assert rouge("", ["a"]) == {"rouge1": 0.0, "rougeL": 0.0}


@pytest.mark.parametrize("references", [[], "abc"])
def test_references_are_a_list_of_texts(references: list[str]) -> None:
    for measure in (rouge, exact_match):
        with pytest.raises(ParameterError, match=r"references=.* a list of one text or more"):
            measure("a", references)


def test_rewards_are_those_of_single_texts(reward_folder: Path) -> None:
    prompts = ["What is it?", "Say more about the whole matter, please.", "Hm"]
    answers = ["a cat", "no", "a much longer answer than the others have"]
    together = RewardModel(str(reward_folder)).scores(prompts, answers)
    apart = [
        RewardModel(str(reward_folder)).scores([p], [a])[0]
        for p, a in zip(prompts, answers, strict=True)
    ]
    assert together.tolist() == pytest.approx(apart, abs=1e-5)
    assert len(set(together.round(6))) == 3


def test_a_reward_model_with_two_outputs_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    config = LlamaConfig.from_pretrained(tiny_model, num_labels=2)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path)
    with pytest.raises(ParameterError, match="2 outputs; expected 1"):
        RewardModel(str(tmp_path)).scores(["a"], ["b"])
    with pytest.raises(ParameterError, match=r"reward_model=.*could not be loaded"):
        RewardModel(str(tmp_path / "none")).scores(["a"], ["b"])


def test_a_long_text_keeps_its_answer(reward_folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(reward_folder, model_max_length=32)
    tokenizer.save_pretrained(reward_folder)
    found = RewardModel(str(reward_folder)).scores(["word " * 100] * 2, ["yes", "not at all"])
    assert found[0] != pytest.approx(found[1], abs=1e-6)


def test_a_tokenizer_with_nothing_to_pad_scores_one_by_one(reward_folder: Path) -> None:
    prompts, answers = ["What is it?", "Say more."], ["a cat", "a much longer answer"]
    padded = RewardModel(str(reward_folder)).scores(prompts, answers)
    file = reward_folder / "tokenizer_config.json"
    known = json.loads(file.read_text())
    file.write_text(json.dumps(known | {"pad_token": None, "eos_token": None}))
    (reward_folder / "special_tokens_map.json").unlink(missing_ok=True)
    found = RewardModel(str(reward_folder)).scores(prompts, answers)
    assert found.tolist() == pytest.approx(padded.tolist(), abs=1e-5)
