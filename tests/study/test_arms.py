from __future__ import annotations

import json
import math
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
from tests.stored_runs import stored as stored_run
from tests.study.test_settings import parameters, planned
from tma import cli
from tma.errors import DataError, ParameterError
from tma.runs.config import RunConfig
from tma.runs.store import Run, stored
from tma.study import arms
from tma.study.effects import Spread


def test_the_plan_is_the_protocols() -> None:
    made = Counter(arm.name for arm, _, _ in arms.plan())
    assert made == {
        "1": 35, "2": 21, "1b": 25, "3": 9, "4": 36, "5": 15, "6": 21, "6b": 15,
        "7a": 6, "7b": 6, "8a": 6, "8b": 6, "8c": 6,
    }  # fmt: skip
    first = [(label, config.seed) for _, label, config in arms.plan()][:8]
    assert first[0] == ("tma_nft", 0)
    assert [seed for _, seed in first] == [0] * 7 + [1]  # seed by seed
    # A seed tests the fold of its number.
    by_arm: dict[str, set[tuple[int, int | str | None]]] = {}
    for arm, _, config in arms.plan():
        by_arm.setdefault(arm.name, set()).add((config.seed, config.fold))
    assert by_arm["1"] == {(seed, seed) for seed in range(5)}
    assert by_arm["1b"] == {(seed, seed - 5) for seed in range(5, 10)}
    assert by_arm["6b"] == {(0, None), (1, None), (2, None)}


def test_folds_are_repeated_where_seeds_test_different_ones() -> None:
    [repeat] = arms.chosen("1b")
    assert repeat.seeds_of(planned(seeds=7)) == range(7, 10)
    for study in (planned(seeds=3), parameters(seeds=5), planned(test_dataset="pocket")):
        assert repeat.seeds_of(study) == range(0)


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
    p3 = runs["5", "random, P3", 0]
    assert (p3.dataset, p3.max_instance_tokens) == ("p3", 128)


def test_arms_are_chosen_by_name() -> None:
    assert [arm.name for arm in arms.chosen("3, 1")] == ["1", "3"]
    assert arms.chosen(None) == arms.ARMS
    with pytest.raises(ParameterError, match="arms='9'"):
        arms.chosen("1,9")


def finished(monkeypatch: pytest.MonkeyPatch, made_by: set[str]) -> None:
    """Let the runs of some arms be finished, and no others."""
    made = [config for arm, _, config in arms.plan() if arm.name in made_by]
    monkeypatch.setattr(arms, "stored", lambda config: Run(Path()) if config in made else None)


def test_complete_arms_are_read_and_others_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    finished(monkeypatch, {"1"})
    found = arms.read(planned(), "1,2")
    assert {label: len(runs) for label, runs in found.items()} == dict.fromkeys(arms.MAIN, 5)
    assert caplog.messages == ["arm 2: 21 runs not made yet; `tma study --arms 2` makes them"]
    with pytest.raises(DataError, match=r"runs of random, sample have not .* for model='gemma'\. "):
        arms.read(planned(), "1,2", needed=["tma_rt", "random, sample"])
    assert list(arms.in_order(planned(), {})) == list(arms.MAIN)
    assert arms.in_order(parameters(), {"random": []}) == {"random": []}


