from __future__ import annotations

import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tma
from tests import reference
from tests.conftest import circle, unit
from tma.arrange.duplicates import ALIKE, OVERLAP, words

ENDS = ("aru", "eni", "osk", "ilb", "uma", "ope")
OTHER = [
    ("How many moons has Mars?", "Two"),
    ("Name a river of France.", "The Loire flows through Orléans and Tours."),
    ("Translate into German: good morning", "Guten Morgen"),
    ("Who wrote the novel about a white whale?", "Herman Melville, in 1851"),
    ("Which planet has the most rings?", "Saturn is the planet with the most rings."),
]
QUESTION = ("Which metal melts in the hand and was found in 1875?", "Gallium does both")
PASSAGE = (
    "The old lighthouse on the northern cape was built from red granite by sixty masons who lived "
    "in tents through two winters and carried every stone up a path cut into the cliff"
)


def found(train: list[list[tuple[str, str]]], test: list[tuple[str, str]]) -> list[tuple[int, ...]]:
    """Return (row, turn, test row) of each leak among the training rows and some others."""
    table = tma.leaks([[pair] for pair in OTHER] + train, [[pair] for pair in test])
    lines = zip(table["row"] - len(OTHER), table["turn"], table["test_row"], strict=True)
    return [tuple(map(int, line)) for line in lines]


def test_near_duplicates_by_cosine() -> None:
    # 2° and 10° from the nearest test row: cosines 0.99939 and 0.98481.
    near = tma.near_duplicates(circle([0, 88, 10, 45]), circle([0, 90]), threshold=0.99)
    assert near.nearest.tolist() == [0, 1, 0, 0]
    np.testing.assert_allclose(near.cosine, [1, 0.9993908, 0.9848078, 0.7071068], atol=1e-6)
    assert near.duplicate.tolist() == [True, True, False, False]


def test_a_threshold_of_one_finds_equal_rows() -> None:
    random = np.random.default_rng(0).standard_normal((50, 384))
    rows = unit(random)
    for dtype in (np.float32, np.float16):
        same = rows.astype(dtype)
        assert tma.near_duplicates(same, same[::-1], threshold=1.0).duplicate.all()


@pytest.mark.parametrize("threshold", [95, np.nan, 0])
def test_wrong_thresholds_are_named(threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold"):
        tma.near_duplicates(circle([0]), circle([0]), threshold)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don’t, DON'T: stop!", ["dont", "dont", "stop"]),
        ("cafe\u0301 CAFÉ ﬁne Straße", ["café", "café", "fine", "strasse"]),
        ("法国的 Capital, 東京?", ["法", "国", "的", "capital", "東", "京"]),
        ("snake_case, 3.5 · ???", ["snake", "case", "3", "5"]),
        ("so\u00adft zero\u200bwidth", ["soft", "zerowidth"]),
    ],
)
def test_words_have_no_case_and_no_punctuation(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@pytest.mark.parametrize(
    "leak",
    [
        [QUESTION],
        [OTHER[1], QUESTION],
        [("WHICH METAL melts, in the hand; and was found in 1875", "gallium does both.")],
        [("Which metal melts in your hand and was found in 1875?", "Gallium does both")],
        [(f"{PASSAGE} Which metal melts in the hand and was found in 1875? {PASSAGE}", "No idea")],
        [("Which metal melts in the hand and was found in 1875?", "It is not known to me at all")],
        [("Here is a quiz:", "Which metal melts in the hand and was found in 1875? Gallium does")],
    ],
    ids=["exact", "second turn", "case", "edited", "embedded", "other answer", "in the response"],
)
def test_a_test_text_is_found_however_it_stands_there(leak: list[tuple[str, str]]) -> None:
    assert found([leak], [("What is the capital of Peru?", "Lima"), QUESTION]) == [
        (0, len(leak), 1)
    ]


@pytest.mark.parametrize(
    ("test", "train"),
    [
        ("largest planet please", "moon the largest planet please river"),
        ("zirconium", "she said zirconium twice"),
        ("法国的首都是哪一座城市", "今天我们复习地理。请问法国的首都是哪一座城市呢，答案是巴黎"),
        ("cafe\u0301 cre\u0300me pour deux", "un café crème pour deux personnes"),
        ("เมืองหลวงของฝรั่งเศส", "อยากรู้ว่าเมืองหลวงของฝรั่งเศสคืออะไร"),
    ],
)
def test_a_short_test_text_is_found_inside_a_longer_one(test: str, train: str) -> None:
    assert found([[(train, "yes")]], [(test, "")]) == [(0, 1, 0)]


def test_another_question_to_the_same_passage_is_no_leak() -> None:
    questions = (
        "How many masons worked on the tower?",
        "Which colour do ships see from far away at noon?",
        "Where did all the workers sleep during those cold months?",
    )
    asked = [[(f"{PASSAGE}. {question}", "Read it again")] for question in questions]
    assert found(asked[:2], [asked[2][0]]) == []
    assert found(asked, [asked[2][0]]) == [(2, 1, 0)]


def test_what_many_rows_share_is_no_leak_unless_the_whole_exchange_is() -> None:
    greeting = [[("Hello there my friend", f"Answer {k} is number {k + 1}")] for k in range(40)]
    test = [("Hello there my friend", "")]
    assert found([[("Yes", "Hello there my friend")]], test) == [(0, 1, 0)]
    many = [[(f"Hello there my friend, I am writer number {k}", "Hi")] for k in range(60)]
    assert found(many, test) == []
    assert found([*many, *greeting], test) == [(60 + k, 1, 0) for k in range(40)]


def test_a_template_weighs_nothing_beside_what_it_is_filled_with() -> None:
    asked = [
        (f"Say in one short sentence where you could meet a creature like {name}", "In the wild")
        for name in (f"{first}{last}" for first in "bdfgklmnprst" for last in ENDS)
    ]
    rows = [[pair] for pair in asked[:-1]]
    assert found(rows, [asked[-1]]) == []
    assert found(rows, [asked[7]]) == [(7, 1, 0)]


def test_the_table_gives_both_texts_and_scores() -> None:
    X, Y = circle([0, 60]), circle([60, 0])
    test = [[("What is the capital of Peru?", "Lima")], [QUESTION]]
    table = tma.leaks([[OTHER[0], QUESTION], [OTHER[2]]], test, X, Y)
    assert table.to_dict("records") == [
        {
            "row": 0,
            "turn": 2,
            "test_row": 1,
            "overlap": 1.0,
            "cosine": 1.0,
            "text": "Which metal melts in the hand and was found in 1875? Gallium does both",
            "test_text": "Which metal melts in the hand and was found in 1875? Gallium does both",
        }
    ]
    without = tma.leaks([[QUESTION]], test)
    assert without["cosine"].isna().all()
    assert tma.leaks([[OTHER[0]]], test).columns.tolist() == table.columns.tolist()
    assert tma.leaks([[QUESTION]], [[("???", "")]]).empty


def test_half_of_a_text_is_enough_where_the_embedding_agrees() -> None:
    half = [[("Which metal boils at the hand or not found in ore?", "Gallium does neither")]]
    train, test = [[pair] for pair in OTHER] + half, [[QUESTION]]
    X = circle([90, 90, 90, 90, 90, 10])
    near = tma.leaks(train, test, X, circle([0]))
    assert near["row"].tolist() == [5]
    assert ALIKE[1] <= near["overlap"][0] < OVERLAP
    assert tma.leaks(train, test).empty
    assert tma.leaks(train, test, X, circle([40])).empty


def test_embeddings_of_another_number_of_rows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"train has 1 entry; expected 2"):
        tma.leaks([[QUESTION]], [[QUESTION]], circle([0, 1]), circle([0]))
    with pytest.raises(ValueError, match="Y=None"):
        tma.leaks([[QUESTION]], [[QUESTION]], circle([0]))


