from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import tma
from tests.conftest import circle
from tma import Method
from tma.arrange import findings
from tma.arrange.audit_rows import audit_rows
from tma.errors import ParameterError

# Test rows at 0° and 90°; the rounds are [0, 4], [1, 3], [2], [5, 6].
X, Y = circle([0, 10, 20, 80, 85, 180, 200]), circle([0, 90])


class Angles:
    """Reads the first number of a text as an angle; cuts texts of more than 40 letters."""

    name = "angles/1"

    def encode(self, texts: Sequence[str], /) -> NDArray[np.float32]:
        return circle([int(next(iter(re.findall(r"\d+", text)))) for text in texts])

    def truncated(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        return np.array([len(text) > 40 for text in texts])


class Words:
    """A tokenizer of words."""

    def __call__(self, texts: Sequence[str], **_: Any) -> dict[str, list[list[str]]]:
        return {"input_ids": [text.split() for text in texts]}


TRAIN = [
    {"task": "turn", "prompt": "turn 10 degrees to the left", "response": "done"},
    {"task": "turn", "prompt": "turn 20 degrees to the right", "response": "yes"},
    {"task": "turn", "prompt": "turn 10 degrees to the left", "response": "done"},
    {"task": "ask", "prompt": "which way is 90 on a compass", "response": "east"},
    {"task": "ask", "prompt": "an owl turns its head 180 degrees and more", "response": "south"},
    {"task": "ask", "prompt": "which way is 270 on a compass", "response": ""},
]
TEST = [
    {"prompt": "11 is the number of players in a team of what"},
    {"prompt": "which way is 90 on a compass", "response": "east"},
]


def audited(method: Any = "tma_min", **given: Any) -> tma.Audit:
    train, test = tma.load(TRAIN), tma.load(TEST, answers="optional")
    return tma.audit(train, test, method, encoder=Angles(), **given)


def test_an_audit_of_rounds() -> None:
    found = audit_rows(Method("tma_min", limit=5), X, Y)
    assert found.order.tolist() == [0, 4, 1, 3, 2]
    assert found.rows == 7
    assert found.near_sizes == (2, 2, 1)
    assert found.far_sizes == ()
    # 0°, 10° and 20° are nearer to 0°, 80° and 85° to 90°.
    assert found.nearest.tolist() == [0, 1, 0, 1, 0]
    angles = [0, 5, 10, 10, 20]
    np.testing.assert_allclose(found.similarity, np.cos(np.deg2rad(angles)), atol=1e-7)
    assert found.nearest_train.tolist() == [0, 4]
    np.testing.assert_allclose(found.coverage, [1, np.cos(np.deg2rad(5))], atol=1e-7)
    assert found.served.tolist() == [3, 2]
    assert found.hubs == ()
    assert found.agreement is None
    assert "3 of 1 to 2 rows" in str(found)


def test_an_audit_of_both_sides_and_of_what_is_left_out() -> None:
    found = audit_rows(Method("tma_nft", limit=4, exclude_near_duplicates=0.999), X, Y)
    assert (found.rows, found.left_out, found.near_sizes, found.far_sizes) == (7, 1, (2,), (2,))
    assert found.order.tolist() == [1, 4, 5, 6]
    nothing = audit_rows(Method("tma_nft", exclude_near_duplicates=0.99), Y, Y)
    assert (len(nothing.order), nothing.left_out, nothing.hubs) == (0, 2, ())
    # Of a pool of three, in which the seed draws row 0 or not.
    for seed in range(9):
        given = {"pool": 3, "seed": seed}
        of_pool = audit_rows(Method("random", exclude_near_duplicates=0.999, **given), X, Y)
        assert of_pool.left_out == (0 in tma.arrange("random", X, Y, **given))


def test_a_whole_order_of_two_sides_needs_one_of_them() -> None:
    for name, sides in (("tma_nft", ((2, 2, 1, 2), ())), ("tma_fft", ((), (2, 2, 2, 1)))):
        found = audit_rows(Method(name), X, Y)
        assert (found.near_sizes, found.far_sizes) == sides
        assert sorted(found.order) == [*range(7)]


def test_hubs_are_rows_that_several_test_rows_want_most() -> None:
    rows = circle([0, 100, 180]), circle([80, 85, 90, 1, 2, 200])
    for limit in (None, 1):  # they are looked for in all rows, not in the order
        found = audit_rows(Method("random", limit=limit), *rows)
        assert found.hubs == ((1, 3), (0, 2))
        assert found.near_sizes == ()


def test_an_empty_order_covers_nothing() -> None:
    found = audit_rows(Method("tma_min", limit=0), X, Y)
    assert found.coverage.tolist() == [-1, -1]
    assert found.served.tolist() == [0, 0]
    whole = audited(Method("tma_min", limit=0))
    assert whole.badly_covered["similarity"].tolist() == [-1, -1]
    assert (len(whole.first_rows), len(whole.duplicates)) == (0, 0)


def test_another_encoder_can_agree_or_not() -> None:
    method = Method("nearest", limit=3, weight=0.0)
    same = audit_rows(method, X, Y, other=(X, Y))
    assert (same.agreement, same.shared) == (pytest.approx(1.0), 1.0)
    # Mirrored training rows: what was near to a test row is far from it.
    other = audit_rows(method, X, Y, other=(-X, Y))
    assert other.agreement is not None
    assert other.agreement < 0
    assert other.shared == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match=r"other\[0\] has 6 entries; expected 7, one per row of X"):
        audit_rows(method, X, Y, other=(X[:6], Y))
    assert audited("nearest", other=Angles()).shared == 1


