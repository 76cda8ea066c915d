from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

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
    quarter = tma.test_centric_rounds(golden["train"], golden["test"], len(golden["train"]) // 4)
    assert [len(r) for r in quarter] == golden["near_quarter_sizes"].tolist()


EACH, SIMILAR = {"collision": "each"}, {"within": "similarity"}


@pytest.mark.parametrize(
    ("train", "test", "given", "expected"),
    [
        # 0° and 85° are nearest to 0° and 90°; then 10° and 80°; then both take 20°; at last 200°,
        # 110° from 90°, and 180°. By similarity 10° and 80° tie, and the lower row is first.
        (X, Y, {}, [[0, 4], [1, 3], [2], [5, 6]]),
        (X, Y, {"limit": 3}, [[0, 4], [1, 3]]),
        (X, Y, {"limit": 3, "exact_limit": True}, [[0, 4], [1]]),
        (X, Y, {"limit": 3, **SIMILAR}, [[0, 4], [1, 3]]),
        # 180° is farthest from 0°, 200° from 90°.
        (X, Y, {"limit": 2, "farthest": True}, [[5, 6]]),
        # Equal rows are taken by ascending number.
        (circle([30, 30, 30]), circle([0]), {}, [[0], [1], [2]]),
        (circle([30, 30, 30]), circle([0]), {"farthest": True}, [[0], [1], [2]]),
        # 0° is nearest to both; of its own the second test row takes its next nearest.
        (circle([0, 40, 300]), circle([1, 2]), {}, [[0], [1], [2]]),
        (circle([0, 40, 300]), circle([1, 2]), EACH, [[0, 1], [2]]),
        # 10° is nearest to both: the lower test row takes it, and the other 60°, though it may be
        # nearer to 10° itself.
        (circle([60, 10]), circle([0, 10]), EACH, [[0, 1]]),
        (circle([60, 10]), circle([0, 10]), EACH | SIMILAR, [[1, 0]]),
        (circle([60, 10]), circle([10, 0]), EACH | SIMILAR, [[1, 0]]),
        # 89° is 1° from 90°, 0° is 5° from 5°.
        (circle([0, 89]), circle([5, 90]), SIMILAR, [[1, 0]]),
        # 180° is 180° from 0°; 300° is 150° from 90°.
        (circle([300, 180]), Y, {"farthest": True}, [[0, 1]]),
        (circle([300, 180]), Y, {"farthest": True, **SIMILAR}, [[1, 0]]),
    ],
)
def test_rounds_by_hand(
    train: NDArray[np.float32],
    test: NDArray[np.float32],
    given: dict[str, Any],
    expected: list[list[int]],
) -> None:
    assert listed(tma.test_centric_rounds(train, test, **given)) == expected


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


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"collision": "both"}, "collision='both'.*set, each"),
        ({"within": "random"}, "within='random'.*row, similarity"),
        ({"limit": -1}, "limit=-1.*a number of at least 0"),
        ({"limit": 2.5}, "limit=2.5.*a whole number"),
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
