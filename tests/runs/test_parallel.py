"""Several runs at a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pandas as pd
import psutil
import pytest

import tma
from tma.errors import ParameterError, TrainingError
from tma.runs import parallel
from tma.runs import store as runs
from tma.runs.config import RunConfig


@pytest.fixture
def config(config: RunConfig) -> RunConfig:
    return replace(config, limit=6, eval_every=2)


@pytest.fixture(autouse=True)
def apart(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of the test are kept by themselves."""
    monkeypatch.setenv("TMA_CACHE", str(tmp_path))
    for shared in ("assets", "models"):
        (tmp_path / shared).symlink_to(cache / shared)


def test_runs_of_two_processes_are_those_of_one(
    config: RunConfig,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    configs = {
        "random": [replace(config, seed=seed) for seed in (0, 1)],
        "again": [replace(config, seed=1)],
        "nearest": [replace(config, order="nearest")],
    }
    made = tma.run_all(configs, processes=2)
    seeds = {name: [run.config.seed for run in of] for name, of in made.items()}
    assert seeds == {"random": [0, 1], "again": [1], "nearest": [0]}
    assert made["again"][0].folder == made["random"][1].folder
    shown = capfd.readouterr().err
    assert "3/3" in shown and "step/s" not in shown
    monkeypatch.setenv("TMA_CACHE", str(cache))  # as yet without them
    for one in (*made["random"], *made["nearest"]):
        again = tma.run(one.config)
        assert again.folder != one.folder
        assert again.order == one.order
        pd.testing.assert_frame_equal(again.losses, one.losses, rtol=1e-5)


@pytest.mark.parametrize(
    ("threads", "expected"), [(1, [{3}, {5}, {6}]), (2, [{3, 5}, {6, 7}, {3, 5}])]
)
def test_each_run_has_cores_of_its_own_while_there_are_enough(
    config: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    threads: int,
    expected: list[set[int]],
) -> None:
    def note(config: RunConfig, cores: list[int], _parent: int) -> None:
        (tmp_path / str(config.seed)).write_text(json.dumps(cores))

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {7, 3, 5, 6})
    monkeypatch.setattr(parallel, "_make", note)
    list(parallel.make_runs([replace(config, seed=seed) for seed in range(3)], 3, threads))
    assert [{*json.loads((tmp_path / str(seed)).read_text())} for seed in range(3)] == expected


def test_runs_with_named_columns_are_made_once_each(config: RunConfig, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in Path(config.dataset).read_text().splitlines()]
    path = tmp_path / "named.jsonl"
    named = [{"q": r["prompt"], "a": r["response"], "kind": r["task"]} for r in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in named))
    columns = {"prompt": "q", "response": "a", "task": "kind"}
    config = replace(config, dataset=str(path), columns=columns)
    again = replace(config, columns=dict(reversed(columns.items())))
    with pytest.raises(ParameterError, match="processes=0 "):
        tma.run_all({"one": [config]}, processes=0)
    made = tma.run_all({"one": [config], "two": [again, replace(config, seed=1)]}, processes=1)
    assert made["one"][0].folder == made["two"][0].folder != made["two"][1].folder


def test_the_first_error_stops_all_and_names_its_run_and_step(config: RunConfig) -> None:
    wrong = replace(config, seed=21, learning_rate=1e30)
    message = r"the run of order='random', seed=21 failed: step \d: .* is (nan|inf)"
    with pytest.raises(TrainingError, match=message):
        tma.run_all({"wrong": [wrong], "other": [replace(config, seed=22)]}, processes=2)


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (lambda *_: os.kill(os.getpid(), signal.SIGKILL), "was killed, perhaps for lack of memory"),
        (lambda *_: 1 / 0, "failed: ZeroDivisionError: division by zero"),
    ],
    ids=["killed", "bug"],
)
def test_a_process_that_ends_badly_names_its_run(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, end: Callable[..., object], message: str
) -> None:
    monkeypatch.setattr(parallel, "_make", end)
    with pytest.raises(TrainingError, match=f"the run of order='random', seed=0 {message}"):
        list(parallel.make_runs([config], 1))


Found = TypeVar("Found")

SCRIPT = """
import json, sys
import tma
from tma.runs.config import RunConfig
configs = [RunConfig.from_json(each) for each in json.load(open(sys.argv[1]))]
runs = tma.run_all({"all": configs}, processes=2)
print([run.config.seed for run in runs["all"]])
"""


def started(configs: Sequence[RunConfig], folder: Path) -> subprocess.Popen[str]:
    """Start a script that makes these runs."""
    (folder / "configs.json").write_text(json.dumps([c.to_json() for c in configs]))
    (folder / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(folder / "script.py"), str(folder / "configs.json")]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_script_is_not_run_again_in_each_process(config: RunConfig, tmp_path: Path) -> None:
    configs = [replace(config, seed=seed) for seed in (41, 42)]
    out, err = started(configs, tmp_path).communicate(timeout=300)
    assert out == "[41, 42]\n", err[-3000:]
    assert all(runs.stored(each) for each in configs)


def test_a_killed_study_leaves_no_process_and_keeps_what_was_finished(
    config: RunConfig, tmp_path: Path
) -> None:
    short = replace(config, seed=30)
    long = [replace(config, seed=seed, epochs=10_000, eval_every=10**6) for seed in (31, 32)]
    study = started((short, *long), tmp_path)
    finished = waited_for(lambda: runs.stored(short))
    children = waited_for(lambda: training(study.pid))
    study.send_signal(signal.SIGKILL)
    study.wait()
    assert waited_for(lambda: not any(child.is_running() for child in children))
    assert finished
    assert tma.run_all({"short": [short]}, processes=2) == {"short": [finished]}
    assert [runs.stored(each) for each in long] == [None, None]


def training(parent: int) -> list[psutil.Process]:
    """Return a process's children, once two of them hold the memory of a run."""
    children = psutil.Process(parent).children()
    large = [child for child in children if child.memory_info().rss > 300 * 2**20]
    return large if len(large) == 2 else []


def waited_for(what: Callable[[], Found], seconds: float = 300) -> Found:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = what()
        if found:
            return found
        time.sleep(0.2)
    return what()
