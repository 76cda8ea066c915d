from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import tma
from tests.conftest import stopped
from tma.runs import untrained
from tma.runs.config import RunConfig
from tma.train import loop as train
from tma.train.encode import Encoded

TEST = [Encoded("a", "t", (1, 5, 6, 2), 2)]


@pytest.fixture
def config(twelve_steps: RunConfig, own_cache: Path, cache: Path) -> RunConfig:
    own_cache.mkdir()
    for shared in ("assets", "models"):
        (own_cache / shared).symlink_to(cache / shared)
    return replace(twelve_steps, limit=6)


@pytest.fixture
def evaluations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many test instances each evaluation takes the loss of."""
    found, own = list[int](), train.response_losses

    def counted(model: Any, rows: Any, *given: Any, **named: Any) -> Any:
        found.append(len(rows))
        return own(model, rows, *given, **named)

    monkeypatch.setattr(train, "response_losses", counted)
    return found


def tables(run: tma.Run) -> tuple[pd.DataFrame, pd.DataFrame]:
    return run.losses, run.training


def test_runs_that_differ_in_what_they_train_on_share_the_first_losses(
    config: RunConfig, own_cache: Path, evaluations: list[int]
) -> None:
    tma.run(config)
    assert evaluations == [8, 8]  # before and after two steps
    shared = tma.run(replace(config, seed=1))
    assert evaluations == [8, 8, 8]
    shutil.rmtree(own_cache / "runs")
    shutil.rmtree(own_cache / "untrained")
    alone = tma.run(replace(config, seed=1))
    assert evaluations == [8, 8, 8, 8, 8]
    for one, other in zip(tables(shared), tables(alone), strict=True):
        pd.testing.assert_frame_equal(one, other, check_exact=True)


def test_a_resumed_run_keeps_nothing_for_others(config: RunConfig, own_cache: Path) -> None:
    # Its first session may have been on another machine.
    stopped(config)
    assert tma.run(config).losses["step"].tolist() == [0] * 8 + [2] * 8
    assert not (own_cache / "untrained").exists()


def test_answers_before_training_are_made_all_the_same(config: RunConfig) -> None:
    tma.run(config)
    answered = tma.run(replace(config, generate_at=(0,), max_new_tokens=3))
    assert answered.answers["step"].tolist() == [0] * 8


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", '{"losses": [], "sum": 1}', "changed"])
def test_a_file_that_is_not_as_written_is_made_again(
    config: RunConfig, own_cache: Path, evaluations: list[int], damage: str
) -> None:
    first = tma.run(config).losses
    [file] = (own_cache / "untrained").glob("*.json")
    whole = file.read_text()
    found = json.loads(whole)
    found["losses"][0]["loss_sum"] += 1
    file.write_text(json.dumps(found) if damage == "changed" else damage)
    second = tma.run(replace(config, seed=1)).losses
    assert evaluations[-2:] == [8, 8]
    assert second.query("step == 0").equals(first.query("step == 0"))
    assert json.loads(file.read_text()) == json.loads(whole)


@pytest.mark.parametrize(
    "change", [{"micro_tokens": 300}, {"precision": "bf16"}, {"attention": "eager"}]
)
def test_what_decides_a_loss_names_the_file(config: RunConfig, change: dict[str, Any]) -> None:
    usual = untrained.place(config, "weights", TEST)
    assert usual == untrained.place(replace(config, seed=3, order="tma_max"), "weights", TEST)
    assert untrained.place(replace(config, **change), "weights", TEST) != usual
    assert untrained.place(config, "others", TEST) != usual
    longer = [replace(TEST[0], tokens=(1, 5, 6, 7, 2))]
    assert untrained.place(config, "weights", longer) != usual


def test_weights_of_the_hub_are_known_by_their_commit(config: RunConfig) -> None:
    named = replace(config, model="owner/name")
    commits = {untrained.place(named, f"owner/name@{commit}", TEST) for commit in "aab"}
    assert len(commits) == 2
    assert untrained.read(None) == []


def test_a_disk_that_takes_nothing_costs_no_finished_run(
    config: RunConfig, own_cache: Path
) -> None:
    own_cache.joinpath("untrained").write_text("no folder")
    untrained.keep(own_cache / "untrained" / "x.json", [{"step": 0}])
