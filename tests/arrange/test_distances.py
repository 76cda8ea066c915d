from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import tma
from tests import reference
from tests.conftest import circle, embeddings
from tma.arrange.distances import bigram_divergences, several_prefix_distances, task_distances
from tma.arrange.exact_knn import UnitRows
from tma.arrange.spec import MEASURES
from tma.errors import ParameterError

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("*.npz"))
Pair = tuple[NDArray[np.float32], NDArray[np.float32]]

TEXT = st.text("ab c.", max_size=12)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_wsd_equals_the_golden_files(path: Path) -> None:
    golden = np.load(path)
    wsd = tma.weighted_similarity_distance(golden["train"], golden["test"])
    # The files' distances are rounded to 10 decimals before they are averaged; w is about 14.
    np.testing.assert_allclose(wsd, golden["wsd"], rtol=0, atol=2e-9)
    # With w = 0 WSD is MD, with w = 1 it is MD + AD.
    MD, both = (
        tma.weighted_similarity_distance(golden["train"], golden["test"], w) for w in (0, 1)
    )
    weight = MD.mean() / (both - MD).mean()
    assert weight == pytest.approx(float(golden["wsd_weight"]), abs=1e-9)
    groups = [np.flatnonzero(golden["task"] == task) for task in range(golden["task"].max() + 1)]
    of_tasks = task_distances(UnitRows(golden["train"], "X"), golden["test"], groups)
    np.testing.assert_allclose(of_tasks, golden["task_wsd"], rtol=0, atol=2e-9)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
@pytest.mark.parametrize("measure", MEASURES[:-1])
def test_prefix_distances_equal_the_golden_files(path: Path, measure: str) -> None:
    golden = np.load(path)
    found = tma.prefix_distances(golden["train"], golden["test"], golden["prefix"], measure)
    np.testing.assert_allclose(found, golden[measure], rtol=0, atol=1e-10)


def test_wsd_by_hand() -> None:
    # 60° is 60° from 0° and 30° from 90°: cosines 0.5 and 0.866.
    wsd = tma.weighted_similarity_distance(circle([60, 180]), circle([0, 90]), weight=2.0)
    cosines = [0.5, math.sqrt(3) / 2]
    assert wsd[0] == pytest.approx(-max(cosines) - 2 * sum(cosines) / 2, abs=1e-7)
    assert wsd[1] == pytest.approx(0 + 2 * 0.5, abs=1e-7)
    # MD is -0.866 and 0, AD is -0.683 and 0.5: w = mean(MD)/mean(AD) = 4.732.
    own = tma.weighted_similarity_distance(circle([60, 180]), circle([0, 90]))
    assert own[1] == pytest.approx(0.5 * -0.8660254 / (-0.6830127 + 0.5), abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(embeddings(), st.sampled_from(MEASURES[:-1]), st.data())
def test_prefix_distances_equal_the_reference(
    pair: Pair, measure: str, data: st.DataObject
) -> None:
    train, test = pair
    steps = data.draw(st.lists(st.integers(1, len(train)), max_size=5))
    means = [np.linalg.norm(rows.astype(float).mean(axis=0)) for rows in (test, train)]
    means += [np.linalg.norm(train[:k].astype(float).mean(axis=0)) for k in steps]
    if measure == "cosine_centroid" and min(means) < 1e-3:
        return  # a mean without a direction
    expected = [reference.distance(train[:k], test, measure) for k in steps]
    found = several_prefix_distances(train, [train, test], steps, measure)
    np.testing.assert_allclose(found[1], expected, rtol=0, atol=2e-8)
    assert found[1].tolist() == tma.prefix_distances(train, test, steps, measure).tolist()


def test_data_without_a_direction_or_a_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="cancel out"):
        tma.prefix_distances(circle([0, 180]), circle([0]), [1, 2], "cosine_centroid")
    with pytest.raises(ValueError, match=r"mean\(AD\) is .*give weight"):
        tma.weighted_similarity_distance(circle([0]), circle([90, 270]))
    with pytest.raises(ValueError, match=r"X\[1\] has length 3"):
        tma.near_duplicates(circle([0, 1]) * np.array([[1], [3]]), circle([0]))


def test_bigram_divergence_by_hand() -> None:
    # Bigrams: "a b" in both, "b c" in the test text only; each counts 0.5 more.
    p, q = (1.5 / 3, 1.5 / 3), (1.5 / 2, 0.5 / 2)
    expected = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert tma.prefix_distances(["a b"], ["a, b c"], [1], "bigram_kl")[0] == pytest.approx(expected)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(TEXT, min_size=1, max_size=6),
    st.lists(st.lists(TEXT, min_size=1, max_size=3), min_size=1, max_size=4),
    st.data(),
)
def test_bigram_divergences_of_many_test_sets_equal_the_reference(
    train: list[str], tests: list[list[str]], data: st.DataObject
) -> None:
    train = [*train, "a b", "a, B"]
    steps = data.draw(st.lists(st.integers(1, len(train)), max_size=5))
    found = several_prefix_distances(train, tests, steps, "bigram_kl")
    assert found.shape == (len(tests), len(steps))
    for of_test, test in zip(found, tests, strict=True):
        one = tma.prefix_distances(train, test, steps, "bigram_kl")
        assert of_test.tolist() == one.tolist()
        expected = [reference.bigram_divergence(train[:k], test, train) for k in steps]
        np.testing.assert_allclose(of_test, expected, rtol=0, atol=1e-10)
    of_rows = [reference.bigram_divergence([text], tests[0], train) for text in train]
    rows = bigram_divergences(train, tests[:1])[0]
    np.testing.assert_allclose(rows, of_rows, rtol=0, atol=1e-10)


def test_a_test_set_without_bigrams_is_refused_beside_another() -> None:
    for tests in ([["a b"], ["b"]], [["b"]]):
        with pytest.raises(ValueError, match="X and Y hold no bigram"):
            several_prefix_distances(["a"], tests, [1], "bigram_kl")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"measure": "cosine"}, "measure='cosine'.*cosine_avg"),
        ({"steps": [1, 9]}, r"steps\[1\]=9.*1 to 3"),
        ({"steps": [0]}, r"steps\[0\]=0"),
        ({"steps": [1.5]}, "whole numbers"),
        ({"measure": "bigram_kl"}, "X='ndarray'.*texts"),
    ],
)
def test_wrong_settings_are_named(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        tma.prefix_distances(circle([0, 1, 2]), circle([0]), **({"steps": [1]} | given))
