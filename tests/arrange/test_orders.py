from __future__ import annotations

import itertools
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import tma
from tests import reference
from tests.conftest import circle, embeddings, unit
from tma.arrange.orders import ascending
from tma.arrange.spec import MEASURES, ORDERS
from tma.errors import ParameterError

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("*.npz"))

# Angles in degrees on a circle; test rows at 0 and 90.
X, Y = circle([0, 10, 20, 80, 85, 180, 200]), circle([0, 90])
TASKS = ["a", "b", "a", "c", "b", "a", "b"]
NAMES = ["tma_rounds[0:9]" if name == "tma_rounds[i:j]" else name for name in ORDERS]

Pair = tuple[NDArray[np.float32], NDArray[np.float32]]


def arranged(name: str, **settings: Any) -> list[int]:
    return tma.arrange(name, X, Y, tasks=TASKS, **settings).tolist()


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_named_orders_follow_from_the_golden_rounds(path: Path) -> None:
    golden = np.load(path)
    train, test = golden["train"], golden["test"]
    near = np.split(golden["near"], np.cumsum(golden["near_sizes"])[:-1])
    far = np.split(golden["far"], np.cumsum(golden["far_sizes"])[:-1])
    limit = 2 * int(golden["near_sizes"][:2].sum())
    enough = int(np.argmax(np.cumsum(golden["far_sizes"]) >= limit // 2)) + 1
    expected_nft = [*near[:2], *far[:enough][::-1]]
    expected_fft = [*far[:enough], *near[:2][::-1]]
    for name, rounds in (("tma_nft", expected_nft), ("tma_fft", expected_fft)):
        sequence = np.concatenate(rounds).tolist()
        once = list(dict.fromkeys(sequence))
        assert tma.arrange(name, train, test, limit=limit).tolist() == once
    shuffled = tma.arrange("tma_rt", train, test, limit=limit, seed=3)
    assert sorted(shuffled) == sorted(set(np.concatenate(expected_nft).tolist()))
    some = tma.arrange("tma_rounds[2:5]", train, test)
    assert some.tolist() == np.concatenate(near[2:5]).tolist()


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_nearest_first_and_whole_tasks_equal_the_golden_files(path: Path) -> None:
    golden = np.load(path)
    train, test, task = golden["train"], golden["test"], golden["task"]
    assert tma.arrange("nearest", train, test).tolist() == golden["nft"].tolist()
    tasks = [f"{number:02}" for number in task]
    coarse = tma.arrange("coarse_nearest", train, test, tasks=tasks)
    by_task = [np.flatnonzero(task == number) for number in golden["coarse_task_order"]]
    assert coarse.tolist() == np.concatenate(by_task).tolist()
    farthest = tma.arrange("coarse_farthest", train, test, tasks=tasks)
    assert farthest.tolist() == np.concatenate(by_task[::-1]).tolist()


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        # The nearest rounds are [0, 4], [1, 3], [2], [5, 6]; the farthest [5, 6], [0, 4], ….
        ("tma_min", {"limit": 3}, [0, 4, 1, 3]),
        ("tma_max", {"limit": 2}, [5, 6]),
        # NFT ends with the farthest round, FFT with the nearest.
        ("tma_nft", {"limit": 4}, [0, 4, 5, 6]),
        ("tma_fft", {"limit": 4}, [5, 6, 0, 4]),
        # Rows 0 and 4 are in both halves and stay at their first place.
        ("tma_nft", {"limit": 6}, [0, 4, 1, 3, 5, 6]),
        ("tma_fft", {"limit": 6}, [5, 6, 0, 4, 1, 3]),
        # An exact limit cuts each side.
        ("tma_min", {"limit": 3, "exact_limit": True}, [0, 4, 1]),
        ("tma_nft", {"limit": 3, "exact_limit": True}, [0, 4, 5]),
        ("tma_rounds[1:3]", {}, [1, 3, 2]),
        ("tma_rounds[:1]", {}, [0, 4]),
        ("tma_rounds[3:]", {}, [5, 6]),
        ("tma_rounds[1:4]", {"limit": 1}, [1, 3]),
        ("tma_rounds[1:4]", {"limit": 1, "exact_limit": True}, [1]),
        ("tma_rounds[8:9]", {}, []),
        # With w = 0 only the nearest test row counts: 10° and 80° tie, the lower row first; 180°
        # is 90° from 90°.
        ("nearest", {"weight": 0.0}, [0, 4, 1, 3, 2, 5, 6]),
        ("farthest", {"weight": 0.0, "limit": 3}, [6, 5, 2]),
        ("nearest", {"measure": "cosine_min"}, [0, 4, 1, 3, 2, 5, 6]),
        ("nearest", {"measure": "euclidean_min"}, [0, 4, 1, 3, 2, 5, 6]),
        # 0° is a test row, and 85° is within 5° (cosine 0.9962) of 90°.
        ("tma_min", {"exclude_near_duplicates": 0.99}, [1, 3, 2, 5, 6]),
    ],
)
def test_orders_by_hand(name: str, given: dict[str, Any], expected: list[int]) -> None:
    assert arranged(name, **given) == expected


