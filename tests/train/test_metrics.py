from __future__ import annotations

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


def test_a_reward_is_the_output_of_the_model(reward_folder: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    found = RewardModel(str(reward_folder)).scores(["What is it?", "Hm"], ["a cat", "no"])
    model = AutoModelForSequenceClassification.from_pretrained(reward_folder)
    given = AutoTokenizer.from_pretrained(reward_folder)(
        "User: What is it?\nAssistant: a cat", return_tensors="pt"
    )
    with torch.inference_mode():
        assert found[0] == pytest.approx(float(model(**given).logits), abs=1e-5)
    assert found[1] != pytest.approx(found[0], abs=1e-5)


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
