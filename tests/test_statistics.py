from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.stored_runs import FAR, NEAR, moved, stored
from tma import statistics
from tma.bootstrap import added, by_instance, drawn_apart, resample, seed_weights
from tma.errors import ParameterError
from tma.intervals import Interval, bounds, measures_table, table
from tma.runs import Run

TWO = 12.7062 / 1.95996 * math.sqrt(2)
"""How much wider an interval over two tasks is than its resamples: Student's quantile with one
degree of freedom over the normal one, and half of the variance."""


def ends(estimate: float, low: float, high: float) -> object:
    """An interval over two tasks whose resamples end there."""
    wide = (estimate + TWO * (low - estimate), estimate + TWO * (high - estimate))
    return pytest.approx((estimate, *wide), rel=1e-4)


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, list[Run]]:
    return {
        "tma_nft": [stored(tmp_path / "near", "tma_nft", NEAR)],
        "tma_fft": [stored(tmp_path / "far", "tma_fft", FAR)],
    }


def test_curves_are_means_over_test_instances(runs: dict[str, list[Run]]) -> None:
    table = statistics.curves(runs)
    assert table[table["order"] == "tma_nft"]["loss"].tolist() == [4, 2.5, 1.5]
    assert table[table["order"] == "tma_fft"]["loss"].tolist() == [4, 3.5, 2.0]


def test_the_spread_is_over_the_seeds_of_one_order(tmp_path: Path) -> None:
    both = [
        stored(tmp_path / "one", "tma_rt", NEAR),
        stored(tmp_path / "two", "tma_rt", FAR, seed=1),
    ]
    found = statistics.spread(statistics.curves({"tma_rt": both}), "tma_rt")
    assert found.to_numpy().tolist() == [[0, 4, 4, 4], [2, 3, 2.5, 3.5], [4, 1.75, 1.5, 2]]
    assert list(found) == ["step", "mean", "low", "high"]
    with pytest.raises(ParameterError, match="order='tma_nft'"):
        statistics.spread(statistics.curves({"tma_rt": both}), "tma_nft")


def test_how_far_seeds_lie_from_their_mean(tmp_path: Path) -> None:
    both = [
        stored(tmp_path / "one", "tma_rt", NEAR),
        stored(tmp_path / "two", "tma_rt", FAR, seed=1),
    ]
    # Final losses 1.5 and 2, areas 2.625 and 3.25.
    assert statistics.seed_range(both) == (-0.25, 0.25)
    assert statistics.seed_range(both, "area") == (-0.3125, 0.3125)
    with pytest.raises(ParameterError, match="measure='steps'"):
        statistics.seed_range(both, "steps")


def test_the_summary_has_fall_and_area(runs: dict[str, list[Run]]) -> None:
    row = statistics.summary(runs).loc["tma_nft"]
    assert (row["first"], row["final"], row["fall_percent"]) == (4, 1.5, 62.5)
    # Trapezoids (4 + 2.5)/2 · 2 and (2.5 + 1.5)/2 · 2 over 4 steps.
    assert row["area"] == 2.625
    assert (row["instances"], row["steps"], row["seeds"]) == (64, 4, 1)


def test_areas_are_compared_on_the_steps_that_all_evaluated(
    tmp_path: Path, runs: dict[str, list[Run]]
) -> None:
    ends = {key: [value[0], value[-1]] for key, value in NEAR.items()}
    coarse = stored(tmp_path / "ends", "tma_min", ends, steps=(0, 4))
    table = statistics.summary({"tma_nft": runs["tma_nft"], "tma_min": [coarse]})
    # (4 + 1.5)/2 for both, though the first was evaluated in between too.
    assert table["area"].tolist() == [2.75, 2.75]


def longer(folder: Path, seed: int = 0, by: float = 0.0) -> Run:
    """NEAR, and two steps further down by 1 in task a and by 0.5 in task b."""
    more = {key: [*value, value[-1] - (1 if key[0] == "a" else 0.5)] for key, value in NEAR.items()}
    return stored(
        folder, "tma_rounds[4:8]", moved(more, by), seed, steps=(0, 2, 4, 6), instances=80
    )


