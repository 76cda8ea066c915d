from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tma
from tests import reference
from tests.conftest import circle, unit
from tma.arrange.duplicates import ngram_overlap

TEXTS = (
    ["one two three four five six", "one two three four", "ten", "seven eight nine ten eleven"],
    ["one two three four FIVE, six", "ten"],
)


def test_near_duplicates_by_cosine() -> None:
    # 2° and 10° from the nearest test row: cosines 0.99939 and 0.98481.
    found = tma.near_duplicates(circle([0, 88, 10, 45]), circle([0, 90]), threshold=0.99)
    assert found.nearest.tolist() == [0, 1, 0, 0]
    np.testing.assert_allclose(found.cosine, [1, 0.9993908, 0.9848078, 0.7071068], atol=1e-6)
    assert found.duplicate.tolist() == [True, True, False, False]
    assert found.overlap is None


def test_a_threshold_of_one_finds_equal_rows() -> None:
    random = np.random.default_rng(0).standard_normal((50, 384))
    rows = unit(random)
    for dtype in (np.float32, np.float16):
        given = rows.astype(dtype)
        assert tma.near_duplicates(given, given[::-1], threshold=1.0).duplicate.all()


def test_texts_without_words_share_nothing() -> None:
    assert ngram_overlap(["!!!", "a"], ["???", ""]).tolist() == [0, 0]
    assert ngram_overlap(["!!!", "a"], ["???", "a"]).tolist() == [0, 1]


@pytest.mark.parametrize(
    "given", [{"threshold": 95}, {"threshold": np.nan}, {"overlap": 0}, {"ngram": 0}]
)
def test_wrong_thresholds_are_named(given: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(given))):
        tma.near_duplicates(circle([0]), circle([0]), **given)


def test_near_duplicates_by_words() -> None:
    X = circle([0, 20, 40, 60])
    found = tma.near_duplicates(X, circle([180, 200]), texts=TEXTS, ngram=3, overlap=0.5)
    # The first test text has 4 trigrams, of which the second training text holds 2; "ten" is
    # shorter than a trigram and found only where it is the whole text.
    assert found.overlap is not None
    assert found.overlap.tolist() == [1.0, 0.5, 1.0, 0.0]
    assert found.duplicate.tolist() == [True, True, True, False]


def test_texts_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"texts\[1\] has 2 entries; expected 1"):
        tma.near_duplicates(circle([0, 1, 2, 3]), circle([0]), texts=TEXTS)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text("ab c.", max_size=15), min_size=1, max_size=6),
    st.lists(st.text("ab c.", max_size=15), min_size=1, max_size=3),
    st.integers(1, 4),
)
def test_the_overlap_equals_the_reference(train: list[str], test: list[str], n: int) -> None:
    expected = [reference.ngram_overlap(text, test, n) for text in train]
    np.testing.assert_allclose(ngram_overlap(train, test, n), expected)