def test_another_model_is_made_by_its_own_arm(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    finished(monkeypatch, set())
    llama = planned(model="llama", seeds=3)
    with pytest.raises(DataError, match=r"random have .* model='llama'"):
        arms.read(llama, "1", needed=["random"])
    assert caplog.messages == ["arm 4: 21 runs not made yet; `tma study --arms 4` makes them"]
    assert arms.read(planned(model="llama"), "1,2") == {}  # no arm has five seeds of it
    finished(monkeypatch, {"4"})
    samples = [f"{order}, sample" for order in arms.SAMPLED]
    assert list(arms.read(llama, "1,1b,2,6")) == [*arms.MAIN, *samples]
    assert list(arms.sample(llama, arms.SAMPLED)) == list(arms.SAMPLED)


def ending(folder: Path, values: dict[str, float], seeds: int = 1) -> dict[str, list[Run]]:
    """Runs by label whose loss ends by so much higher, each later seed by 0.2 times that more."""

    def run(label: str, value: float, seed: int) -> Run:
        course = [4, 2, 1 + value * (1 + 0.2 * seed)]
        losses = {(task, f"{task}{k}"): course for task in "ab" for k in (1, 2)}
        return stored_run(folder / f"{label} {seed}", "tma_rt", losses, seed)

    return {
        label: [run(label, value, seed) for seed in range(seeds)] for label, value in values.items()
    }


def test_the_effect_of_twins_is_a_difference_of_differences(tmp_path: Path) -> None:
    values = {"tma_nft": -0.4, "tma_nft, 50% twins": -0.8, "tma_nft, 100% twins": -1.6}
    rest = {"tma_rt": 0.0, "tma_rt, 50% twins": 0.0, "tma_rt, 100% twins": 0.0}
    runs = ending(tmp_path, values | rest)
    runs["tma_nft"] += [stored_run(tmp_path / "more", "tma_rt", {("c", "c1"): [1, 1, 1]}, 1)]
    runs["tma_rt"] += [stored_run(tmp_path / "base", "tma_rt", {("c", "c1"): [9, 9, 9]}, 1)]
    found = arms.twins(runs, {"area": Spread(0.1, 5)})
    # A triangle over the last of two intervals: a quarter of the final difference.
    assert {name: effect.estimate for name, effect in found.items()} == pytest.approx({
        "NFT − RT, no twins": -0.1, "NFT − RT, half with twins": -0.2,
        "NFT − RT, all with twins": -0.4, arms.TWINS: -0.3,
    })  # fmt: skip
    # Twice the variance between seeds, with Student's quantile of five degrees of freedom.
    interval = found[arms.TWINS].tasks
    assert interval.high - interval.estimate == pytest.approx(2.57058 * math.sqrt(0.02), rel=1e-5)
    del runs["tma_rt, 50% twins"]
    assert arms.twins(runs, {}) == {}


def test_selection_is_set_against_order(tmp_path: Path) -> None:
    values = {"tma_max_rt": 1.0, "tma_min_rt": 0.2, "tma_nft, shuffled": 0.5}
    runs = ending(tmp_path, values | {"tma_fft, shuffled": 0.0})
    found = arms.selection_against_order(runs, {"final": Spread(0.1, 5)})
    # 0.8 less 0.5, whose sign does not matter.
    assert found["final"].estimate == pytest.approx(0.3)
    assert found["area"].estimate == pytest.approx(0.3 / 4)
    half = found["final"].tasks.high - found["final"].estimate
    assert half == pytest.approx(2.57058 * math.sqrt(0.02), rel=1e-5)
    assert arms.readings_of("x", {"final": {"x": found["final"]}, "area": {}}) == {
        "final": found["final"]
    }
    del runs["tma_min_rt"]
    assert arms.selection_against_order(runs, {}) == {}


def test_the_spread_of_seeds_is_the_largest_of_repeated_folds(tmp_path: Path) -> None:
    runs = ending(tmp_path, {"tma_nft": 1.0, "tma_fft": 2.0, "tma_rt": 0.0}, seeds=2)
    # FFT − RT ends at 2 and 2.4; along the way a quarter of it.
    sd = 0.4 / math.sqrt(2)
    assert arms.spreads(planned(), runs) == {
        "final": (pytest.approx(sd), 1), "area": (pytest.approx(sd / 4), 1)
    }  # fmt: skip
    assert arms.spreads(parameters(), runs) == {}  # all seeds test the same instances


def test_the_differences_that_tell_the_effect_of_order() -> None:
    both = arms.order_pairs(["with labels", "without labels"])
    assert both["NFT − RT, with labels"] == ("tma_nft", "tma_rt")
    assert both["FFT shuffled in rounds − RT, without labels"] == (
        "tma_fft, shuffled, without labels", "tma_rt, without labels"
    )  # fmt: skip
    assert len(both) == 8
    # Data that has no labels is split without them in the main arm.
    alone = arms.order_pairs(["without labels"])
    assert alone["NFT − RT, without labels"] == ("tma_nft", "tma_rt")


def test_the_effect_of_order_elsewhere_is_given_as_far_as_it_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"tma_nft, constant rate": -0.4, "tma_rt, constant rate": 0.0}
    runs = ending(tmp_path, values | {"tma_fft, constant rate": 0.8})
    monkeypatch.setattr(arms, "_finished", lambda _, asked: runs if "3" in asked else {})
    found = arms.robustness(planned(), {"area": Spread(0.1, 5)})
    assert {name: effect.estimate for name, effect in found.items()} == pytest.approx(
        {"NFT − RT, constant rate": -0.1, "FFT − RT, constant rate": 0.2}
    )
    assert arms.robustness(parameters(), {}) == {}


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
    (tmp_path / "broken.jsonl").write_text("{")
    without = replace(tiny_arm[0], dataset=str(tmp_path / "broken.jsonl"), seed=56)
    own = replace(tiny_arm[0], seed=57)
    plan = [(arms.ARMS[5], "random", without), (arms.ARMS[0], "random", own)]
    monkeypatch.setattr(arms, "plan", lambda *_: iter(plan))
    listed = arms.listing("study", [arms.ARMS[5], arms.ARMS[0]], "p3")
    assert listed["done"].to_list() == [0, 0]
    assert arms.make("study", arms.ARMS, "p3", 1) == 1
    assert stored(own) is not None
    assert f"Arm {arms.ARMS[5].name} cannot be made here. " in caplog.text


