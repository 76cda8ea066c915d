from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import tma
from tests import reference
from tests.conftest import circle, embeddings, small_lists, unit
from tma.errors import ParameterError

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("*.npz"))

# Angles in degrees on a circle; test rows at 0 and 90.
X, Y = circle([0, 10, 20, 80, 85, 180, 200]), circle([0, 90])

Pair = tuple[NDArray[np.float32], NDArray[np.float32]]


def listed(rounds: list[NDArray[np.int64]]) -> list[list[int]]:
    return [r.tolist() for r in rounds]


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
@pytest.mark.parametrize("side", ["near", "far"])
def test_rounds_equal_the_golden_files(path: Path, side: str) -> None:
    golden = np.load(path)
    for context in (nullcontext(), small_lists(block=1000)):
        with context:
            rounds = tma.test_centric_rounds(
                golden["train"], golden["test"], farthest=side == "far"
            )
        assert [len(r) for r in rounds] == golden[f"{side}_sizes"].tolist()
        np.testing.assert_array_equal(np.concatenate(rounds), golden[side])


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_a_limit_takes_whole_rounds_as_in_the_golden_files(path: Path) -> None:
    golden = np.load(path)
    train = golden["train"]
    rounds = tma.test_centric_rounds(train, golden["test"], limit=len(train) // 4)
    assert [len(r) for r in rounds] == golden["near_quarter_sizes"].tolist()


def test_every_round_takes_the_nearest_that_is_left_for_each_test_row() -> None:
    # 0° and 85° are nearest to 0° and 90°; then 10° and 80°; then both want 20°; at last 200°, 20°
    # nearer to 0° than 180° is, and 180°.
    assert listed(tma.test_centric_rounds(X, Y)) == [[0, 4], [1, 3], [2], [5, 6]]


def test_farthest_rounds_mirror_the_nearest() -> None:
    # 180° is farthest from 0°, 200° (110° away) from 90°.
    assert listed(tma.test_centric_rounds(X, Y, limit=2, farthest=True)) == [[5, 6]]


def test_equal_rows_are_taken_in_row_order() -> None:
    twins, one = circle([30, 30, 30, 30]), circle([0])
    for farthest in (False, True):
        rounds = tma.test_centric_rounds(twins, one, farthest=farthest)
        assert listed(rounds) == [[0], [1], [2], [3]]


def test_each_test_row_takes_its_own_row_where_asked() -> None:
    # 0° is nearest to both; the first test row takes it, the second its next nearest.
    train, test = circle([0, 40, 300]), circle([1, 2])
    assert listed(tma.test_centric_rounds(train, test)) == [[0], [1], [2]]
    assert listed(tma.test_centric_rounds(train, test, collision="each")) == [[0, 1], [2]]


def test_the_lower_test_row_chooses_first() -> None:
    # Both want 10°; whoever comes first gets it, though the other is nearer.
    train = circle([10, 60])
    first, second = circle([0, 10]), circle([10, 0])
    for test in (first, second):
        rounds = tma.test_centric_rounds(train, test, collision="each", within="similarity")
        assert sorted(rounds[0].tolist()) == [0, 1]
    # Row 1 (60°) goes to the second: 50° from it in one case, 60° in the other.
    assert listed(tma.test_centric_rounds(train, first, collision="each")) == [[0, 1]]


def test_a_round_by_similarity_begins_with_the_nearest_pair() -> None:
    # 85° is 5° from 90°, 0° is 0° from 0°; then 10° and 80° tie at 10°, the lower row first.
    rounds = tma.test_centric_rounds(X, Y, within="similarity")
    assert listed(rounds)[:2] == [[0, 4], [1, 3]]
    test = circle([5, 90])
    assert listed(tma.test_centric_rounds(circle([0, 89]), test, within="similarity")) == [[1, 0]]


def test_a_farthest_round_by_similarity_begins_with_the_farthest_pair() -> None:
    # 180° is 180° from 0°; 300° is 150° from 90°.
    train = circle([300, 180])
    rounds = tma.test_centric_rounds(train, Y, farthest=True, within="similarity")
    assert listed(rounds) == [[1, 0]]
    assert listed(tma.test_centric_rounds(train, Y, farthest=True)) == [[0, 1]]


def test_what_a_cut_round_takes_does_not_depend_on_how_it_is_sorted() -> None:
    # The nearest pair of the round {0, 1} is row 1 (89° and 90°); a cut keeps row 0.
    train, test = circle([0, 89]), circle([5, 90])
    for within in ("row", "similarity", "shuffled"):
        assert listed(tma.test_centric_rounds(train, test, 1, within=within, exact_limit=True)) == [
            [0]
        ]


@given(embeddings(), st.integers(1, 12), st.booleans())
def test_sorted_rounds_hold_the_rows_of_unsorted_ones(
    pair: Pair, limit: int, farthest: bool
) -> None:
    given = {"limit": min(limit, len(pair[0])), "farthest": farthest, "exact_limit": True}
    plain = tma.test_centric_rounds(*pair, **given)
    for within in ("similarity", "shuffled"):
        found = tma.test_centric_rounds(*pair, **given, within=within)
        assert [sorted(one.tolist()) for one in found] == listed(plain)


def test_a_round_is_shuffled_by_its_seed() -> None:
    train, test = circle(list(range(0, 90, 3))), circle(list(range(1, 90, 9)))
    made = [
        listed(tma.test_centric_rounds(train, test, within="shuffled", seed=seed))
        for seed in (0, 0, 1)
    ]
    assert made[0] == made[1]
    assert made[0] != made[2]
    assert made[0] != listed(tma.test_centric_rounds(train, test))


@pytest.mark.parametrize("limit", [0, 7, 1000])
def test_limits_at_the_ends(limit: int) -> None:
    taken = [row for found in tma.test_centric_rounds(X, Y, limit) for row in found]
    assert sorted(taken) == list(range(min(limit, 7)))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"collision": "both"}, "collision='both'.*set, each"),
        ({"within": "random"}, "within='random'.*row, similarity"),
        ({"limit": -1}, "limit=-1.*greater than or equal to 0"),
        ({"limit": 2.5}, "limit=2.5.*valid integer"),
    ],
)
def test_wrong_rules_are_named(setting: dict[str, object], words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        tma.test_centric_rounds(X, Y, **setting)


@settings(max_examples=150, deadline=None)
@given(
    embeddings(),
    st.one_of(st.none(), st.integers(0, 50)),
    st.booleans(),
    st.sampled_from(["set", "each"]),
    st.sampled_from(["row", "similarity"]),
)
def test_rounds_equal_the_reference(
    pair: Pair, limit: int | None, farthest: bool, collision: str, within: str
) -> None:
    expected = reference.test_centric_rounds(
        *pair, limit, farthest, collision=collision, within=within
    )
    given = {"collision": collision, "within": within}
    assert listed(tma.test_centric_rounds(*pair, limit, farthest, **given)) == expected
    with small_lists(block=7):
        assert listed(tma.test_centric_rounds(*pair, limit, farthest, **given)) == expected


@pytest.mark.parametrize("tests", [300, 700])
def test_many_equal_test_rows_take_one_row_each(tests: int) -> None:
    train = unit(np.random.default_rng(0).standard_normal((900, 8)))
    test = np.repeat(train[:1], tests, axis=0)
    nearest = np.argsort(-np.round(train.astype(float) @ train[0].astype(float), 10), kind="stable")
    found = tma.test_centric_rounds(train, test, collision="each")
    assert found[0].tolist() == sorted(nearest[:tests].tolist())
    assert [len(one) for one in found] == ([300, 300, 300] if tests == 300 else [700, 200])


@pytest.mark.parametrize("collision", ["set", "each"])
def test_crowded_rounds_in_many_dimensions_equal_the_reference(collision: str) -> None:
    for seed, spread in enumerate([1e-8, 1e-6, 1e-4, 1e-2]):
        random = np.random.default_rng(seed)
        centre = random.standard_normal(384)
        train = unit(centre + spread * random.standard_normal((60, 384)))
        test = unit(centre + spread * random.standard_normal((9, 384)))
        train[::9] = train[4]
        expected = reference.test_centric_rounds(train, test, collision=collision)
        assert listed(tma.test_centric_rounds(train, test, collision=collision)) == expected
        with small_lists(block=100):
            assert listed(tma.test_centric_rounds(train, test, collision=collision)) == expected
