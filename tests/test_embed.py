from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import tma

pytestmark = pytest.mark.usefixtures("cache")


class Letters:
    """An encoder that counts letters: a real one to the protocol, and it counts its calls."""

    name = "letters/1"

    def __init__(self) -> None:
        self.calls = 0

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.calls += 1
        return np.array([[t.count(c) for c in "abc"] for t in texts], dtype=np.float32)


def test_rows_are_divided_by_their_length() -> None:
    rows = tma.embed(["aab", "c"], Letters())
    expected = [[2 / 5**0.5, 1 / 5**0.5, 0], [0, 0, 1]]
    np.testing.assert_allclose(rows, expected, rtol=1e-6)
    assert rows.dtype == np.float32


def test_equal_texts_are_encoded_once() -> None:
    encoder = Letters()
    first = tma.embed(["abc", "abcc"], encoder)
    np.testing.assert_array_equal(tma.embed(["abc", "abcc"], encoder), first)
    assert encoder.calls == 1
    tma.embed(["abcc", "abc"], encoder)
    assert encoder.calls == 2


def test_another_encoder_does_not_read_the_cache_of_the_first() -> None:
    first, second = Letters(), Letters()
    second.name = "letters/2"
    tma.embed(["bca"], first)
    tma.embed(["bca"], second)
    assert second.calls == 1


def test_the_file_is_the_one_that_numpy_writes(own_cache: Path) -> None:
    rows = tma.embed(["abc", "b"], Letters())
    [file] = (own_cache / "embeddings").glob("*.npy")
    expected = io.BytesIO()
    np.save(expected, rows)
    assert file.read_bytes() == expected.getvalue()


def test_a_text_that_gives_no_direction_is_named() -> None:
    with pytest.raises(ValueError, match="embedding row 1 has length 0"):
        tma.embed(["a", "xyz"], Letters())


def test_real_sentences_lie_near_their_paraphrase(cache: Path) -> None:
    rows = tma.embed(
        [
            "What is the capital of France?",
            "Name the French capital city.",
            "Add seven and twelve.",
        ]
    )
    assert rows.shape == (3, 384)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    near, far = rows[0] @ rows[1], rows[0] @ rows[2]
    assert near > 0.7
    assert far < 0.3
    assert len(list((cache / "embeddings").glob("*.npy"))) >= 1
