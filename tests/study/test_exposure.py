from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tma
from tests.conftest import tiny_run
from tests.stored_runs import NEAR, stored
from tma.errors import ParameterError
from tma.runs.store import Run
from tma.study import exposure
from tma.study.exposure import Seen, agreement, association, located, step_match, table

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
    found = exposure.drops(run)
    assert found.index.tolist() == [("s", "east"), ("t", "north")]
    assert found.columns.tolist() == [1, 2]
    assert found.to_numpy().tolist() == [[0.5, 0], [1, 2]]


def seen_by(order: list[str], texts: tuple[list[str], list[str]] = ([], [])) -> Seen:
    return Seen(X[[TRAIN.index(name) for name in order]], Y, TEST, texts)


def test_similarity_is_to_what_was_seen_in_the_interval(run: Run) -> None:
    rows = exposure.similarity_rows(run, seen_by(run.order))
    # First x2 and x1, then x0; east is (1, 0) and north (0, 1).
    assert rows[["step", "id"]].to_numpy().tolist() == [
        [1, "east"], [1, "north"], [2, "east"], [2, "north"]
    ]  # fmt: skip
    np.testing.assert_allclose(rows["similarity"], [0.3, 0.9, 1, 0])


def test_every_epoch_ends_with_its_smaller_step(tmp_path: Path) -> None:
    losses = {("s", "east"): [4.0, 3.0, 2.0, 1.0, 0.5]}
    run = stored(
        tmp_path / "run", "nearest", losses, steps=range(5), consumed=TRAIN, batch_size=2, epochs=2
    )
    rows = exposure.similarity_rows(run, seen_by(run.order))
    np.testing.assert_allclose(rows["similarity"], [0.5, 0.6, 0.5, 0.6])


def test_distances_of_a_task_are_of_all_that_was_seen_so_far(run: Run) -> None:
    seen = seen_by(run.order, (["a b", "c d", "a b"], ["a b", "c d"]))
    found = exposure.distance_rows(run, seen)
    shown = found.pivot(index=["measure", "task"], columns="step", values="distance")
    np.testing.assert_allclose(shown.loc["cosine_avg"], [[-0.3, -1.6 / 3], [-0.9, -1.8 / 3]])
    np.testing.assert_allclose(shown.loc["cosine_min"], [[-0.6, -1], [-1, -1]])
    # Task s is "a b", which half of the first two texts are, and then two of three; t is "c d".
    p, q = np.array([[1.5, 0.5], [0.5, 1.5]]) / 2, np.array([[0.5, 0.5], [0.625, 0.375]])
    expected = [[(of * np.log(of / at)).sum() for at in q] for of in p]
    np.testing.assert_allclose(shown.loc["bigram_kl"], expected)