def test_a_run_of_another_length_is_read_at_its_own_end(
    tmp_path: Path, runs: dict[str, list[Run]]
) -> None:
    near, more = runs["tma_nft"], [longer(tmp_path / "more")]
    # It ends at 0 and 1.5, the other at 1 and 2; half of the resamples hold both tasks.
    found = statistics.contrast(more, near, "final")
    assert (found.estimate, found.low, found.high) == ends(-0.75, -1, -0.5)
    assert statistics.combination([(1, near), (-1, more)]).estimate == 0.75
    half, whole = [(0.5, near), (-0.5, runs["tma_fft"])], [(1, near), (-1, more)]
    assert statistics.outweighs(half, whole).estimate == -0.5
    # Along the way both are the same curve, as far as both go.
    assert statistics.contrast(more, near, "area").estimate == 0
    assert statistics.contrast(more, near, "steps_to_threshold").estimate == 0
    steps = [gap.step for gap in statistics.differences(more, near)]
    assert steps == [0, 2, 4]


def test_seeds_of_different_length_are_each_read_at_their_own_end(tmp_path: Path) -> None:
    both = [stored(tmp_path / "short", "tma_rounds[4:8]", NEAR), longer(tmp_path / "long", 1, by=1)]
    # Finals 1.5 and 0.75 + 1; areas of the first four steps 2.625 and 1 more.
    assert statistics.seed_range(both) == (-0.125, 0.125)
    assert statistics.seed_range(both, "area") == (-0.5, 0.5)
    row = statistics.summary({"tma_rounds[4:8]": both}).iloc[0]
    assert (row["instances"], row["steps"], row["area"]) == (72, 5, 3.125)
    # From 4 and 5.
    assert (row["first"], row["final"]) == (4.5, 1.625)
    assert row["fall_percent"] == pytest.approx(100 * 2.875 / 4.5)


def test_the_summary_of_orders_of_different_length(
    tmp_path: Path, runs: dict[str, list[Run]]
) -> None:
    table = statistics.summary({**runs, "tma_rounds[4:8]": [longer(tmp_path / "more")]})
    assert table["steps"].tolist() == [4, 4, 6]
    assert table["instances"].tolist() == [64, 64, 80]
    assert table["final"].tolist() == [1.5, 2, 0.75]
    assert table["area"].tolist() == [2.625, 3.25, 2.625]
    # Whole numbers are shown as such.
    assert (table["steps"].dtype, table["instances"].dtype) == ("int64", "int64")


def test_a_difference_that_is_the_same_everywhere_has_no_width(runs: dict[str, list[Run]]) -> None:
    found = statistics.differences(runs["tma_nft"], runs["tma_fft"])
    assert [(d.step, d.estimate, d.low, d.high) for d in found] == [
        (0, 0, 0, 0),
        (2, -1, -1, -1),
        (4, -0.5, -0.5, -0.5),
    ]
    assert [d.clear for d in found] == [False, True, True]
    assert {(d.n, d.seeds) for d in found} == {(4, 1)}


def test_the_interval_covers_the_choice_of_tasks(tmp_path: Path) -> None:
    # Task a gains 1, task b loses 1: half of the resamples hold both, a quarter each one alone.
    uneven = {key: [4, 2, value[2] + (1 if key[0] == "b" else -1)] for key, value in NEAR.items()}
    near = [stored(tmp_path / "near", "tma_nft", NEAR)]
    other = [stored(tmp_path / "other", "tma_rt", uneven)]
    last = statistics.differences(near, other)[-1]
    assert (last.estimate, last.low, last.high) == ends(0, -1, 1)
    assert not last.clear


@pytest.mark.parametrize("task", ["a", None])
def test_instances_are_drawn_where_there_is_one_task_or_none(
    tmp_path: Path, task: str | None
) -> None:
    # One instance gains 1, the other loses 1.
    near = [stored(tmp_path / "near", "tma_nft", {(task, "1"): [4, 2, 1], (task, "2"): [4, 2, 1]})]
    other = [stored(tmp_path / "far", "tma_rt", {(task, "1"): [4, 2, 2], (task, "2"): [4, 2, 0]})]
    last = statistics.differences(near, other)[-1]
    assert (last.estimate, last.low, last.high) == ends(0, -1, 1)
    assert last.n == 2


