from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tma.arrange.spec import Method
from tma.errors import ParameterError
from tma.runs.config import RunConfig


def test_steps_stand_for_instances() -> None:
    config = RunConfig.at("pocket", order="tma_nft", steps=10)
    assert config.limit == 40
    assert config.model == "smollm2-135m-instruct"
    assert RunConfig.at("pocket", order="random", steps=10, batch_size=8).limit == 80
    assert RunConfig.at("pocket", order="random", limit=5).limit == 5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": -3}, "steps=-3 .* at least 1"),
        ({"steps": None}, "steps=None .* at least 1"),
        ({"steps": "3"}, "steps='3' .* at least 1"),
        ({"steps": 2, "limit": 5}, "steps=2 and limit=5 .* give one of the two"),
        ({"model": "lama"}, "model='lama' .* llama, gemma, qwen, smollm2.*mean"),
        ({"colour": 3}, "colour=3 cannot be used"),
    ],
)
def test_what_no_scale_can_be_changed_by_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        RunConfig.at("pocket", order="random", **given)


def test_the_paper_scale_has_the_papers_settings() -> None:
    config = RunConfig.at("paper", order="tma_nft", dataset="declare-lab/flan-mini")
    assert config.model == "meta-llama/Llama-2-7b-hf"
    assert (config.batch_size, config.max_tokens, config.eval_every) == (16, 1024, 10)
    assert (config.learning_rate, config.weight_decay, config.clip_norm) == (1e-6, 0.0, 1.0)
    assert config.final_rate_ratio == 0.1


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("niv2", True),
        ("no-robots", True),
        ("here.jsonl.gz", True),
        ("folder", True),
        ("flan-mini:here.jsonl.gz", True),
        ("owner/name", True),
        ("owner/name:some_configuration", True),
        ("niv3", False),
        ("gone.csv.zst", False),
        ("here.txt", False),
        ("flan-mini:gone.jsonl", False),
        ("pocket:here.jsonl.gz", False),
        ("owner/gone.parquet", False),
    ],
)
def test_what_a_dataset_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, good: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.jsonl.gz").touch()
    (tmp_path / "here.txt").touch()
    (tmp_path / "folder").mkdir()
    if good:
        assert RunConfig.at("pocket", order="random", dataset=name).dataset == name
        return
    with pytest.raises(ParameterError, match=f"dataset='{name}' cannot be used; expected one of"):
        RunConfig.at("pocket", order="random", dataset=name)


def test_settings_travel_as_json() -> None:
    data: dict[str, Any] = {"columns": {"prompt": "q", "response": "a"}, "per_task": (20, None)}
    data |= {"by": "source", "max_instance_tokens": 128}
    config = RunConfig.at("pocket", order="tma_fft", seed=3, pool=9, eval_at=[2, 1, 2], **data)
    assert config.per_task == (20, None)
    assert config.eval_at == (1, 2)
    assert RunConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    named = RunConfig.at("pocket", order="random", held_out=["xsum", "imdb", "xsum"])
    assert named.held_out == ("imdb", "xsum")
    assert RunConfig.from_json(json.loads(json.dumps(named.to_json()))) == named


@pytest.mark.parametrize(
    ("dataset", "fold", "words"),
    [
        ("suite", 4, None),
        ("suite", "validation", None),
        ("pocket", 0, None),
        ("p3", 4, None),
        ("p3:{file}", 0, None),
        ("suite", 5, "fold=5 cannot be used; expected one of: 0, 1, 2, 3, 4, validation"),
        ("suite", "0", "fold='0' .* expected one of: 0, 1"),
        ("suite", True, "fold=True .* expected one of: 0, 1"),
        ("suite", 1.0, "fold=1.0 "),
        ("p3", "validation", "fold='validation' .* expected one of: 0, 1, 2, 3, 4"),
        ("{file}", 0, "fold=0 .* has no folds, only suite, pocket, p3 have. Name .* in held_out"),
        ("flan-mini", 0, "dataset='flan-mini' has no folds"),
    ],
)
def test_which_folds_a_dataset_has(
    tmp_path: Path, dataset: str, fold: object, words: str | None
) -> None:
    (tmp_path / "p3.jsonl").touch()
    given = {"dataset": dataset.format(file=tmp_path / "p3.jsonl"), "fold": fold}
    if words is None:
        assert RunConfig.at("pocket", order="random", **given).fold == fold
        return
    with pytest.raises(ParameterError, match=words):
        RunConfig.at("pocket", order="random", **given)


def test_local_files_get_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.jsonl").touch()
    config = RunConfig.at("pocket", order="random", test_dataset="mine.jsonl")
    assert config.with_absolute_paths().test_dataset == str((tmp_path / "mine.jsonl").resolve())
    assert config.with_absolute_paths().dataset == "pocket"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"order": "nearset"}, "order='nearset'"),
        ({"collision": "each"}, "collision='each' .* order='random'"),
        ({"by": "tasks"}, "by='tasks' .*did you mean task"),
        ({"per_task": (1, 2, 3)}, "per_task=.* one number, or two"),
        ({"held_out": "imdb"}, "held_out='imdb' .* names of tasks or source datasets"),
        ({"held_out": []}, r"held_out=\[\] .* names of tasks or source datasets"),
        ({"by": "task", "fold": 1}, "by='task' and fold=1 each say .* Give only one"),
        ({"held_out": ["a"], "fold": 1}, r"held_out=\('a',\) and fold=1 each say"),
        ({"test_dataset": "nivv2"}, r"test_dataset='nivv2' .* \(did you mean niv2\?\)"),
        (
            {"test_dataset": "p3", "by": "task"},
            "test_dataset='p3' takes every row and holds none out, which by='task' asks for",
        ),
        ({"columns": "prompt"}, "columns='prompt' .* names"),
        ({"batch_size": 0}, "batch_size=0 .* a number of at least 1"),
        ({"learning_rate": float("nan")}, "learning_rate=nan .* a finite number"),
        ({"seed": True}, "seed=True"),
        ({"precision": "fp16"}, "precision='fp16' .* auto, bf16, fp32"),
        ({"micro_tokens": 100}, "micro_tokens=100 is less than max_tokens=256"),
        ({"clip_norm": "x"}, "clip_norm='x' "),
        ({"gradient_checkpointing": 1}, "gradient_checkpointing=1 .* True or False"),
        ({"generate_at": 3}, r"generate_at=3 .* a list of steps, such as \[0, 10\]"),
        ({"reward_model": 3}, "reward_model=3 .* None, a hub id .* folder"),
        ({"reward_model": "no/such/folder"}, "reward_model='no/such/folder' "),
        ({"reward_model": "a/b"}, r"reward_model='a/b' .* generate_at=\(\)\. Name steps"),
    ],
)
def test_a_wrong_setting_is_refused_when_made(change: dict[str, object], words: str) -> None:
    config = RunConfig.at("pocket", order="random")
    with pytest.raises(ParameterError, match=words):
        dataclasses.replace(config, **change)


def test_the_method_has_every_setting_of_the_arrangement() -> None:
    config = RunConfig.at("pocket", order="nearest", seed=2, pool=9, weight=0.5)
    assert config.method == Method("nearest", limit=32, seed=2, weight=0.5, pool=9)
