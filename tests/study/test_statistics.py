from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.stored_runs import FAR, NEAR, moved, stored
from tma.errors import DataError, ParameterError
from tma.runs.store import Run
from tma.study import statistics
from tma.study.statistics import Interval, by_instance, format_estimate, jackknife, table


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, list[Run]]:
    return {
        "tma_nft": [stored(tmp_path / "near", "tma_nft", NEAR)],
        "tma_fft": [stored(tmp_path / "far", "tma_fft", FAR)],
    }


def test_the_spread_is_over_the_seeds_of_one_order(tmp_path: Path) -> None:
    both = [stored(tmp_path / f"{s}", "tma_rt", losses, s) for s, losses in enumerate((NEAR, FAR))]
    found = statistics.mean_curves(both)
    assert found.to_numpy().tolist() == [[0, 4, 4, 4], [2, 3, 2.5, 3.5], [4, 1.75, 1.5, 2]]
    assert list(found) == ["step", "mean", "low", "high"]
    # Final losses 1.5 and 2, areas 2.625 and 3.25.
    assert statistics.seed_range(both) == (-0.25, 0.25)
    assert statistics.seed_range(both, "area") == (-0.3125, 0.3125)


def test_the_ends_of_seeds_stand_at_the_last_one(tmp_path: Path) -> None:
    short = stored(tmp_path / "short", "tma_rt", NEAR, 0, steps=(0, 2, 3))
    both = [short, stored(tmp_path / "long", "tma_rt", FAR, 1)]
    found = statistics.mean_curves(both)
    assert found[["step", "mean"]].to_numpy().tolist() == [[0, 4], [2, 3], [4, 1.75]]


def test_tasks_are_no_source_datasets(tmp_path: Path) -> None:
    run = stored(tmp_path / "run", "random", NEAR)
    assert statistics.instances([run])["source"].unique().tolist() == ["unknown"]
    assert statistics.clusters_of([run]).tolist() == ["a", "a", "b", "b"]
    table = run.losses.assign(source=lambda rows: rows["task"].map({"a": "s"}))
    table.to_parquet(run.folder / "losses.parquet")
    assert statistics.instances([Run(run.folder)])["source"].tolist() == ["s", "s", "b", "b"]


def longer(folder: Path, seed: int = 0, by: float = 0.0) -> Run:
    """NEAR, and two steps further down by 1 in task a and by 0.5 in task b."""
    more = {key: [*value, value[-1] - (1 if key[0] == "a" else 0.5)] for key, value in NEAR.items()}
    return stored(
        folder, "tma_rounds[4:8]", moved(more, by), seed, steps=(0, 2, 4, 6), instances=80
    )


def test_seeds_of_different_length_are_each_read_at_their_own_end(tmp_path: Path) -> None:
    both = [stored(tmp_path / "short", "tma_rounds[4:8]", NEAR), longer(tmp_path / "long", 1, by=1)]
    # Finals 1.5 and 0.75 + 1.
    assert statistics.seed_range(both) == (-0.125, 0.125)
    row = statistics.summary({"tma_rounds[4:8]": both}).iloc[0]
    # Areas 2.625 up to step 4 and (5 + 3.5 + 3.5 + 2.5 + 2.5 + 1.75) / 6 up to step 6.
    assert (row["instances"], row["steps"], row["area"]) == (72, 5, 2.875)
    # From 4 and 5.
    assert (row["first"], row["final"]) == (4.5, 1.625)
    assert row["fall_percent"] == pytest.approx(100 * 2.875 / 4.5)


def test_the_summary_of_orders_of_different_length(
    tmp_path: Path, runs: dict[str, list[Run]]
) -> None:
    table = statistics.summary({**runs, "tma_rounds[4:8]": [longer(tmp_path / "more")]})
    assert table[["first", "fall_percent", "seeds"]].iloc[0].tolist() == [4, 62.5, 1]
    assert table["steps"].tolist() == [4, 4, 6]
    assert table["instances"].tolist() == [64, 64, 80]
    assert table["final"].tolist() == [1.5, 2, 0.75]
    # Trapezoids (4 + 2.5)/2 · 2 and (2.5 + 1.5)/2 · 2 over 4 steps; the longer one up to its own
    # end: (4 + 2.5 + 2.5 + 1.5 + 1.5 + 0.75) / 6.
    assert table["area"].tolist() == [2.625, 3.25, 2.125]
    # Whole numbers are shown as such.
    assert (table["steps"].dtype, table["instances"].dtype) == ("int64", "int64")
    # Of runs that end together, only the steps that all evaluated count: (4 + 1.5)/2 for both.
    ends = {key: [value[0], value[-1]] for key, value in NEAR.items()}
    coarse = stored(tmp_path / "ends", "tma_min", ends, steps=(0, 4))
    both = statistics.summary({"tma_nft": runs["tma_nft"], "tma_min": [coarse]})
    assert both["area"].tolist() == [2.75, 2.75]