def test_runs_are_paired_by_seed(tmp_path: Path) -> None:
    # Each seed moves both orders by as much: the pairs agree, however far the seeds lie apart.
    near = [stored(tmp_path / f"n{s}", "nearest", moved(NEAR, s), s) for s in (0, 1, 2)]
    far = [stored(tmp_path / f"f{s}", "farthest", moved(FAR, s), s) for s in (2, 1)]
    last = statistics.differences(near, far)[-1]
    assert (last.estimate, last.low, last.high, last.seeds) == (-0.5, -0.5, -0.5, 2)


def test_the_interval_covers_the_choice_of_seeds(tmp_path: Path) -> None:
    # A run of the one order against two shufflings, 1 below it and 1 above it in every task. Half
    # of the resamples hold both; those with one alone lie √2 away, since two seeds show half of
    # the variance.
    near = [stored(tmp_path / "near", "tma_nft", NEAR)]
    random = [stored(tmp_path / f"r{s}", "tma_rt", moved(NEAR, 2 * s - 3), s) for s in (1, 2)]
    last = statistics.differences(near, random)[-1]
    assert (last.estimate, last.seeds) == (0, 2)
    assert (last.estimate, last.low, last.high) == ends(0, -math.sqrt(2), math.sqrt(2))
    back = statistics.differences(random, near)[-1]
    assert (back.estimate, back.seeds) == (0, 2)


def test_runs_that_do_not_belong_together_are_refused(
    tmp_path: Path, runs: dict[str, list[Run]]
) -> None:
    near = runs["tma_nft"]
    fewer = {key: value for key, value in NEAR.items() if key != ("b", "b2")}
    with pytest.raises(ParameterError, match=r"different test instances \(4 and 3"):
        statistics.differences(near, [stored(tmp_path / "fewer", "tma_rt", fewer)])
    with pytest.raises(ParameterError, match="no evaluated step in common"):
        other = stored(tmp_path / "steps", "tma_rt", NEAR, steps=(1, 3, 5))
        statistics.differences(near, [other])
    with pytest.raises(ParameterError, match=r"side 2 has runs of seeds \[0, 0\]"):
        statistics.differences(near, runs["tma_fft"] * 2)
    with pytest.raises(ParameterError, match=r"side 1 has runs of seeds \[\]"):
        statistics.differences([], near)
    one, two = ([stored(tmp_path / f"{s}", "random", NEAR, s) for s in p] for p in ((1, 2), (3, 4)))
    with pytest.raises(ParameterError, match=r"the sides have seeds \[1, 2\] and \[3, 4\]"):
        statistics.differences(one, two)


def test_differences_of_differences_come_from_the_same_resamples(tmp_path: Path) -> None:
    # Task a gains 1 by the one and 3 by the other, task b 0 and 2: the second gains 2 everywhere.
    def runs(name: str, a: float, b: float) -> list[Run]:
        finals = {"a": a, "b": b}
        losses = {key: [4, 2, 2 - finals[key[0]]] for key in NEAR}
        return [stored(tmp_path / f"{name}{s}", "random", moved(losses, s), s) for s in (0, 1, 2)]

    base, one, other = runs("base", 0, 0), runs("one", 1, 0), runs("other", 3, 2)
    gain, greater = [(1, base), (-1, one)], [(1, base), (-1, other)]
    first = statistics.combination(gain)
    assert (first.estimate, first.low, first.high) == ends(0.5, 0, 1)
    assert (first.n, first.seeds) == (4, 3)
    both = statistics.combination([*greater, (-1, base), (1, one)])
    assert (both.estimate, both.low, both.high) == pytest.approx((2, 2, 2), abs=1e-12)
    assert statistics.combination(gain) == statistics.contrast(base, one, "final")
    assert statistics.combination(gain, "area").estimate == 0.125
    found = statistics.outweighs(gain, greater)
    assert (found.estimate, found.low, found.high) == pytest.approx((-2, -2, -2), abs=1e-12)
    # The size counts, not the sign.
    loss = [(-1, base), (1, other)]
    assert statistics.outweighs(loss, gain).estimate == 2
    assert statistics.outweighs(loss, gain, "area").estimate == 0.5
    with pytest.raises(ParameterError, match="measure='steps_to_threshold'"):
        statistics.combination(gain, "steps_to_threshold")
    with pytest.raises(ParameterError, match=r"sides=\[\] "):
        statistics.combination([])


