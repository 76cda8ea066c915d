from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

import tma
from tests.conftest import tiny_run
from tma import cli
from tma.errors import ParameterError, TmaError
from tma.runs.config import RunConfig
from tma.runs.parallel import make_runs
from tma.runs.store import stored
from tma.study import arms


def test_the_plan_is_the_protocols() -> None:
    made = Counter(arm.name for arm, _, _ in arms.plan())
    assert made == {
        "1": 35, "2": 21, "1b": 25, "3": 9, "4": 36, "5": 15, "6": 21, "6b": 15,
        "7a": 6, "7b": 6, "8a": 6, "8b": 6, "8c": 6,
    }  # fmt: skip
    first = [(label, config.seed) for _, label, config in arms.plan()][:8]
    assert first[0] == ("tma_nft", 0)
    assert [seed for _, seed in first] == [0] * 7 + [1]  # seed by seed


def test_a_seed_tests_the_fold_of_its_number() -> None:
    by_arm: dict[str, set[tuple[int, int | str | None]]] = {}
    for arm, _, config in arms.plan():
        by_arm.setdefault(arm.name, set()).add((config.seed, config.fold))
    assert by_arm["1"] == {(seed, seed) for seed in range(5)}
    assert by_arm["1b"] == {(seed, seed - 5) for seed in range(5, 10)}
    assert by_arm["6b"] == {(0, None), (1, None), (2, None)}


@pytest.mark.parametrize(
    ("changed", "seeds"),
    [
        ({}, range(5, 10)),
        ({"seeds": 7}, range(7, 10)),
        ({"seeds": 3}, range(0)),
        ({"scale": "pocket", "seeds": 5}, range(0)),
        ({"test_dataset": "pocket"}, range(0)),
    ],
)
def test_folds_are_repeated_where_seeds_test_different_ones(
    changed: dict[str, object], seeds: range
) -> None:
    given = {"scale": "study", "output_dir": "out"}
    study = tma.study_settings(given | changed)
    [repeat] = arms.chosen("1b")
    assert repeat.seeds_of(study) == seeds


def test_what_the_arms_set_is_what_the_protocol_says() -> None:
    runs = {(arm.name, label, config.seed): config for arm, label, config in arms.plan()}
    nft = runs["1", "tma_nft, shuffled", 0]
    assert (nft.order, nft.within, nft.exact_limit) == ("tma_nft", "shuffled", True)
    assert (nft.limit, nft.batch_size, nft.pool, nft.test_limit) == (1024, 16, 10_000, 240)
    assert nft.eval_at == (0, 1, 2, 4, 8, 16, 32, 64) and nft.eval_every == 16
    assert (nft.model, nft.learning_rate, nft.schedule) == ("gemma-3-270m", 1e-5, "cosine")
    assert runs["3", "tma_rt, constant rate", 2].schedule == "constant"
    assert runs["4", "random", 1].model == "smollm2-135m-instruct"
    sample = runs["2", "random, sample", 0]
    assert (sample.pool, sample.generate_at[:3]) == (1024, (0, 1, 2))
    assert runs["6", "tma_rounds[3:6]", 0].limit == 256
    assert runs["7a", "tma_nft, 50% twins", 0].twins == 0.5
    assert runs["8b", "tma_nft, twice the learning rate", 0].learning_rate == 2e-5
    assert (runs["5", "random, P3", 0].dataset, runs["5", "random, P3", 0].max_instance_tokens) == (
        "p3",
        128,
    )


def test_arms_are_chosen_by_name() -> None:
    assert [arm.name for arm in arms.chosen("3, 1")] == ["1", "3"]
    assert arms.chosen(None) == arms.ARMS
    with pytest.raises(ParameterError, match="arms='9'"):
        arms.chosen("1,9")


@pytest.fixture
def tiny_arm(
    cache: Path, tiny_model: Path, dataset_file: Path, monkeypatch: pytest.MonkeyPatch
) -> list[RunConfig]:
    assert cache.is_dir()
    configs = [
        tiny_run(tiny_model, dataset_file, order="random", steps=2, batch_size=4, seed=seed)
        for seed in (51, 52, 53)
    ]
    plan = [(arms.ARMS[0], "random", config) for config in configs]
    monkeypatch.setattr(arms, "plan", lambda *_: iter(plan))
    return configs