def test_what_is_wrong_with_a_dataset_is_listed_by_place(cache: object) -> None:
    found = audited()
    assert found.order.tolist() == [0, 3, 1, 2, 4]
    leak = found.leaks.iloc[0]
    assert (len(found.leaks), leak["row"], leak["turn"], leak["test_row"]) == (1, 3, 1, 1)
    assert (leak["place"], leak["test_place"]) == ("(given rows), row 4", "(given rows), row 2")
    assert leak["text"] == leak["test_text"] == "which way is 90 on a compass east"
    twice = found.duplicates.to_dict("records")
    assert [(one["row"], one["of_row"], one["kind"]) for one in twice] == [
        (2, 0, "equal"),
        (1, 0, "near"),  # ten degrees apart
    ]
    assert twice[1]["cosine"] == pytest.approx(np.cos(np.deg2rad(10)), abs=1e-6)
    assert found.badly_covered["test_row"].tolist() == [0, 1]
    assert found.badly_covered["row"].tolist() == [0, 3]
    assert found.dropped.to_dict("records") == [
        {"set": "train", "place": "(given rows), row 6", "reason": "no response"}
    ]
    first = found.first_rows
    assert first["round"].tolist() == ["near 1", "near 1", "near 2", "near 2", "near 3"]
    assert first["test_row"].tolist() == [0, 1, 0, 0, 1]
    assert [*found.groups] == ["turn", "ask", "turn", "turn", "ask"]


def test_texts_that_are_cut_are_listed(cache: object) -> None:
    found = audited(tokenizer=Words(), max_tokens=7)
    cut = found.truncated[["set", "row", "by", "tokens"]].to_numpy().tolist()
    assert [line[:3] for line in cut] == [
        ["train", 4, "encoder"],
        ["train", 3, "max_tokens"],
        ["train", 4, "max_tokens"],
        ["test", 0, "encoder"],
        ["test", 0, "max_tokens"],
        ["test", 1, "max_tokens"],
    ]
    assert [line[3] for line in cut if line[2] == "max_tokens"] == [8, 10, 11, 8]
    assert found.checked == {
        "encoder": {"train": 5, "test": 2},
        "max_tokens": {"train": 5, "test": 2},
    }
    assert "truncated by max_tokens       2 of 5 train texts, 2 of 2 test texts" in str(found)
    with pytest.raises(ParameterError, match="max_tokens=5 cannot be used; expected a tokenizer"):
        audited(max_tokens=5)


def test_gold_answers_that_choose_data_are_warned_of(cache: object) -> None:
    both, prompts = audited(), audited(text="prompt")
    assert both.embedded == "prompt and response"
    assert "1 of 2 test rows are embedded with their responses" in both.warnings[0]
    assert (prompts.embedded, prompts.warnings) == ("the prompt", ())
    assert max(map(len, str(both).splitlines())) <= 80
    assert prompts.summary()["warnings"] == []


def test_an_order_that_is_made_is_not_made_again(
    cache: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tma.arrange import duplicates, rounds

    train, test = tma.load(TRAIN), tma.load(TEST, answers="optional")
    made = tma.arrange_dataset(train, test, Method("tma_min", drop_leaks=True), encoder=Angles())
    monkeypatch.setattr(rounds, "rounds", None)
    monkeypatch.setattr(duplicates, "leaks", None)
    monkeypatch.setattr(findings, "find_leaks", None)
    found = tma.audit(train, test, made)
    assert found.order.tolist() == made.rows.tolist() == [0, 1, 2, 4]
    assert (found.rows, found.left_out, found.leaks["row"].tolist()) == (5, 1, [3])


def test_an_order_without_embeddings_is_audited_with_them(cache: object) -> None:
    found = audited(Method("random", limit=2, pool=3, seed=1))
    assert found.rows == 3
    assert found.similarity.max() < 1
    assert len(found.first_rows) == 2


def test_near_duplicates_are_looked_for_in_the_first_rows_only(
    cache: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(findings, "COMPARED", 2)
    found = audited()
    assert found.duplicates["kind"].tolist() == ["equal"]
    assert "1 equal, 0 near (cosine ≥ 0.95) in the first 2" in str(found)