def test_a_run_without_chance_stands_beside_every_seed_of_several_sides(tmp_path: Path) -> None:
    near = [stored(tmp_path / "near", "nearest", NEAR)]
    far, other = (
        [stored(tmp_path / f"{name}{s}", "random", moved(FAR, s), s) for s in seeds]
        for name, seeds in (("f", (0, 1, 2)), ("o", (1, 2, 3)))
    )
    found = statistics.combination([(1, far), (-1, other), (1, near)])
    assert (found.estimate, found.low, found.high) == ends(1.5, 1, 2)
    assert found.seeds == 2


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


def test_two_orders_are_compared_by_one_number(runs: dict[str, list[Run]]) -> None:
    near, far = runs["tma_nft"], runs["tma_fft"]
    assert statistics.contrast(near, far, "final").estimate == -0.5
    # 2.625 and ((4 + 3.5)/2 · 2 + (3.5 + 2)/2 · 2)/4 = 3.25, in either task the same difference.
    area = statistics.contrast(near, far, "area")
    assert (area.estimate, area.low, area.high) == (-0.625, -0.625, -0.625)
    with pytest.raises(ParameterError, match="measure='speed'"):
        statistics.contrast(near, far, "speed")


def test_steps_to_the_loss_halfway_down(tmp_path: Path, runs: dict[str, list[Run]]) -> None:
    near, far = runs["tma_nft"], runs["tma_fft"]
    # Halfway of 4, 3.5, 2 is 3: reached at 1 1/3 of 4, 2.5, 1.5 and at 2 2/3.
    found = statistics.contrast(near, far, "steps_to_threshold")
    assert found.estimate == pytest.approx(-4 / 3)
    # Halfway of 4, 2.5, 1.5 is 2.75, at 1 2/3; a curve that stays at 4 counts as its last step.
    flat = stored(tmp_path / "flat", "tma_rt", {key: [4, 4, 4] for key in NEAR})
    late = statistics.contrast([flat], near, "steps_to_threshold")
    assert late.estimate == pytest.approx(4 - 5 / 3)
    # Below it from the start.
    low = stored(tmp_path / "low", "tma_rt", {key: [1, 3, 2] for key in NEAR})
    early = statistics.contrast([low], near, "steps_to_threshold")
    assert early.estimate == pytest.approx(-5 / 3)


def test_a_loss_that_does_not_fall_has_no_threshold_halfway(
    tmp_path: Path, runs: dict[str, list[Run]]
) -> None:
    near = runs["tma_nft"]
    for name, course in {"flat": [4, 3, 4], "rising": [4, 3, 5]}.items():
        other = stored(tmp_path / name, "tma_rt", dict.fromkeys(NEAR, course))
        found = statistics.contrast(near, [other], "steps_to_threshold")
        assert math.isnan(found.estimate)
        assert (found.low, found.high, found.clear) == (-math.inf, math.inf, False)
    # It falls by 2 in task a and rises by 1 in task b, which a quarter of the resamples hold alone.
    uneven = {key: [4, 3, 2 if key[0] == "a" else 5] for key in NEAR}
    part = [stored(tmp_path / "part", "tma_rt", uneven)]
    found = statistics.contrast(near, part, "steps_to_threshold")
    # Halfway of 4, 3, 3.5 is 3.75, at 1/2; of 4, 2.5, 1.5 a quarter of the way down, in steps 1/3.
    assert found.estimate == pytest.approx(1 / 3 - 1 / 2)
    assert (found.low, found.high) == (-math.inf, math.inf)