def test_missing_runs_are_made_listed_and_exported(
    tiny_arm: list[RunConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = tma.run(tiny_arm[0])
    assert cli.main(["study", "--arms", "1", "--list"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[-3:-1] == ["3", "1"]
    folder = str(tmp_path / "runs")
    assert cli.main(["study", "--arms", "1", "--jobs", "2", "--export", folder]) == 0
    assert capsys.readouterr().out.startswith("2 runs made")
    keys = {run.key for config in tiny_arm if (run := stored(config))}
    assert first.key in keys
    assert {path.parent.name for path in Path(folder).glob("*/manifest.json")} == keys
    assert len(keys) == 3
    assert cli.main(["study", "--arms", "1"]) == 0
    assert capsys.readouterr().out.startswith("0 runs made")


def test_an_arm_whose_data_cannot_be_had_is_not_in_the_way_of_others(
    tiny_arm: list[RunConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text("{")
    without = replace(tiny_arm[0], dataset=str(broken), seed=56)
    own = replace(tiny_arm[0], seed=57)
    plan = [(arms.ARMS[5], "random", without), (arms.ARMS[0], "random", own)]
    monkeypatch.setattr(arms, "plan", lambda *_: iter(plan))
    listed = arms.listing("study", [arms.ARMS[5], arms.ARMS[0]], "p3")
    assert listed["done"].to_list() == [0, 0]
    assert arms.make("study", arms.ARMS, "p3", 1) == 1
    assert stored(own) is not None
    assert f"Arm {arms.ARMS[5].name} cannot be made here. " in caplog.text


def test_a_run_that_fails_stops_the_others_with_one_message(
    tiny_arm: list[RunConfig], tmp_path: Path
) -> None:
    wrong = replace(tiny_arm[0], seed=54, max_tokens=8, micro_tokens=8, model=str(tmp_path))
    with pytest.raises(TmaError, match=r"order='random', seed=54 failed: "):
        list(make_runs([wrong, replace(tiny_arm[0], seed=55)], 1))
    assert stored(replace(tiny_arm[0], seed=55)) is None


SCRIPT = """
import sys, json
from tma.runs.config import RunConfig
from tma.runs.parallel import make_runs
configs = [RunConfig.from_json(one) for one in json.loads(sys.argv[1])]
from tma.runs.store import stored
for config in make_runs([c for c in configs if stored(c) is None], 2):
    print(config.seed, flush=True)
"""


@pytest.mark.parametrize(
    "how", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)]
)
def test_stopped_at_any_moment_it_goes_on_and_repeats_nothing(
    tiny_arm: list[RunConfig], how: signal.Signals
) -> None:
    import json

    first = 60 if how is signal.SIGTERM else 70
    configs = [replace(tiny_arm[0], seed=first + k) for k in range(4)]
    given = [sys.executable, "-c", SCRIPT, json.dumps([c.to_json() for c in configs])]
    done = list[str]()
    with subprocess.Popen(given, stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        done += [started.stdout.readline()]
        os.kill(started.pid, how)
    stamps = {c.seed: run.folder for c in configs if (run := stored(c)) is not None}
    assert int(done[0]) in stamps
    times = {seed: (folder / "manifest.json").stat().st_mtime_ns for seed, folder in stamps.items()}
    time.sleep(2)  # what a killed parent left ends by itself
    subprocess.run(given, check=True, capture_output=True)
    assert all(stored(config) is not None for config in configs)
    for seed, stamp in times.items():
        assert (stamps[seed] / "manifest.json").stat().st_mtime_ns == stamp


@pytest.mark.slow
def test_killed_at_five_random_moments_it_repeats_no_finished_run(
    tiny_arm: list[RunConfig],
) -> None:
    import json

    configs = [replace(tiny_arm[0], seed=80 + k) for k in range(12)]
    given = [sys.executable, "-c", SCRIPT, json.dumps([c.to_json() for c in configs])]
    moments, stamps = random.Random(0), dict[Path, int]()
    for _ in range(5):
        with subprocess.Popen(given, stdout=subprocess.PIPE, text=True) as started:
            assert started.stdout is not None
            started.stdout.readline()  # a run is finished, whatever the machine's speed
            time.sleep(moments.uniform(0, 1))
            started.send_signal(signal.SIGKILL)
        for config in configs:
            if run := stored(config):
                stamps.setdefault(run.folder, (run.folder / "manifest.json").stat().st_mtime_ns)
    time.sleep(2)
    subprocess.run(given, check=True, capture_output=True)
    assert all(stored(config) is not None for config in configs)
    assert stamps
    for folder, stamp in stamps.items():
        assert (folder / "manifest.json").stat().st_mtime_ns == stamp