def test_a_reversed_half_is_reversed_inside_its_rounds_by_similarity() -> None:
    # Far from 0° and 90°: 180° (180° away) before 300° (150° away), and so last when reversed.
    train = circle([1, 180, 300])
    assert tma.arrange("tma_nft", train, Y, limit=2).tolist() == [0, 1, 2]
    by_similarity = tma.arrange("tma_nft", train, Y, limit=2, within="similarity")
    assert by_similarity.tolist() == [0, 2, 1]


def test_a_round_of_a_pool_stands_in_the_sequence_of_storage_and_is_cut_in_that_drawn() -> None:
    given: dict[str, Any] = {"limit": 1, "exact_limit": True}
    cut = {tuple(arranged("tma_min", pool=7, seed=seed, **given)) for seed in range(9)}
    assert cut == {(0,), (4,)}
    assert arranged("tma_min", **given) == [0]
    for seed in range(9):
        assert arranged("tma_min", pool=7, seed=seed, limit=4) == [0, 4, 1, 3]


def test_of_rows_that_tie_in_a_pool_the_one_drawn_first_is_nearest() -> None:
    equal = circle([5, 5, 5, 5])
    first = {
        int(tma.arrange("tma_min", equal, Y, pool=4, seed=seed, limit=1)[0]) for seed in range(20)
    }
    assert first == {0, 1, 2, 3}


def test_rounds_are_shuffled_within_and_stay_in_their_sequence() -> None:
    made = {tuple(arranged("tma_nft", limit=4, within="shuffled", seed=s)) for s in range(20)}
    # The nearest round {0, 4}, then the farthest: 200° is farthest from 0° and 90° alike.
    plain = arranged("tma_nft", limit=4)
    assert {frozenset(order[:2]) for order in made} == {frozenset(plain[:2])}
    assert {order[:2] for order in made} == {(0, 4), (4, 0)}


@pytest.mark.parametrize("side", ["tma_min", "tma_max"])
def test_a_shuffled_side_holds_what_the_side_takes_from_the_same_pool(side: str) -> None:
    for seed in range(5):
        given: dict[str, Any] = {"pool": 5, "seed": seed, "limit": 3, "exact_limit": True}
        assert set(arranged(side, **given)) == set(arranged(f"{side}_rt", **given))
    assert len({tuple(arranged(f"{side}_rt", limit=4, seed=seed)) for seed in range(9)}) > 3


def test_a_pool_can_be_of_whole_tasks() -> None:
    tasks = list("aabbbcc")
    given: dict[str, Any] = {"tasks": tasks, "pool": 4, "pool_by": "task"}
    found = {tuple(sorted(tma.arrange("random", X, Y, seed=s, **given))) for s in range(20)}
    # Two tasks: the last one drawn is cut, by the seed.
    for rows in found:
        whole = [t for t in "abc" if {k for k in range(7) if tasks[k] == t} <= set(rows)]
        assert len(rows) == 4
        assert whole
    assert (0, 1, 5, 6) in found
    with pytest.raises(ParameterError, match=r"pool_by='task' .* a pool with it"):
        arranged("random", pool_by="task")
    with pytest.raises(ParameterError, match=r"tasks=None .* pool_by='task' goes by tasks"):
        tma.arrange("random", X, Y, pool=2, pool_by="task")