def test_the_loss_of_a_task_is_the_mean_over_its_instances(tmp_path: Path) -> None:
    losses = {("a", "1"): [4, 2], ("a", "2"): [2, 1], (None, "3"): [5, 4]}
    run = stored(tmp_path / "run", "random", losses, 7, steps=(0, 3))
    found = statistics.task_curves({"random": [run]})
    assert found.to_numpy().tolist() == [
        ["random", 7, 0, "3", 5],
        ["random", 7, 0, "a", 3],
        ["random", 7, 3, "3", 4],
        ["random", 7, 3, "a", 1.5],
    ]
    assert list(found) == ["order", "seed", "step", "task", "loss"]
    assert found["step"].dtype == "int64"
    assert by_instance(run).index.tolist() == [("3", "3"), ("a", "1"), ("a", "2")]


def test_the_share_of_the_fall_after_a_number_of_steps(runs: dict[str, list[Run]]) -> None:
    # After one of 4 steps: 0.75 of 2.5; without task b 1 of 3, without task a 0.5 of 2.
    found = statistics.early_share(runs["tma_nft"], step=1)
    # The jackknife: half of (1/3 - 1/4)² / 2, and Student's quantile with one degree of freedom.
    half = 12.7062 * (1 / 3 - 1 / 4) / 2
    assert (found.estimate, found.low, found.high) == pytest.approx(
        (0.3, 0.3 - half, 0.3 + half), rel=1e-4
    )
    assert (found.n, found.seeds) == (4, 1)
    assert found.minus(0.25).estimate == pytest.approx(0.05)
    assert statistics.early_share(runs["tma_nft"], step=4).estimate == 1
    for step in (0, 5):
        with pytest.raises(ParameterError, match=rf"step={step} .*a number in \(0, 4\]"):
            statistics.early_share(runs["tma_nft"], step=step)


def test_a_loss_that_does_not_fall_has_no_share(tmp_path: Path) -> None:
    flat = stored(tmp_path / "flat", "tma_rt", {key: [4, 3, 4] for key in NEAR})
    found = statistics.early_share([flat], step=1)
    assert math.isnan(found.estimate)
    assert (found.low, found.high) == (-math.inf, math.inf)
    assert not found.clear


def test_seeds_may_test_other_tasks(tmp_path: Path) -> None:
    # 4 → 2 → 1 on one fold, 4 → 4 → 2 on another of as many instances: 4 → 3 → 1.5 in all.
    one = stored(tmp_path / "one", "random", {("a", "1"): [4, 2, 1], ("b", "2"): [4, 2, 1]}, 0)
    two = stored(tmp_path / "two", "random", {("c", "3"): [4, 4, 2], ("d", "4"): [4, 4, 2]}, 1)
    assert statistics.mean_losses([one, two]).mean().tolist() == [4, 3, 1.5]
    assert statistics.early_share([one, two], step=2).estimate == pytest.approx(1 / 2.5)
    assert statistics.improved([one, two]).tolist() == [0.5, 1]


def test_an_interval_among_several_is_wider() -> None:
    found = Interval(1.0, 0.5, 2.0, 18, 3, freedom=17)
    # Student's quantiles with 17 degrees of freedom at 1 - 0.0125 and at 0.975.
    wide = found.among(2)
    ratio = 2.45805 / 2.10982
    assert (wide.low, wide.high) == pytest.approx((1 - 0.5 * ratio, 1 + ratio), abs=1e-4)
    assert (found.within(0.6, 1.5).low, found.within(0.6, 1.5).high) == (0.6, 1.5)
    row = {"estimate": 1, "low": 0.5, "high": 2, "n": 18, "seeds": 3}
    assert table({"a": found}).loc["a"].to_dict() == row
    assert Interval(math.nan, -math.inf, math.inf, 18, 3).within(0, 1).high == math.inf