def test_a_course_needs_two_steps(tmp_path: Path) -> None:
    one = [stored(tmp_path / "one", "tma_rt", {("a", "1"): [4], ("b", "2"): [3]}, steps=(0,))]
    assert statistics.contrast(one, one, "final").estimate == 0
    with pytest.raises(ParameterError, match=r"evaluated steps \[0\]; expected two"):
        statistics.contrast(one, one, "area")


def test_the_share_of_the_drop_that_comes_early(runs: dict[str, list[Run]]) -> None:
    # After a quarter of 4 steps: 0.75 of 2.5; in task a alone 1 of 3, in task b alone 0.5 of 2.
    found = statistics.early_share(runs["tma_nft"], 0.25)
    assert (found.estimate, found.low, found.high) == ends(0.3, 0.25, 1 / 3)
    assert found.minus(0.25).estimate == pytest.approx(0.05)
    assert statistics.early_share(runs["tma_nft"], 1.0).estimate == 1
    with pytest.raises(ParameterError, match="fraction=5"):
        statistics.early_share(runs["tma_nft"], 5)


def test_a_loss_that_does_not_fall_has_no_share(tmp_path: Path) -> None:
    flat = stored(tmp_path / "flat", "tma_rt", {key: [4, 3, 4] for key in NEAR})
    found = statistics.early_share([flat])
    assert math.isnan(found.estimate)
    assert (found.low, found.high) == (-math.inf, math.inf)
    assert not found.clear


def test_few_tasks_make_an_interval_wider() -> None:
    found = Interval(1.0, 0.5, 2.0, 18, 3)
    # 2.10982 is Student's quantile with 17 degrees of freedom.
    many = found.drawn_from(18)
    wider = 2.10982 / 1.95996 * math.sqrt(18 / 17)
    assert (many.low, many.high) == pytest.approx((1 - wider * 0.5, 1 + wider), abs=1e-4)
    assert found.drawn_from(10**6).high == pytest.approx(2, abs=1e-4)
    one = found.drawn_from(1)
    assert (one.estimate, one.low, one.high, one.clear) == (1, -math.inf, math.inf, False)
    nothing = Interval(math.nan, -math.inf, math.inf, 18, 3)
    assert nothing.drawn_from(18).high == math.inf
    # Of two looked at together, 2.45805 is Student's quantile at 1 - 0.0125.
    assert many.among(2).high == pytest.approx(1 + wider * 2.45805 / 2.10982, abs=1e-4)
    assert (many.within(0.6, 1.5).low, many.within(0.6, 1.5).high) == (0.6, 1.5)
    assert nothing.within(0, 1).high == math.inf


def test_few_tasks_do_not_decide_by_chance() -> None:
    # Three tasks of six instances each, no difference in truth: a percentile interval alone
    # excludes zero in one of four such samples.
    random = np.random.default_rng(0)
    index = pd.MultiIndex.from_arrays(
        [np.repeat(["a", "b", "c"], 6), [str(k) for k in range(18)]], names=["task", "id"]
    )
    clear = 0
    for number in range(200):
        gaps = np.repeat(random.normal(size=(3, 1)), 6, axis=0) + random.normal(size=(18, 3)) / 2
        zero = [pd.DataFrame({1: np.zeros(18)}, index)] * 3
        found = resample([[pd.DataFrame({1: gap}, index) for gap in gaps.T], zero], number)
        clear += found.interval(found.finals[:, 0] - found.finals[:, 1]).clear
    assert clear <= 20  # ten expected


def test_what_the_draws_of_tasks_and_of_seeds_change_is_added() -> None:
    values = np.full(4001, 10.0)
    values[1:4], values[2001:2004] = (11, 12, np.nan), (9, 13, 10)
    found = added(values)
    assert found.shape == (2000,)
    np.testing.assert_array_equal(found[:4], [10, 15, np.nan, 10])