def test_near_duplicates_are_searched_in_the_pool_alone(caplog: pytest.LogCaptureFixture) -> None:
    # Rows 0 (0°) and 4 (85°) are within 6° of a test row.
    for seed in range(9):
        drawn = set(arranged("random", pool=4, seed=seed))
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            strict = arranged("random", pool=4, seed=seed, exclude_near_duplicates=0.99)
        assert set(strict) == drawn - {0, 4}
        assert f"{len(drawn & {0, 4})} of 4 training rows are near-duplicates" in caplog.text
    assert tma.arrange("tma_nft", Y, Y, exclude_near_duplicates=0.99).tolist() == []


@pytest.mark.parametrize("name", NAMES)
def test_one_seed_draws_one_pool_whatever_arranges_it(name: str) -> None:
    drawn = set(arranged("random", seed=5, pool=4))
    assert set(arranged(name, seed=5, pool=4)) == drawn
    assert set(arranged("random", seed=6, pool=4)) != drawn


def test_nearest_sorts_by_any_measure() -> None:
    # Average similarity to 0° and 90° is cos of the angle to 45°, times 0.7071; 10° and 80° tie but
    # for the rounding of their rows.
    for measure in ("cosine_avg", "cosine_centroid", "euclidean_centroid"):
        found = arranged("nearest", measure=measure)
        assert sorted(found[1:3]) == [1, 3]
        assert found[:1] + found[3:] == [2, 4, 0, 5, 6]
    texts = ["e f", "a b c", "a b", "g h", "i j", "k l", "m n"], ["a b c d", "b c d"]
    given: dict[str, Any] = {"measure": "bigram_kl", "texts": texts}
    assert arranged("nearest", limit=2, **given) == [1, 2]
    # The texts of rows that are left out are left out too.
    left = arranged("nearest", exclude_near_duplicates=0.99, **given)
    assert sorted(left) == [1, 2, 3, 5, 6]
    assert left[:2] == [1, 2]


def test_round_robin_takes_one_row_of_each_task_in_turn() -> None:
    order = arranged("round_robin", seed=4)
    tasks = [TASKS[row] for row in order]
    assert [set(tasks[:3]), set(tasks[3:5]), set(tasks[5:])] == [set("abc"), set("ab"), set("ab")]
    assert sorted(order) == list(range(7))


def test_whole_tasks_follow_an_explicit_weight() -> None:
    # With w = 0 only the nearest test row counts, with a large w the average.
    tasks = ["near one", "between"]
    train = circle([0, 40])
    near, average = (
        tma.arrange("coarse_nearest", train, Y, tasks=tasks, weight=w).tolist() for w in (0.0, 9.0)
    )
    assert (near, average) == ([0, 1], [1, 0])


def test_tasks_and_texts_of_a_table_go_by_position() -> None:
    shuffled = pd.Series(TASKS, index=[3, 1, 2, 0, 6, 5, 4])
    for name in ("coarse_nearest", "cluster"):
        assert tma.arrange(name, X, Y, tasks=shuffled).tolist() == arranged(name)
    with pytest.raises(ParameterError, match=r"tasks\[6\]"):
        tma.arrange("cluster", X, Y, tasks=pd.Series([*TASKS[:6], np.nan]))


def test_cluster_keeps_tasks_together_and_shuffles_their_rows() -> None:
    blocks, firsts = set(), set()
    for seed in range(20):
        order = arranged("cluster", seed=seed)
        blocks.add("".join(task for task, _ in itertools.groupby(TASKS[row] for row in order)))
        firsts.add(next(row for row in order if TASKS[row] == "a"))
    assert {"".join(sorted(sequence)) for sequence in blocks} == {"abc"}
    assert len(blocks) > 3
    assert firsts == {0, 2, 5}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("threshold", [None, 0.99])
