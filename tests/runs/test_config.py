from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tma.arrange.spec import Method
from tma.errors import ParameterError
from tma.runs.config import RunConfig


def pocket(**settings: Any) -> RunConfig:
    return RunConfig.at("pocket", **{"order": "random"} | settings)


def test_steps_stand_for_instances() -> None:
    config = pocket(steps=10)
    assert (config.limit, config.model) == (40, "smollm2-135m-instruct")
    assert pocket(steps=10, batch_size=8).limit == 80
    assert pocket(limit=5).limit == 5


def test_the_paper_scale_has_the_papers_settings() -> None:
    config = RunConfig.at("paper", order="tma_nft", dataset="declare-lab/flan-mini")
    assert config.model == "meta-llama/Llama-2-7b-hf"
    assert (config.batch_size, config.max_tokens, config.eval_every) == (16, 1024, 10)
    assert (config.learning_rate, config.weight_decay, config.clip_norm) == (1e-6, 0.0, 1.0)
    assert config.final_rate_ratio == 0.1


def test_settings_travel_as_json() -> None:
    data: dict[str, Any] = {"columns": {"prompt": "q", "response": "a"}, "per_task": (20, None)}
    data |= {"by": "source", "max_instance_tokens": 128}
    config = pocket(order="tma_fft", seed=3, pool=9, eval_at=[2, 1, 2], **data)
    named = pocket(held_out=["xsum", "imdb", "xsum"])
    assert (config.per_task, config.eval_at) == ((20, None), (1, 2))
    assert named.held_out == ("imdb", "xsum")
    for one in (config, named):
        assert RunConfig.from_json(json.loads(json.dumps(one.to_json()))) == one


def test_numpy_numbers_are_stored_as_those_of_python() -> None:
    given = {"seed": 3, "steps": 2, "per_task": 4, "fold": 1, "batch_size": 8}
    numbers = {name: np.int64(value) for name, value in given.items()}
    rates = {"learning_rate": np.float64(0.5), "eval_at": np.arange(2)}
    config = pocket(dataset="suite", **numbers, **rates)
    assert config == pocket(dataset="suite", **given, learning_rate=0.5, eval_at=(0, 1))
    assert [type(x) for x in (config.seed, config.limit, config.per_task, config.fold)] == [
        int, int, tuple, int,
    ]  # fmt: skip
    assert '"seed": 3' in json.dumps(config.to_json())
    assert Method("random", limit=np.int64(3)).limit == 3


@pytest.mark.parametrize(
    ("name", "good"),
    [
        *((name, True) for name in ("niv2", "no-robots", "here.jsonl.gz", "folder", "owner/name")),
        *((name, True) for name in ("flan-mini:here.jsonl.gz", "owner/name:some_configuration")),
        *((name, False) for name in ("niv3", "gone.csv.zst", "here.tsv", "flan-mini:gone.jsonl")),
        *((name, False) for name in ("pocket:here.jsonl.gz", "owner/gone.parquet", "", 5000 * "a")),
    ],
)
def test_what_a_dataset_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, good: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.jsonl.gz").touch()
    (tmp_path / "here.tsv").touch()
    (tmp_path / "folder").mkdir()
    if good:
        assert pocket(dataset=name).dataset == name
        return
    with pytest.raises(
        ParameterError, match=f"dataset='{name[:99]}.* cannot be used; expected one of"
    ):
        pocket(dataset=name)


@pytest.mark.parametrize(
    ("dataset", "fold", "words"),
    [
        ("suite", 4, None),
        ("suite", "validation", None),
        ("pocket", 0, None),
        ("p3:{file}", 4, None),
        ("suite", 5, "fold=5 cannot be used; expected one of: 0, 1, 2, 3, 4, validation"),
        ("suite", "0", "fold='0' .* expected one of: 0, 1"),
        ("suite", True, "fold=True .* expected one of: 0, 1"),
        ("suite", 1.0, "fold=1.0 "),
        ("p3", "validation", "fold='validation' .* expected one of: 0, 1, 2, 3, 4"),
        ("{file}", 0, "fold=0 .* has no folds, only suite, pocket, p3 have. Name .* in held_out"),
    ],
)
def test_which_folds_a_dataset_has(
    tmp_path: Path, dataset: str, fold: object, words: str | None
) -> None:
    (tmp_path / "p3.jsonl").touch()
    given = {"dataset": dataset.format(file=tmp_path / "p3.jsonl"), "fold": fold}
    if words is None:
        assert pocket(**given).fold == fold
        return
    with pytest.raises(ParameterError, match=words):
        pocket(**given)


def test_local_files_get_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.jsonl").touch()
    config = pocket(test_dataset="mine.jsonl").with_absolute_paths()
    assert config.test_dataset == str((tmp_path / "mine.jsonl").resolve())
    assert config.dataset == "pocket"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": -3}, "steps=-3 .* at least 1"),
        ({"steps": None}, "steps=None .* at least 1"),
        ({"steps": "3"}, "steps='3' .* at least 1"),
        ({"steps": 2, "limit": 5}, "steps=2 and limit=5 .* give one of the two"),
        ({"model": "lama"}, "model='lama' .* llama, gemma, qwen, smollm2.*mean"),
        ({"model": 5000 * "a"}, "model='aaa"),
        ({"colour": 3}, r"colour=3 cannot be used: there is no such setting\."),
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
        ({"limit": 0}, r"limit=0 cannot be used; expected a number of at least 1\."),
        ({"pool": "x"}, r"pool='x' cannot be used; expected a whole number\."),
        ({"learning_rate": float("nan")}, "learning_rate=nan .* a finite number"),
        ({"learning_rate": 0.0}, "learning_rate=0.0 .* a number above 0"),
        ({"seed": True}, "seed=True"),
        ({"precision": "fp16"}, "precision='fp16' .* auto, bf16, fp32"),
        ({"micro_tokens": 100}, "micro_tokens=100 is less than max_tokens=256"),
        ({"clip_norm": "x"}, "clip_norm='x' .* expected a number"),
        ({"gradient_checkpointing": 1}, "gradient_checkpointing=1 .* True or False"),
        ({"generate_at": 3}, r"generate_at=3 .* a list of steps, such as \[0, 10\]"),
        ({"reward_model": 3}, "reward_model=3 .* None, a hub id .* folder"),
        ({"reward_model": "no/such/folder"}, "reward_model='no/such/folder' "),
        ({"reward_model": "a/b"}, r"reward_model='a/b' .* generate_at=\(\)\. Name steps"),
    ],
    ids=lambda value: None if isinstance(value, str) else ", ".join(value),
)
def test_a_wrong_setting_is_refused_when_made(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        pocket(**change)


def test_the_method_has_every_setting_of_the_arrangement() -> None:
    config = replace(pocket(order="nearest", weight=0.5), seed=2, pool=9)
    assert config.method == Method("nearest", limit=32, seed=2, weight=0.5, pool=9)
    with pytest.raises(ParameterError, match="order='nearset'"):
        replace(config, order="nearset")