@pytest.mark.parametrize("size", [2, 3, 10])
def test_weights_of_seeds_show_the_variance_of_a_mean(size: int) -> None:
    weights = seed_weights(size, 0)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    np.testing.assert_allclose(weights[0], 1 / size)
    values = np.random.default_rng(1).normal(size=size)
    # The unbiased variance of a mean; 2,000 resamples tell it to a few hundredths.
    assert (weights[1:] @ values).var() == pytest.approx(values.var(ddof=1) / size, rel=0.1)
    np.testing.assert_array_equal(seed_weights(1, 0), np.ones((len(weights), 1)))


def test_pairs_of_orders_are_compared_by_every_measure(runs: dict[str, list[Run]]) -> None:
    found = statistics.contrasts(runs, {"near − far": ("tma_nft", "tma_fft")})
    assert list(found) == ["final", "area", "steps_to_threshold"]
    assert {m: gaps["near − far"].estimate for m, gaps in found.items()} == pytest.approx(
        {"final": -0.5, "area": -0.625, "steps_to_threshold": -4 / 3}
    )
    shown = measures_table(found)
    assert shown.loc["near − far", ("area", "low")] == -0.625
    assert shown.shape == (1, 9)


def test_intervals_make_a_table() -> None:
    shown = table({"a": Interval(0.5, 0, 1, 12, 3)})
    assert shown.loc["a"].to_dict() == {"estimate": 0.5, "low": 0, "high": 1, "n": 12, "seeds": 3}


def test_a_resample_without_a_value_lies_outside_on_both_sides() -> None:
    values = np.arange(1000.0)
    assert bounds(values) == (25, 974)
    values[:100] = np.nan
    assert bounds(values) == (-math.inf, math.inf)


@settings(max_examples=20, deadline=None)
@given(
    tasks=st.lists(st.integers(0, 3), min_size=2, max_size=8),
    seeds=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_a_resample_is_the_mean_over_the_drawn_tasks_or_seeds(
    tasks: list[int], seeds: int, seed: int
) -> None:
    index = pd.MultiIndex.from_arrays([tasks, range(len(tasks))], names=["task", "id"])
    values = np.random.default_rng(seed).normal(size=(seeds, len(tasks), 2))
    found = resample([[pd.DataFrame(one, index) for one in values]], seed)
    clusters = tasks if len(set(tasks)) > 1 else list(range(len(tasks)))
    names = sorted(set(clusters))
    often, weights = drawn_apart(len(names), seeds, seed)
    for row in (0, 1, 2000, 2001, 4000):
        rows = [
            instance
            for instance, cluster in enumerate(clusters)
            for _ in range(int(often[row, names.index(cluster)]))
        ]
        plain = sum(weights[row, one] * values[one, rows].mean(axis=0) for one in range(seeds))
        np.testing.assert_allclose(found.means[row, 0], plain, atol=1e-12)
        np.testing.assert_allclose(found.finals[row, 0], plain[-1], atol=1e-12)


@settings(max_examples=10, deadline=None)
@given(lengths=st.lists(st.integers(1, 4), min_size=1, max_size=3), seed=st.integers(0, 99))
def test_the_finals_are_those_of_tables_of_their_last_steps_alone(
    lengths: list[int], seed: int
) -> None:
    index = pd.MultiIndex.from_arrays([list("aabbc"), range(5)], names=["task", "id"])
    random = np.random.default_rng(seed)
    tables = [pd.DataFrame(random.normal(size=(5, length)), index) for length in lengths]
    ends = [one.iloc[:, -1:].set_axis([0], axis="columns") for one in tables]
    found, alone = resample([tables], seed), resample([ends], seed)
    np.testing.assert_allclose(found.finals, alone.means[..., 0], atol=1e-12)
    # What is read along the way is that of the shared steps.
    shared = resample([[one[found.steps] for one in tables]], seed)
    assert found.steps.tolist() == list(range(min(lengths)))
    np.testing.assert_allclose(found.curves, shared.curves, atol=1e-12)


def test_an_instance_without_a_task_is_its_own() -> None:
    rows = pd.DataFrame({"step": [0, 0], "id": ["x", "y"], "task": [None, "t"], "loss": [1.0, 2.0]})
    assert by_instance(rows).index.tolist() == [("t", "y"), ("x", "x")]