def test_limits_at_the_ends(name: str, threshold: float | None) -> None:
    usable = list(range(7)) if threshold is None else [1, 2, 3, 5, 6]
    given = {"exclude_near_duplicates": threshold}
    assert arranged(name, limit=0, **given) == []
    taken = tma.arrange(name, X, Y, tasks=TASKS, **given)
    assert taken.dtype == np.int64
    assert sorted(taken.tolist()) == usable
    for limit in (7, 1000):
        assert taken.tolist() == arranged(name, limit=limit, **given)
    assert tma.arrange(name, X[:1], Y[:1], tasks=["a"]).tolist() == [0]


@pytest.mark.parametrize("name", NAMES)
def test_an_order_depends_on_the_seed_and_on_embeddings_as_it_says(name: str) -> None:
    method = tma.Method(name)
    assert arranged(name, seed=1) == arranged(name, seed=1)
    assert (len({tuple(arranged(name, seed=seed)) for seed in range(5)}) > 1) == method.seeded
    other = tma.arrange(name, X[::-1], Y, tasks=TASKS).tolist()
    assert (other != arranged(name)) == method.embeds
    assert all(tma.Method(name, pool=2).seeded for name in NAMES)


def test_inputs_are_not_modified() -> None:
    before = X.copy(), Y.copy(), list(TASKS)
    for array in (X, Y):
        array.flags.writeable = False
    for name in NAMES:
        arranged(name, limit=4)
    for measure in MEASURES[:-1]:
        arranged("nearest", measure=measure)
    for array in (X, Y):
        array.flags.writeable = True
    np.testing.assert_array_equal(X, before[0])
    np.testing.assert_array_equal(Y, before[1])
    assert before[2] == TASKS


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        (X * 2, Y, r"X\[0\] has length 2; expected 1.*tma.embed"),
        (X, Y * 0, r"Y\[0\] has length 0; expected 1"),
        (X, Y[:0], r"Y has shape \(0, 2\)"),
        (X[:0], Y, r"X has shape \(0, 2\)"),
        (X[0], Y, r"X has shape \(2,\)"),
        (X, unit(np.ones((1, 3))), "X has 2 columns and Y 3"),
        (np.where(X[1] == X, np.nan, X), Y, r"X\[1\] has length nan"),
        (np.where(X[1] == X, np.inf, X), Y, r"X\[1\] has length inf"),
        (np.eye(2, dtype=int), Y, "X has dtype int64"),
    ],
)
def test_bad_embeddings_are_named(
    name: str, train: NDArray[np.float32], test: NDArray[np.float32], words: str
) -> None:
    tasks = ["a"] * len(train)
    with pytest.raises(ValueError, match=words):
        tma.arrange(name, train, test, tasks=tasks)


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("nearest_first", {}, r"order='nearest_first'.*tma_nft"),
        ("tma_round[0:5]", {}, r"order='tma_round\[0:5\]'.*tma_rounds\[0:5\]"),
        ("tma_rounds[5:5]", {}, r"tma_rounds\[5:5\].*no rounds.*i < j"),
        ("random", {"tasks": ["a", "b"]}, "tasks has 2 entries; expected 7"),
        ("cluster", {"tasks": None}, "tasks=None.*order='cluster' goes by tasks"),
        ("cluster", {"tasks": [*TASKS[:6], None]}, r"tasks\[6\]=None"),
        ("nearest", {"measure": "cosine"}, r"measure='cosine'.*wsd, cosine_avg"),
        ("nearest", {"measure": "bigram_kl"}, "texts=None.*measure='bigram_kl'"),
        ("nearest", {"texts": (["a"], ["b", "c"])}, r"texts\[0\] has 1 entry; expected 7"),
        ("nearest", {"texts": (["a"] * 7, ["b"])}, r"texts\[1\] has 1 entry; expected 2"),
        ("nearest", {"weight": np.nan}, "weight=nan.*finite"),
        ("nearest", {"weight": 1.0, "measure": "cosine_min"}, "weight=1.0.*measure='cosine_min'"),
        ("tma_nft", {"measure": "cosine_min"}, "measure='cosine_min'.*belongs to nearest"),
        ("random", {"within": "similarity"}, "within='similarity'.*belongs to tma_min"),
        ("tma_min", {"collision": "all"}, "collision='all'.*set, each"),
        ("tma_min", {"seed": -1}, "seed=-1"),
        ("tma_min", {"limit": -1}, "limit=-1"),
        ("tma_min", {"exact_limit": "no"}, "exact_limit='no'"),
        ("nearest", {"weight": "auto"}, "weight='auto'"),
        ("tma_rounds[0:99999999999]", {}, "order='tma_rounds"),
        ("tma_min", {"exclude_near_duplicates": "x"}, "exclude_near_duplicates='x'"),
        ("tma_min", {"exclude_near_duplicates": 95}, "exclude_near_duplicates=95"),
    ],
)
def test_wrong_settings_are_named(name: str, given: dict[str, Any], words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        tma.arrange(name, X, Y, **({"tasks": TASKS} | given))


def test_values_that_only_rounding_tells_apart_keep_their_sequence() -> None:
    values = np.array([0.3, 0.1 + 1e-12, 0.1, 0.2])
    assert ascending(values).tolist() == [1, 2, 3, 0]
    assert ascending(-values).tolist() == [0, 3, 1, 2]


@settings(max_examples=60, deadline=None)
@given(embeddings(), st.integers(0, 60), st.sampled_from(NAMES), st.data())
def test_every_order_takes_a_row_at_most_once(
    pair: Pair, limit: int, name: str, data: st.DataObject
) -> None:
    train, test = pair
    tasks = data.draw(st.lists(st.sampled_from("abc"), min_size=len(train), max_size=len(train)))
    weight = 1.0 if name.endswith("est") else None  # mean(AD) may be 0
    try:
        taken = tma.arrange(name, train, test, tasks=tasks, limit=limit, weight=weight).tolist()
    except ValueError as error:
        assert "cancel out" in str(error)
        return
    assert len(set(taken)) == len(taken)
    # Whole rounds of the near and the far half may go past N, each by less than one round.
    assert len(taken) <= min(len(train), limit + 2 * (len(test) - 1)) or limit == 0


@settings(max_examples=60, deadline=None)
@given(embeddings(), st.sampled_from(MEASURES[:-1]), st.booleans())
def test_orders_by_one_measure_equal_the_reference(
    pair: Pair, measure: str, farthest: bool
) -> None:
    train, test = pair
    try:
        values = [reference.distance(train[[i]], test, measure) for i in range(len(train))]
    except ZeroDivisionError:
        return  # the test rows cancel out: no centroid
    expected = reference.sequence([-v if farthest else v for v in values])
    name = "farthest" if farthest else "nearest"
    if measure == "cosine_centroid" and np.linalg.norm(test.astype(float).mean(axis=0)) < 1e-6:
        return  # the direction is rounding alone
    assert tma.arrange(name, train, test, measure=measure).tolist() == expected


@settings(max_examples=60, deadline=None)
@given(embeddings(), st.floats(-2, 2))
def test_nearest_by_wsd_equals_the_reference(pair: Pair, weight: float) -> None:
    wsd, _ = reference.weighted_similarity_distance(*pair, weight)
    assert tma.arrange("nearest", *pair, weight=weight).tolist() == reference.sequence(wsd)


@settings(max_examples=60, deadline=None)
@given(embeddings(), st.data(), st.booleans())
def test_coarse_orders_equal_the_reference(pair: Pair, data: st.DataObject, farthest: bool) -> None:
    train, test = pair
    tasks = data.draw(st.lists(st.sampled_from("abcd"), min_size=len(train), max_size=len(train)))
    name = "coarse_farthest" if farthest else "coarse_nearest"
    sums = [train[[t == name for t in tasks]].sum(axis=0) for name in set(tasks)]
    mean_distance = abs(reference.cosine_distances(train, test).mean())
    if min(np.linalg.norm(s) for s in sums) < 1e-3 or mean_distance < 1e-3:
        return  # a mean without a direction, or w without a value
    try:
        expected = reference.coarse_sequence(train, test, tasks, farthest)
    except ZeroDivisionError:
        return
    assert tma.arrange(name, train, test, tasks=tasks).tolist() == expected
