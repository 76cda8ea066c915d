from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

import tma
from tma import cli
from tma.errors import DataError
from tma.runs import published
from tma.runs import store as runs
from tma.runs.config import RunConfig
from tma.runs.execute import RunExecutor


@pytest.fixture
def config(config: RunConfig) -> RunConfig:
    return replace(config, limit=8, batch_size=4, seed=41, generate_at=(0,), max_new_tokens=3)


def test_a_run_travels_to_another_cache_and_gives_the_same_tables(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tma.run(config)
    losses, order, training = first.losses, first.order, first.training
    assert published.export([first.key[:8]], tmp_path / "runs") == [first.key]
    assert published.export([first.key], tmp_path / "runs") == []  # it is there
    monkeypatch.setenv("TMA_CACHE", str(tmp_path / "other"))
    data = shutil.copy(config.dataset, tmp_path / "elsewhere.jsonl")
    model = shutil.copytree(config.model, tmp_path / "model")
    assert published.import_runs(tmp_path / "runs") == ([first.key], [])
    assert published.import_runs(tmp_path / "runs") == ([], [first.key])
    monkeypatch.setattr(RunExecutor, "execute", None)  # nothing trains
    again = tma.run(replace(config, dataset=str(data), model=str(model)))
    assert again.folder.parents[1] == tmp_path / "other"
    assert again.losses.equals(losses)
    assert again.order == order
    assert again.training.equals(training)
    assert [entry.status for entry in runs.runs()] == ["finished"]
    assert published.export([first.key], tmp_path / "again") == [first.key]
    assert published.import_runs(tmp_path / "again") == ([], [first.key])


def test_what_is_published_is_looked_up_before_anything_is_trained(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tma.run(config)
    assert not first.published
    published.export([first.key], tmp_path / "runs")
    monkeypatch.setenv("TMA_PUBLISHED", str(tmp_path / "runs"))
    monkeypatch.setattr(runs, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(RunExecutor, "execute", None)  # nothing trains
    found = tma.run(config)
    assert found.published
    assert found.folder == tmp_path / "runs" / first.key
    assert found.losses.equals(first.losses)


def test_neither_paths_nor_answers_are_published(config: RunConfig, tmp_path: Path) -> None:
    first = tma.run(config)
    published.export([first.key], tmp_path / "runs")
    manifest = (tmp_path / "runs" / first.key / "manifest.json").read_text()
    for local in (config.model, config.dataset, str(Path.home())):
        assert local not in manifest
    assert json.loads(manifest)["config"]["dataset"] == Path(config.dataset).name
    answers = tma.Run(tmp_path / "runs" / first.key).answers
    assert list(answers) == ["step", "id", "task", "rouge1", "rougeL", "exact_match"]
    pd.testing.assert_frame_equal(answers, first.answers.drop(columns="answer"))


def test_tables_of_the_caller_travel_with_a_run(config: RunConfig, tmp_path: Path) -> None:
    first = tma.run(config)
    table = pd.DataFrame({"step": [1], "similarity": [0.5]})
    published.export([first.key], tmp_path / "runs", lambda _: {"similarity.parquet": table})
    place = tmp_path / "runs" / first.key
    assert pd.read_parquet(place / "similarity.parquet").equals(table)
    assert runs.is_complete(place)
    table.to_parquet(place / "similarity.parquet", compression=None)
    assert not runs.is_complete(place)


@pytest.mark.parametrize("name", ["losses.parquet", "order.json", "manifest.json"])
def test_a_folder_with_a_changed_file_is_refused_whole(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    made = [tma.run(replace(config, seed=seed)) for seed in (41, 42)]
    published.export([run.key for run in made], tmp_path / "runs")
    file = tmp_path / "runs" / made[1].key / name
    old = made[1].key.encode() if name == "manifest.json" else file.read_bytes()[20:24]
    file.write_bytes(file.read_bytes().replace(old, b"other", 1))
    monkeypatch.setenv("TMA_CACHE", str(tmp_path / "other"))
    with pytest.raises(DataError, match=r"is damaged: .* Export the run again"):
        published.import_runs(tmp_path / "runs")
    assert not list((tmp_path / "other").glob("runs/*/manifest.json"))


def test_runs_are_exported_and_imported_by_commands(
    config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = tma.run(config).key
    folder = str(tmp_path / "runs")
    assert cli.main(["runs", "import", str(tmp_path)]) == 2
    message = "holds no run; expected a folder that `tma runs export` wrote."
    assert capsys.readouterr().err == f"DataError: {tmp_path} {message}\n"
    assert cli.main(["runs", "export", "nosuch", folder]) == 2
    assert "key='nosuch' is the beginning of 0 finished runs' names" in capsys.readouterr().err
    assert cli.main(["runs", "export", key, folder]) == 0
    assert re.match(r"1 run written", capsys.readouterr().out)
    assert (tmp_path / "runs" / key / "distances.parquet").is_file()
    assert cli.main(["runs", "import", folder]) == 0
    assert re.match(r"0 runs taken, 1 already there", capsys.readouterr().out)


def test_a_hub_id_is_no_path() -> None:
    given = {"model": "owner/name", "dataset": "p3:/data/p3.parquet", "reward_model": None}
    found = runs.portable(given | {"test_dataset": "/home/someone/mine.jsonl"})
    assert found["model"] == "owner/name"
    assert (found["dataset"], found["test_dataset"]) == ("p3:p3.parquet", "mine.jsonl")


def test_the_index_has_a_row_per_run(config: RunConfig, tmp_path: Path) -> None:
    made = [tma.run(replace(config, seed=seed)) for seed in (41, 42)]
    published.export([run.key for run in made], tmp_path / "runs")
    index = pd.read_parquet(tmp_path / "runs" / published.INDEX)
    assert index["key"].tolist() == sorted(run.key for run in made)
    row = index.set_index("key").loc[made[0].key]
    assert (row["order"], row["seed"], row["steps"], row["instances"]) == ("random", 41, 2, 8)
    assert json.loads(row["settings"])["batch_size"] == 4
