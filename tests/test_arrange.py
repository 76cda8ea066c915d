from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import tma
from tests.conftest import unit
from tma import reference
from tma.arrange import _ORDERS
from tma.config import ORDERS
from tma.errors import ParameterError

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.npz"))

# Angles in degrees on a circle; test rows at 0 and 90.
ANGLES = [0, 10, 20, 80, 85, 180, 200]


def circle(angles: list[int]) -> NDArray[np.float32]:
    radians = np.deg2rad(angles)
    return unit(np.stack([np.cos(radians), np.sin(radians)], axis=1))


X, Y = circle(ANGLES), circle([0, 90])


def listed(rounds: list[NDArray[np.int64]]) -> list[list[int]]:
    return [r.tolist() for r in rounds]


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
@pytest.mark.parametrize("side", ["near", "far"])
def test_rounds_equal_the_golden_files(path: Path, side: str) -> None:
    golden = np.load(path)
    rounds = tma.test_centric_rounds(golden["train"], golden["test"], farthest=side == "far")
    assert [len(r) for r in rounds] == golden[f"{side}_sizes"].tolist()
    np.testing.assert_array_equal(np.concatenate(rounds), golden[side])


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_a_limit_takes_whole_rounds_as_in_the_golden_files(path: Path) -> None:
    golden = np.load(path)
    train = golden["train"]
    rounds = tma.test_centric_rounds(train, golden["test"], limit=len(train) // 4)
    assert [len(r) for r in rounds] == golden["near_quarter_sizes"].tolist()


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


def test_every_round_takes_the_nearest_that_is_left_for_each_test_row() -> None:
    # 0° and 85° are nearest to 0° and 90°; then 10° and 80°; then both want 20°; at last 200°, 20°
    # nearer to 0° than 180° is, and 180°.
    assert listed(tma.test_centric_rounds(X, Y)) == [[0, 4], [1, 3], [2], [5, 6]]


def test_farthest_rounds_mirror_the_nearest() -> None:
    # 180° is farthest from 0°, 200° (110° away) from 90°.
    assert listed(tma.test_centric_rounds(X, Y, limit=2, farthest=True)) == [[5, 6]]


def test_nft_ends_with_the_farthest_round_and_fft_with_the_nearest() -> None:
    # Half of 4 wanted: one round a side, [0, 4] and [5, 6].
    assert tma.arrange("tma_nft", X, Y, limit=4).tolist() == [0, 4, 5, 6]
    assert tma.arrange("tma_fft", X, Y, limit=4).tolist() == [5, 6, 0, 4]


def test_a_row_in_both_halves_stays_at_its_first_place() -> None:
    # Half of 6 wanted: near [0, 4], [1, 3]; far [5, 6], and then 85° and 0°: rows 4 and 0 again.
    assert tma.arrange("tma_nft", X, Y, limit=6).tolist() == [0, 4, 1, 3, 5, 6]
    assert tma.arrange("tma_fft", X, Y, limit=6).tolist() == [5, 6, 0, 4, 1, 3]


def test_min_and_max_take_one_side_only() -> None:
    assert tma.arrange("tma_min", X, Y, limit=3).tolist() == [0, 4, 1, 3]
    assert tma.arrange("tma_max", X, Y, limit=2).tolist() == [5, 6]


def test_equal_rows_are_taken_in_row_order() -> None:
    twins = np.repeat(circle([30, 30]), 2, axis=0)
    assert listed(tma.test_centric_rounds(twins, circle([0]))) == [[0], [1], [2], [3]]
    assert listed(tma.test_centric_rounds(twins, circle([0]), farthest=True)) == [
        [0],
        [1],
        [2],
        [3],
    ]


def test_random_is_a_seeded_permutation() -> None:
    first = tma.arrange("random", X, Y, seed=1)
    assert sorted(first.tolist()) == list(range(7))
    assert first.tolist() == tma.arrange("random", X, Y, seed=1).tolist()
    assert first.tolist() != tma.arrange("random", X, Y, seed=2).tolist()
    assert len(tma.arrange("random", X, Y, seed=1, limit=3)) == 3


@pytest.mark.parametrize("name", ORDERS)
def test_limit_zero_takes_nothing(name: str) -> None:
    assert tma.arrange(name, X, Y, limit=0).tolist() == []


@pytest.mark.parametrize("name", ORDERS)
def test_without_a_limit_every_row_is_taken_once(name: str) -> None:
    taken = tma.arrange(name, X, Y)
    assert taken.tolist() == tma.arrange(name, X, Y, limit=7).tolist()
    assert taken.tolist() == tma.arrange(name, X, Y, limit=1000).tolist()
    assert taken.dtype == np.int64
    assert sorted(taken.tolist()) == list(range(7))


def test_every_documented_order_exists() -> None:
    assert set(_ORDERS) == set(ORDERS)


def test_inputs_are_not_modified() -> None:
    before = X.copy(), Y.copy()
    for name in ORDERS:
        tma.arrange(name, X, Y, limit=4)
    np.testing.assert_array_equal(X, before[0])
    np.testing.assert_array_equal(Y, before[1])


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        (X * 2, Y, r"X\[0\] has length 2; expected 1"),
        (X, Y[:0], r"Y has shape \(0, 2\)"),
        (X, unit(np.ones((1, 3))), "X has 2 columns and Y 3"),
        (np.where(X[1] == X, np.nan, X), Y, r"X\[1\] has length nan"),
    ],
)
def test_bad_embeddings_are_named(
    train: NDArray[np.float32], test: NDArray[np.float32], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        tma.arrange("tma_min", train, test)


def test_an_unknown_order_lists_the_known() -> None:
    with pytest.raises(ParameterError, match=r"order='nearest_first'.*tma_nft"):
        tma.arrange("nearest_first", X, Y)


def test_tasks_of_another_length_are_refused() -> None:
    with pytest.raises(ParameterError, match="tasks has 2 entries; expected 7"):
        tma.arrange("random", X, Y, tasks=["a", "b"])


@st.composite
def embeddings(draw: st.DrawFn) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    # Few distinct integer directions: equal rows and exact ties are common.
    width = draw(st.integers(1, 4))
    row = st.lists(st.integers(-2, 2), min_size=width, max_size=width).filter(any)
    made = [draw(st.lists(row, min_size=1, max_size=size)) for size in (25, 6)]
    return unit(np.array(made[0], dtype=float)), unit(np.array(made[1], dtype=float))


@settings(max_examples=150, deadline=None)
@given(embeddings(), st.one_of(st.none(), st.integers(0, 30)), st.booleans())
def test_rounds_equal_the_reference(
    pair: tuple[NDArray[np.float32], NDArray[np.float32]], limit: int | None, farthest: bool
) -> None:
    train, test = pair
    expected = reference.test_centric_rounds(train, test, limit, farthest)
    assert listed(tma.test_centric_rounds(train, test, limit, farthest)) == expected


@settings(max_examples=60, deadline=None)
@given(embeddings(), st.integers(0, 30), st.sampled_from(ORDERS))
def test_every_order_takes_a_row_at_most_once(
    pair: tuple[NDArray[np.float32], NDArray[np.float32]], limit: int, name: str
) -> None:
    train, test = pair
    taken = tma.arrange(name, train, test, limit=limit).tolist()
    assert len(set(taken)) == len(taken)
    # Whole rounds of the near and the far half may go past N, each by less than one round.
    assert len(taken) <= min(len(train), limit + 2 * (len(test) - 1)) or limit == 0