def test_a_value_that_is_missing_is_named(tmp_path: Path) -> None:
    run = stored(tmp_path / "run", "random", {("a", "1"): [4, 2], ("a", "2"): [2, 1]}, steps=(0, 3))
    with pytest.raises(DataError, match="run run has loss=nan at step 3 of test instance '2'"):
        by_instance(run, run.losses.iloc[:3])


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = {"a": 1.0, "b": 2.0, "c": 6.0}

    def mean(left: str | None) -> float:
        return float(np.mean([value for name, value in values.items() if name != left]))

    found = jackknife(pd.Series(values.keys(), name="source"), mean, 3, 1)
    # The standard deviation √7 over √3, times Student's quantile with two degrees of freedom.
    half = 4.30265 * math.sqrt(7 / 3)
    assert (found.low, found.high) == pytest.approx((3 - half, 3 + half), rel=1e-5)
    assert found.over == "source"
    alone = jackknife(pd.Series(["a"], name="task"), mean, 1, 1)
    assert (alone.low, alone.high, alone.over) == (-math.inf, math.inf, "task")


def test_an_interval_is_written_with_signs_and_as_many_decimals_as_it_bears() -> None:
    assert format_estimate(-0.0125, -0.5, 12.34) == "−0.013 (−0.500 to +12.3)"
    assert format_estimate(10, None, None) == "+10.0"
    assert format_estimate(0.25, None, 0.5) == "+0.250"


def answered(tmp_path: Path) -> list[Run]:
    rouge = {key: [0, 0.5, 0.25] for key in NEAR}
    match = {key: [0, 0, 0] for key in NEAR}
    values = {"rouge1": rouge, "exact_match": match}
    return [stored(tmp_path / f"{s}", "tma_rt", NEAR, s, scores=values) for s in (0, 1)]


def test_metrics_stand_beside_the_loss_of_the_same_steps(tmp_path: Path) -> None:
    table = statistics.metric_curves(answered(tmp_path))
    assert list(dict.fromkeys(table["metric"])) == ["loss", "rouge1", "exact_match"]
    of_seed = table[(table["seed"] == 1) & (table["metric"] == "rouge1")]
    assert of_seed[["step", "value"]].to_numpy().tolist() == [[0, 0], [2, 0.5], [4, 0.25]]
    assert table[table["metric"] == "loss"]["value"].tolist() == [4, 2.5, 1.5] * 2


def test_without_answers_there_is_the_loss_alone(tmp_path: Path) -> None:
    run = stored(tmp_path / "run", "random", NEAR)
    assert statistics.metric_curves([run])["metric"].tolist() == ["loss"] * 3
    assert statistics.roughness([run], "loss") == {}


@pytest.mark.parametrize(
    ("curve", "rough"),
    [
        ([0, 1, 2, 3], 0),
        ([0, 2, 3, 1], 0),  # a hump: one turn
        ([3, 2, 1], 0),  # it only gets worse
        ([1, 1, 1], 0),
        ([0, 2, 1, 3], 1 / 5),  # one back of five
        ([0, 3, 1, 2], 1 / 6),  # after the turn one forth again
        ([0, 1, 0, 1, 0], 2 / 4 * 0.5),
    ],
)
def test_roughness_is_what_no_single_turn_makes(curve: list[float], rough: float) -> None:
    assert statistics.one_turn_roughness(np.array(curve, dtype=float)) == pytest.approx(rough)


def test_metrics_are_compared_at_the_same_instances_and_steps(tmp_path: Path) -> None:
    rouge = {("a", "a1"): [0.0, 2, 1, 3], ("a", "a2"): [0.0, 2, 1, 3], ("b", "b1"): [0.0, 2, 3, 3]}
    losses = {key: [4.0, 3, 2, 1] for key in rouge}
    still = dict.fromkeys(rouge, [0.0] * 4)
    values = {"rouge1": rouge, "exact_match": still}
    runs = [
        stored(tmp_path / f"{s}", "random", losses, s, steps=(0, 1, 2, 4), scores=values)
        for s in (0, 1)
    ]
    found = statistics.roughness(runs)
    # The mean curve 0, 2, 5/3, 3 goes a third back of 11 thirds; task a alone one of five.
    rough = found["rouge1"]
    assert (rough.estimate, rough.n, rough.seeds) == (pytest.approx(1 / 11), 3, 2)
    assert (rough.low, rough.high) == (0, 1)  # two source datasets say next to nothing
    assert (found["loss"].estimate, found["exact_match"].estimate) == (0, 0)
    gaps = statistics.roughness(runs, "loss")
    assert list(gaps) == ["rouge1", "exact_match"]
    assert math.isnan(gaps["exact_match"].estimate)  # to stand still is no steadiness
    assert gaps["rouge1"].estimate == pytest.approx(1 / 11)


def test_overtraining_is_told_apart(tmp_path: Path) -> None:
    found = statistics.overtraining(answered(tmp_path))
    # ROUGE climbs to 0.5 and ends at 0.25; the loss ends at its best; exact match stays at 0.
    assert found.to_dict() == {"loss": 0, "rouge1": 0.5, "exact_match": 0}