@pytest.mark.parametrize("order", ["nearest", "tma_nft", "random"])
def test_an_order_without_leaks_leaves_nothing_out(order: str) -> None:
    X, Y = circle([0, 10, 20]), circle([0])
    exchanges = ([[one] for one in OTHER[:3]], [[QUESTION]])
    found = tma.leaks(*exchanges, X, Y)
    assert found.empty
    assert [found[name].dtype.kind for name in ("row", "turn", "test_row", "cosine")] == [*"iiif"]
    made = tma.arrange(order, X, Y, exchanges=exchanges, drop_leaks=True)
    assert sorted(made.tolist()) == [0, 1, 2]


def test_an_order_leaves_leaks_out(caplog: pytest.LogCaptureFixture) -> None:
    train = [[OTHER[0]], [OTHER[1], QUESTION], [OTHER[2]], [QUESTION]]
    exchanges = (train, [[QUESTION]])
    X, Y = circle([0, 10, 20, 30]), circle([0])
    with caplog.at_level(logging.WARNING):
        order = tma.arrange("nearest", X, Y, exchanges=exchanges, drop_leaks=True)
    assert order.tolist() == [0, 2]
    assert "2 of 4 training rows hold a test text" in caplog.text
    given = {"exchanges": exchanges, "drop_leaks": True, "exclude_near_duplicates": 0.99}
    assert tma.arrange("nearest", X, Y, **given).tolist() == [2]
    pooled = tma.arrange("random", X, Y, exchanges=exchanges, drop_leaks=True, pool=4)
    assert sorted(pooled.tolist()) == [0, 2]
    with pytest.raises(ValueError, match="exchanges=None"):
        tma.arrange("nearest", X, Y, drop_leaks=True)


TEXTS = st.lists(st.sampled_from(["a", "b", "c", "d", "e", "f", "g"]), max_size=7).map(" ".join)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=9), st.tuples(TEXTS, TEXTS), TEXTS)
def test_the_overlap_equals_the_reference(
    train: list[tuple[str, str]], test: tuple[str, str], other: str
) -> None:
    train = [*train, (f"{other} {test[0]}", test[1])]
    tests = [test] if any(test) else [("a", "")]
    expected = [reference.overlap(train, tests, (i, 0)) for i in range(len(train))]
    # Of equal embeddings half a text is enough, and every overlap that counts is seen.
    same = np.ones((len(train), 1), dtype=np.float32)
    table = tma.leaks([[pair] for pair in train], [[pair] for pair in tests], same, same[:1])
    overlap = np.zeros(len(train))
    overlap[table["row"]] = table["overlap"]
    np.testing.assert_allclose(overlap, expected, atol=1e-9)