def test_nothing_is_embedded_only_to_list(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(arms, "embedded_pool", None)
    monkeypatch.setattr(arms, "stored", lambda _: None)
    listed = arms.listing("pocket", arms.chosen("6"), "p3")
    assert listed[["seeds", "runs", "done"]].to_numpy().tolist() == [[3, 9, 0]]
    assert "Blocks of rounds are not listed" in caplog.text


SCRIPT = """
import sys, json
from tma.runs.config import RunConfig
from tma.runs.parallel import make_runs
configs = [RunConfig.from_json(one) for one in json.loads(sys.argv[1])]
from tma.runs.store import Run, stored
for config in make_runs([c for c in configs if stored(c) is None], 2):
    print(config.seed, flush=True)
"""


@pytest.mark.slow
def test_stopped_at_random_moments_it_goes_on_and_repeats_no_finished_run(
    tiny_arm: list[RunConfig],
) -> None:
    configs = [replace(tiny_arm[0], seed=80 + k) for k in range(14)]
    given = [sys.executable, "-c", SCRIPT, json.dumps([c.to_json() for c in configs])]
    moments, stamps = random.Random(0), dict[Path, int]()
    for how in (signal.SIGTERM, *[signal.SIGKILL] * 5):
        with subprocess.Popen(given, stdout=subprocess.PIPE, text=True) as started:
            assert started.stdout is not None
            made = started.stdout.readline()  # a run is finished, whatever the machine's speed
            time.sleep(moments.uniform(0, 1))
            started.send_signal(how)
        for config in configs:
            if run := stored(config):
                stamps.setdefault(run.folder, (run.folder / "manifest.json").stat().st_mtime_ns)
        assert stamps and (not made or stored(replace(tiny_arm[0], seed=int(made))))
    time.sleep(2)  # what a killed parent left ends by itself
    subprocess.run(given, check=True, capture_output=True)
    assert all(stored(config) is not None for config in configs)
    for folder, stamp in stamps.items():
        assert (folder / "manifest.json").stat().st_mtime_ns == stamp