def test_what_a_run_saw_is_written_and_read(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = seen_by(run.order, (["a b", "c d", "a b"], ["a b", "c d"]))
    monkeypatch.setattr(Seen, "by", classmethod(lambda *_: seen))
    for name, rows in exposure.tables(run).items():
        rows.to_parquet(run.folder / name, index=False)
    monkeypatch.setattr(Seen, "by", None)  # nothing is embedded to read it
    found = exposure.similarity(run)
    np.testing.assert_allclose(found, [[0.3, 1], [0.9, 0]], rtol=1e-6)
    assert found.index.equals(exposure.drops(run).index)
    assert found.columns.equals(exposure.drops(run).columns)
    measures = exposure.distances(run)["measure"]
    assert (measures.nunique(), len(measures)) == (9, 36)
    pairs = exposure.centred({"nearest": [run]})
    assert list(pairs) == ["run", "task", "id", "step", "drop", "similarity"]
    # Drops 0.5, 0 and 1, 2; similarities 0.3, 1 and 0.9, 0.
    np.testing.assert_allclose(pairs["drop"], [0.375, -0.375, -0.375, 0.375])
    np.testing.assert_allclose(pairs["similarity"], [-0.4, 0.4, 0.4, -0.4], rtol=1e-6)
    assert exposure.of_runs({"nearest": [run]}).estimate == pytest.approx(-1)


def test_what_a_run_saw_is_embedded_anew_where_it_is_not_stored(
    cache: Path, tiny_model: Path, dataset_file: Path
) -> None:
    assert cache.is_dir()
    config = tiny_run(tiny_model, dataset_file, order="random", steps=2, batch_size=4, seed=71)
    run = tma.run(config)
    train, test = tma.load_both(config)
    found = exposure.similarity(run)
    step, (_, name) = found.columns[0], found.index[0]
    place = {one: row for row, one in enumerate(train["id"])}
    consumed = [place[one] for one in run.order[: 4 * step]]
    row = tma.embed(test)[test["id"][:].index(name)]
    mean = tma.embed(train.select(consumed)).mean(axis=0)
    assert found.iloc[0, 0] == pytest.approx(float(row @ mean), abs=1e-5)


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
    shown = table({"a": found})
    assert shown.loc["a", ["estimate", "n", "seeds"]].tolist() == [1, 2, 1]
    assert list(shown)[-3:] == ["baseline_low", "baseline_high", "p"]


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


def test_the_interval_leaves_out_one_source_dataset_at_a_time() -> None:
    random = np.random.default_rng(2)
    values = [frame(random.normal(size=(6, 4))) for _ in range(2)]
    sources = pd.Series(list("aabbcc"), [f"i{k}" for k in range(6)])
    found = association([values[0]], [values[1]], sources)
    left = []
    for source in "abc":
        kept = values[0].index.get_level_values("id").map(sources) != source
        left.append(association([values[0][kept]], [values[1][kept]]).estimate)
    # Student's quantile with two degrees of freedom.
    half = 4.30265 * math.sqrt(2 / 3 * ((np.array(left) - np.mean(left)) ** 2).sum())
    assert found.low == pytest.approx(max(-1, found.estimate - half), rel=1e-5)
    assert found.high == pytest.approx(min(1, found.estimate + half), rel=1e-5)
    assert found.n == 6


def test_runs_may_test_other_instances() -> None:
    random = np.random.default_rng(4)
    one, two = random.normal(size=(2, 5, 3))
    other = frame(two).set_axis(
        pd.MultiIndex.from_arrays([[f"o{k}" for k in range(5)]] * 2, names=["task", "id"])
    )
    found = association([frame(one), other], [frame(2 * one), 3 * other])
    # Both follow, by factors of their own: products over roots of 4 + 9 and of 1 + 1 in squares.
    rests = [values - values.mean(axis=1, keepdims=True) for values in (one, two)]
    squares = [((rest - rest.mean(axis=0)) ** 2).sum() for rest in rests]
    products = 2 * squares[0] + 3 * squares[1]
    scale = math.sqrt(sum(squares) * (4 * squares[0] + 9 * squares[1]))
    assert (found.estimate, found.n) == (pytest.approx(products / scale), 10)


def test_within_tasks_what_a_task_shares_does_not_count() -> None:
    random = np.random.default_rng(3)
    tasks = [task for task in "abcdef" for _ in range(4)]
    shared = np.repeat(random.normal(size=(6, 5)), 4, axis=0)
    drops, similarity = (shared + 0.1 * random.normal(size=(24, 5)) for _ in range(2))
    by_task = association([frame(drops, tasks)], [frame(similarity, tasks)])
    inside = association([frame(drops, tasks)], [frame(similarity, tasks)], within_tasks=True)
    assert by_task.estimate > 0.9
    assert abs(inside.estimate) < 0.5
    assert inside.p > 0.05
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


def test_tables_that_do_not_fit_are_refused() -> None:
    values = frame([[1, 2, 4], [3, 1, 0]])
    with pytest.raises(ParameterError, match=r"2 instances × 3 intervals and .* 2 × 2"):
        association([values], [frame([[1, 2], [3, 1]])])


def test_a_task_whose_data_arrives_falls_then(tmp_path: Path) -> None:
    # Either task falls in the one interval in which its distance does.
    losses = {("s", "east"): [9.0, 4.0, 3.0, 3.0], ("t", "north"): [9.0, 4.0, 4.0, 3.0]}
    run = stored(tmp_path / "run", "cluster", losses, steps=(0, 1, 2, 3), consumed=TRAIN)
    pd.DataFrame(
        [(task, step, "cosine_avg", value) for task, course in
         {"s": [0.0, -1, -1], "t": [0.0, 0, -1]}.items()
         for step, value in zip((1, 2, 3), course, strict=True)],
        columns=["task", "step", "measure", "distance"],
    ).to_parquet(run.folder / "distances.parquet")  # fmt: skip
    found = step_match([run])
    assert (found.estimate, found.n) == (1, 2)
    largest = located([run]).set_index("task")
    assert largest[["loss_step", "distance_step"]].to_numpy().tolist() == [[2, 2], [3, 3]]
    assert largest[["loss_fall", "distance_fall"]].to_numpy().tolist() == [[1, 1], [1, 1]]
    # One of the two tasks falls at either step.
    assert largest["by_chance"].tolist() == [0.5, 0.5]
    assert agreement(largest) == {"same": 1, "by_chance": 0.5}
    beside = exposure.distances_of({"cluster": run})
    assert list(beside) == ["task", "step", "measure", "distance", "order"]


def test_one_evaluation_has_no_drops(tmp_path: Path) -> None:
    run = stored(tmp_path / "one", "random", {key: [1] for key in NEAR}, steps=(0,))
    with pytest.raises(ParameterError, match=r"evaluated steps \[0\]; expected two"):
        exposure.drops(run)
