from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.stored_runs import NEAR, stored
from tma import seen
from tma.association import agreement, association, centred, located, step_match, table
from tma.bootstrap import drawn_apart
from tma.errors import ParameterError
from tma.intervals import bounds
from tma.runs import Run

X = np.array([[1, 0], [0, 1], [0.6, 0.8]])
Y = np.array([[1.0, 0.0], [0.0, 1.0]])
TRAIN, TEST = ["x0", "x1", "x2"], ["east", "north"]
LOSSES = {("t", "north"): [4.0, 3.0, 1.0], ("s", "east"): [4.0, 3.5, 3.5]}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Two instances in the first step, the third one alone in the second."""
    consumed = ["x2", "x1", "x0"]
    return stored(
        tmp_path / "run", "nearest", LOSSES, steps=(0, 1, 2), consumed=consumed, batch_size=2
    )


def frame(values: object, tasks: list[str] | None = None) -> pd.DataFrame:
    array = np.array(values, dtype=float)
    names = [f"i{number}" for number in range(len(array))]
    index = pd.MultiIndex.from_arrays([tasks or names, names], names=["task", "id"])
    return pd.DataFrame(array, index, pd.Index(range(1, array.shape[1] + 1), name="step"))


def test_a_drop_is_what_the_loss_falls_in_an_interval(run: Run) -> None:
    found = seen.drops(run)
    assert found.index.tolist() == [("s", "east"), ("t", "north")]
    assert found.columns.tolist() == [1, 2]
    assert found.to_numpy().tolist() == [[0.5, 0], [1, 2]]


def test_similarity_is_to_what_was_seen_in_the_interval(run: Run) -> None:
    mean = seen.seen_similarity(run, X, Y, TRAIN, TEST)
    # First x2 and x1, then x0; east is (1, 0) and north (0, 1).
    np.testing.assert_allclose(mean, [[0.3, 1], [0.9, 0]])
    assert mean.index.equals(seen.drops(run).index)
    assert mean.columns.equals(seen.drops(run).columns)


def test_every_epoch_ends_with_its_smaller_step(tmp_path: Path) -> None:
    losses = {("s", "east"): [4.0, 3.0, 2.0, 1.0, 0.5]}
    run = stored(
        tmp_path / "run", "nearest", losses, steps=range(5), consumed=TRAIN, batch_size=2, epochs=2
    )
    found = seen.seen_similarity(run, X, Y, TRAIN, TEST)
    np.testing.assert_allclose(found, [[0.5, 0.6, 0.5, 0.6]])


def test_ids_must_be_those_of_the_run(run: Run) -> None:
    with pytest.raises(ParameterError, match="train_ids lacks 1 ids of the run, 'x2' first"):
        seen.seen_similarity(run, X[:2], Y, TRAIN[:2], TEST)
    with pytest.raises(ParameterError, match="test_ids has 2 entries; expected 1"):
        seen.seen_similarity(run, X, Y[:1], TRAIN, TEST)


def test_distances_of_a_task_are_of_all_that_was_seen_so_far(run: Run) -> None:
    texts = (["a b", "c d", "a b"], ["a b", "c d"])
    found = seen.distance_curves(
        run, X, Y, TRAIN, TEST, measures=("cosine_avg", "cosine_min", "bigram_kl"), texts=texts
    )
    shown = found.pivot(index=["measure", "task"], columns="step", values="distance")
    np.testing.assert_allclose(shown.loc["cosine_avg"], [[-0.3, -1.6 / 3], [-0.9, -1.8 / 3]])
    np.testing.assert_allclose(shown.loc["cosine_min"], [[-0.6, -1], [-1, -1]])
    # Task s is "a b", which half of the first two texts are, and then two of three; t is "c d".
    p, q = np.array([[1.5, 0.5], [0.5, 1.5]]) / 2, np.array([[0.5, 0.5], [0.625, 0.375]])
    expected = [[(of * np.log(of / at)).sum() for at in q] for of in p]
    np.testing.assert_allclose(shown.loc["bigram_kl"], expected)
    with pytest.raises(ParameterError, match="texts=None cannot be used with the measure bigram"):
        seen.distance_curves(run, X, Y, TRAIN, TEST, measures=("bigram_kl",))


class Counted(str):
    """A text that counts how often its words are taken."""

    taken = 0

    def lower(self) -> str:
        self.taken += 1
        return super().lower()


def test_texts_are_counted_once_for_all_tasks(run: Run) -> None:
    train, test = [Counted("a b"), Counted("c d"), Counted("a b")], [Counted("a b"), Counted("c d")]
    seen.distance_curves(run, X, Y, TRAIN, TEST, measures=("bigram_kl",), texts=(train, test))
    assert [text.taken for text in [*train, *test]] == [1, 1, 1, 1, 1]


def test_drops_that_follow_similarity_correlate_fully() -> None:
    values = np.random.default_rng(0).normal(size=(20, 5))
    follows = association([frame(values)], [frame(3 * values)])
    assert (follows.estimate, follows.low, follows.high) == pytest.approx((1, 1, 1))
    assert follows.baseline_low < 0 < follows.baseline_high < 1
    assert follows.p == 1 / 1001
    assert (follows.n, follows.seeds, follows.clear) == (20, 1, True)
    assert association([frame(values)], [frame(-values)]).estimate == pytest.approx(-1)


def test_a_literal_correlation() -> None:
    # Centred two ways: ±1 and ±2 in the same places; then one that has the signs reversed.
    drops, similarity = [[2, 0], [0, 2]], [[5, 1], [1, 5]]
    found = association([frame(drops)], [frame(similarity)])
    assert found.estimate == 1
    mixed = association([frame(drops), frame(drops)], [frame(similarity), frame([[0, 4], [4, 0]])])
    # Products 4·2 and -4·2 of squares 4 + 4 and 16 + 16.
    assert mixed.estimate == pytest.approx(0)


def test_unconnected_courses_have_no_association() -> None:
    random = np.random.default_rng(3)
    found = association([frame(random.normal(size=(60, 8)))], [frame(random.normal(size=(60, 8)))])
    assert found.low < 0 < found.high
    assert found.baseline_low < found.estimate < found.baseline_high
    assert found.p > 0.05


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 999))
def test_means_of_instances_and_intervals_do_not_matter(seed: int) -> None:
    random = np.random.default_rng(seed)
    drops, similarity = random.normal(size=(2, 6, 4))
    plain = association([frame(drops)], [frame(similarity)])
    shifted = drops + random.normal(size=(6, 1)) + random.normal(size=(1, 4))
    again = association([frame(shifted)], [frame(similarity)])
    assert again.estimate == pytest.approx(plain.estimate)
    assert (again.low, again.high) == pytest.approx((plain.low, plain.high))


def two_way(values: np.ndarray) -> np.ndarray:
    rest: np.ndarray = values - values.mean(axis=1, keepdims=True)
    return rest - rest.mean(axis=0)


def test_the_interval_is_that_of_centring_each_resample_anew() -> None:
    random = np.random.default_rng(2)
    tasks = list("aaabbccdd")
    drops = [frame(random.normal(size=(9, 4)), tasks) for _ in range(2)]
    similarity = [frame(random.normal(size=(9, 4)), tasks) for _ in range(2)]
    often, seeds = drawn_apart(4, 2, 0)
    found = []
    for by_task, by_run in zip(often, seeds, strict=True):
        rows = [i for i, task in enumerate(tasks) for _ in range(int(by_task["abcd".index(task)]))]
        xy = xx = yy = 0.0
        for weight, *pair in zip(by_run, drops, similarity, strict=True):
            x, y = (two_way(side.to_numpy()[rows]).ravel() for side in pair)
            xy, xx, yy = xy + weight * (x @ y), xx + weight * (x @ x), yy + weight * (y @ y)
        varies = min(xx, yy) > 1e-12  # task b alone has one instance
        found.append(xy / np.sqrt(xx * yy) if varies else np.nan)
    ours = association(drops, similarity)
    assert ours.estimate == pytest.approx(found[0])
    changed = np.array(found) - found[0]  # with tasks drawn, with seeds drawn
    low, high = bounds(found[0] + changed[1:2001] + changed[2001:])
    # Student's quantile with three degrees of freedom over the normal one.
    wider = 3.18245 / 1.95996 * np.sqrt(4 / 3)
    assert ours.low == pytest.approx(max(-1, ours.estimate + wider * (low - ours.estimate)), 1e-4)
    assert ours.high == pytest.approx(min(1, ours.estimate + wider * (high - ours.estimate)), 1e-4)


def test_within_tasks_what_a_task_shares_does_not_count() -> None:
    random = np.random.default_rng(3)
    tasks = [task for task in "abcdef" for _ in range(4)]
    shared = np.repeat(random.normal(size=(6, 5)), 4, axis=0)
    drops, similarity = (shared + 0.1 * random.normal(size=(24, 5)) for _ in range(2))
    by_task = association([frame(drops, tasks)], [frame(similarity, tasks)])
    inside = association([frame(drops, tasks)], [frame(similarity, tasks)], within_tasks=True)
    assert by_task.estimate > 0.9
    assert abs(inside.estimate) < 0.5
    assert inside.baseline_low < inside.estimate < inside.baseline_high


def test_the_baseline_does_not_take_instances_of_a_task_for_independent() -> None:
    # Five instances a task that share their courses, which are of no relation to one another: were
    # single instances to change places, one in four such samples would look associated.
    tasks = [task for task in "abcdefghijkl" for _ in range(5)]
    small = 0
    for seed in range(60):
        courses = np.random.default_rng(seed).normal(size=(2, 12, 4)).repeat(5, axis=1)
        small += association([frame(courses[0], tasks)], [frame(courses[1], tasks)]).p < 0.05
    assert small <= 8  # three expected


def test_tasks_of_unequal_size_change_places_too() -> None:
    random = np.random.default_rng(5)
    tasks = list("aaaabbcdd")
    values = random.normal(size=(9, 4))
    found = association([frame(values, tasks)], [frame(values, tasks)])
    assert found.estimate == pytest.approx(1)
    assert -1 <= found.baseline_low < found.baseline_high <= 1


def test_what_does_not_vary_is_associated_with_nothing() -> None:
    values, flat = frame([[1, 2, 4], [3, 1, 0]]), frame([[1, 1, 1], [2, 2, 2]])
    for drops, similarity in ((values, flat), (flat, values), (flat, flat)):
        found = association([drops], [similarity])
        assert math.isnan(found.estimate)
        assert (found.low, found.high, found.p) == (-math.inf, math.inf, 1)


def test_runs_of_one_seed_are_drawn_together() -> None:
    # Drops follow similarity in four runs of seed 0 and oppose it in four of seed 1. A quarter of
    # the resamples has seed 0 alone; of eight runs drawn by themselves hardly one has.
    rows = np.random.default_rng(0).normal(size=(12, 3)).tolist()
    values, other = frame(rows), -frame(rows)
    drops, similarity = [values] * 8, [values] * 4 + [other] * 4
    alone = association(drops, similarity)
    together = association(drops, similarity, run_seeds=[0] * 4 + [1] * 4)
    assert (alone.seeds, together.seeds) == (8, 2)
    assert alone.estimate == together.estimate
    assert together.high == pytest.approx(1)
    assert alone.high < 0.95
    with pytest.raises(ParameterError, match="run_seeds"):
        association(drops, similarity, run_seeds=[0, 1])


def test_tables_that_do_not_fit_are_refused() -> None:
    values = frame([[1, 2, 4], [3, 1, 0]])
    with pytest.raises(ParameterError, match="drops has 0 tables"):
        association([], [])
    with pytest.raises(ParameterError, match=r"2 instances × 3 intervals and .* 2 × 2"):
        association([values], [frame([[1, 2], [3, 1]])])


def test_a_task_whose_data_arrives_falls_then(tmp_path: Path) -> None:
    # Either task falls in the one interval in which its distance does.
    losses = {("s", "east"): [9.0, 4.0, 3.0, 3.0], ("t", "north"): [9.0, 4.0, 4.0, 3.0]}
    run = stored(tmp_path / "run", "cluster", losses, steps=(0, 1, 2, 3), consumed=TRAIN)
    distances = pd.DataFrame(
        [(task, step, "cosine_min", value) for task, course in
         {"s": [0.0, -1, -1], "t": [0.0, 0, -1]}.items()
         for step, value in zip((1, 2, 3), course, strict=True)],
        columns=["task", "step", "measure", "distance"],
    )  # fmt: skip
    found = step_match([run], [distances], "cosine_min")
    assert (found.estimate, found.n) == (1, 2)
    with pytest.raises(ParameterError, match="measure='cosine'"):
        step_match([run], [distances], "cosine")
    largest = located([run], [distances], "cosine_min").set_index("task")
    assert largest[["loss_step", "distance_step"]].to_numpy().tolist() == [[2, 2], [3, 3]]
    assert largest[["loss_fall", "distance_fall"]].to_numpy().tolist() == [[1, 1], [1, 1]]
    # One of the two tasks falls at either step.
    assert largest["by_chance"].tolist() == [0.5, 0.5]
    assert agreement(largest) == {"same": 1, "by_chance": 0.5}


def test_associations_make_a_table() -> None:
    values = frame([[2, 0], [0, 2]])
    shown = table({"a": association([values], [values])})
    assert shown.loc["a", ["estimate", "n", "seeds"]].tolist() == [1, 2, 1]
    assert list(shown)[-3:] == ["baseline_low", "baseline_high", "p"]


def test_the_pairs_of_a_correlation_can_be_drawn() -> None:
    values = [[2, 0], [0, 2]]
    found = centred([frame(values)], [frame(values)])
    assert found.to_numpy().tolist() == [
        [0, "i0", "i0", 1, 1, 1],
        [0, "i0", "i0", 2, -1, -1],
        [0, "i1", "i1", 1, -1, -1],
        [0, "i1", "i1", 2, 1, 1],
    ]
    assert list(found) == ["run", "task", "id", "step", "drop", "similarity"]


def test_one_evaluation_has_no_drops(tmp_path: Path) -> None:
    run = stored(tmp_path / "one", "random", {key: [1] for key in NEAR}, steps=(0,))
    with pytest.raises(ParameterError, match=r"known at the steps \[0\] only"):
        seen.drops(run)
