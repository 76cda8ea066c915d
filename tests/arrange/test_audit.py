from __future__ import annotations

import numpy as np
import pytest

import tma
from tests.conftest import circle
from tma import Method
from tma.encoders import MiniLM

# Test rows at 0° and 90°; the rounds are [0, 4], [1, 3], [2], [5, 6].
X, Y = circle([0, 10, 20, 80, 85, 180, 200]), circle([0, 90])


def test_an_audit_of_rounds() -> None:
    found = tma.audit(Method("tma_min", limit=5), X, Y)
    assert found.instances == 5
    assert found.rows == 7
    assert found.near_sizes == (2, 2, 1)
    assert found.far_sizes == ()
    np.testing.assert_allclose(found.coverage, [1, np.cos(np.deg2rad(5))], atol=1e-7)
    # 0°, 10° and 20° are nearer to 0°, 80° and 85° to 90°.
    assert found.served.tolist() == [3, 2]
    assert found.hubs == ()
    assert found.agreement is None
    assert "3 of 1 to 2 rows" in str(found)


def test_an_audit_of_both_sides_and_of_what_is_left_out() -> None:
    found = tma.audit(Method("tma_nft", limit=4, exclude_near_duplicates=0.999), X, Y)
    assert (found.left_out, found.near_sizes, found.far_sizes) == (1, (2,), (2,))
    nothing = tma.audit(Method("tma_nft", exclude_near_duplicates=0.99), Y, Y)
    assert (nothing.instances, nothing.left_out, nothing.hubs) == (0, 2, ())
    # Of a pool of three, in which the seed draws row 0 or not.
    for seed in range(9):
        given = {"pool": 3, "seed": seed}
        of_pool = tma.audit(Method("random", exclude_near_duplicates=0.999, **given), X, Y)
        assert of_pool.left_out == (0 in tma.arrange("random", X, Y, **given))


def test_hubs_are_rows_that_several_test_rows_want_most() -> None:
    found = tma.audit(Method("random"), circle([0, 100, 180]), circle([80, 85, 90, 1, 2, 200]))
    assert found.hubs == ((1, 3), (0, 2))
    assert found.near_sizes == ()


def test_an_empty_order_covers_nothing() -> None:
    found = tma.audit(Method("tma_min", limit=0), X, Y)
    assert found.coverage.tolist() == [-1, -1]
    assert found.served.tolist() == [0, 0]


def test_another_encoder_can_agree_or_not() -> None:
    method = Method("nearest", limit=3, weight=0.0)
    same = tma.audit(method, X, Y, other=(X, Y))
    assert (same.agreement, same.shared) == (pytest.approx(1.0), 1.0)
    # Mirrored training rows: what was near to a test row is far from it.
    other = tma.audit(method, X, Y, other=(-X, Y))
    assert other.agreement is not None
    assert other.agreement < 0
    assert other.shared == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match=r"other\[0\] has 6 entries; expected 7, one per row of X"):
        tma.audit(method, X, Y, other=(X[:6], Y))


def test_texts_that_the_encoder_cuts_are_counted(cache: object) -> None:
    texts = ["short", "word " * 400, "word " * 254], ["word " * 255, "short", "a", "b"]
    rows = circle([0, 1, 2]), circle([0, 1, 2, 3])
    found = tma.audit(Method("random"), *rows, texts=texts, encoder=MiniLM())
    assert found.truncated == (pytest.approx(1 / 3), 0.25)
    assert "33.3%" in str(found)
