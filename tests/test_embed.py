from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file

import tma
from tma.embed import Shards, _unit, embed_pair
from tma.errors import ParameterError

pytestmark = pytest.mark.usefixtures("cache")


@given(st.integers(1, 9), st.integers(1, 12), st.sampled_from([np.float32, np.float64]))
def test_ready_rows_are_the_same_bits_in_blocks_as_at_once(
    block: int, count: int, kind: type[np.floating[Any]]
) -> None:
    ready = np.random.default_rng(count).standard_normal((count, 5)).astype(kind)
    length = np.linalg.norm(ready.astype(np.float64), axis=1, keepdims=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["tma.embed"], "SHARD", block)
        rows = _unit(ready)
    assert rows.tobytes() == (ready / length).astype(np.float32).tobytes()


class Letters:
    """An encoder that counts letters: a real one to the protocol, and it keeps what it is given."""

    name = "letters/1"

    def __init__(self) -> None:
        self.given: list[str] = []

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.given += texts
        return np.array([[t.count(c) for c in "abc"] for t in texts], dtype=np.float32)


def test_rows_are_divided_by_their_length() -> None:
    rows = tma.embed(["aab", "c"], Letters())
    expected = [[2 / 5**0.5, 1 / 5**0.5, 0], [0, 0, 1]]
    np.testing.assert_allclose(rows, expected, rtol=1e-6)
    assert rows.dtype == np.float32


def test_a_text_is_encoded_once_in_whatever_list_it_stands(own_cache: Path) -> None:
    encoder = Letters()
    first = tma.embed(["abc", "abcc", "a", "abc"], encoder)
    assert encoder.given == ["abcc", "abc", "a"]
    again = tma.embed(["a", "b", "abcc", "abc"], encoder)
    assert encoder.given[3:] == ["b"]
    np.testing.assert_array_equal(again[[3, 2, 0, 3]], first)
    np.testing.assert_array_equal(again[1], [0, 1, 0])
    assert len(list(own_cache.glob("embeddings/*/*.safetensors"))) == 2
    other = Letters()
    other.name = "letters/2"
    tma.embed(["abc"], other)
    assert other.given == ["abc"]


def test_a_shard_holds_keys_beside_unit_rows(own_cache: Path) -> None:
    tma.embed(["c", "bb"], Letters())
    [file] = own_cache.glob("embeddings/*/*")
    assert file.name == "00000001.safetensors"
    (own_cache / "plain").touch()
    assert file.stat().st_mode == (own_cache / "plain").stat().st_mode
    shard = load_file(file)
    assert shard["rows"].tolist() == [[0, 1, 0], [0, 0, 1]]
    # What `b2sum -l 128` prints of the two texts.
    assert [bytes(key).hex() for key in shard["keys"]] == [
        "eb197d391df54cd9d10ac517d4cc24a0",
        "caec17f4b8159d486ca352209a0fc2d5",
    ]


def test_a_text_that_gives_no_direction_is_named() -> None:
    with pytest.raises(ValueError, match="embedding row 1 has length 0"):
        tma.embed(["a", "xyz", "b", "xyz", "zyx"], Letters())


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("one text", r"^data='one text' .* a list of texts, such as \["),
        (b"one", r"^data=b'one' .* a list of texts, such as \["),
        ([], r"^data=\[\] .*; expected at least one text\."),
        (["a", None], r"^data\[1\]=None cannot be used; expected a text\."),
        (["a", 3, "b"], r"^data\[1\]=3 cannot be used; expected a text\."),
        ({"prompt": ["a"]}, r"^data is a dict; expected a dataset of tma.load, or a list of"),
        (pd.DataFrame({"prompt": ["a"]}), r"^data is a DataFrame; expected a dataset of tma.load"),
        (None, r"^data is a NoneType; expected a dataset"),
        (Dataset.from_dict({"prompt": ["a"]}), r"expected the columns of tma.load, response too"),
    ],
)
def test_what_is_no_list_of_texts_is_named(data: Any, words: str) -> None:
    encoder = Letters()
    with pytest.raises(ParameterError, match=words):
        tma.embed(data, encoder)
    assert encoder.given == []


@pytest.mark.usefixtures("own_cache")
def test_the_prompt_alone_is_embedded_if_asked_for() -> None:
    data = Dataset.from_dict({"prompt": ["a", "bb"], "response": ["ccc", "b"]})
    encoder = Letters()
    tma.embed(data, encoder)
    assert encoder.given == ["a ccc", "bb b"]
    tma.embed(data, encoder, text="prompt")
    assert encoder.given[2:] == ["bb", "a"]
    with pytest.raises(ParameterError, match=r"^text='answer' .* one of: both, prompt\."):
        tma.embed(data, encoder, text="answer")


class Nameless:
    """An encoder without a name, which gives plain lists."""

    def __init__(self) -> None:
        self.given: list[str] = []

    def encode(self, texts: Sequence[str]) -> list[list[float]]:
        self.given += texts
        return [[len(text), 0.0] for text in texts]


def test_without_a_name_nothing_is_cached_which_is_said_once(
    own_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = Nameless()
    for _ in range(2):
        rows = tma.embed(["a", "bb", "a"], encoder)
    assert rows.tolist() == [[1, 0]] * 3
    assert encoder.given == ["bb", "a"] * 2
    assert not own_cache.exists()
    [record] = caplog.records
    words = r"embeddings of tests.test_embed.Nameless \(it has no name\) are not cached: .* `name`"
    assert re.match(words, record.getMessage())


@pytest.fixture
def sets() -> tuple[Dataset, Dataset]:
    """Three training instances and two to test on."""
    train = {"prompt": ["a", "b", "c"], "response": ["a", "c", "c"]}
    return Dataset.from_dict(train), Dataset.from_dict(
        {"prompt": ["b", "a"], "response": ["b"] * 2}
    )


def test_a_pair_has_the_rows_of_both_sets(sets: tuple[Dataset, Dataset]) -> None:
    X, Y = embed_pair(*sets, Letters())
    half = 0.5**0.5
    np.testing.assert_allclose(X, [[1, 0, 0], [0, half, half], [0, 0, 1]], rtol=1e-6)
    np.testing.assert_allclose(Y, [[0, 1, 0], [half, half, 0]], rtol=1e-6)
    some, same = embed_pair(*sets, Letters(), rows=[2, 0])
    assert some.tolist() == X[[2, 0]].tolist()
    assert same.tolist() == Y.tolist()


def saved(folder: Path, train: object, test: object) -> tuple[Path, Path]:
    np.save(folder / "train.npy", np.asarray(train))
    np.save(folder / "test.npy", np.asarray(test))
    return folder / "train.npy", folder / "test.npy"


def test_ready_rows_are_taken_from_two_files(
    tmp_path: Path, own_cache: Path, sets: tuple[Dataset, Dataset]
) -> None:
    unit = np.array([[0.6, 0.8], [0, 1], [1, 1e-9]], np.float32)
    files = saved(tmp_path, unit, [[3.0, 4.0], [0.0, 2.0]])
    X, Y = embed_pair(*sets, files)
    assert X.tobytes() == unit.tobytes()
    assert Y.dtype == np.float32
    np.testing.assert_allclose(Y, [[0.6, 0.8], [0, 1]], rtol=1e-6)
    some, _ = embed_pair(*sets, ",".join(map(str, files)), rows=np.array([1, 2]))
    assert some.tobytes() == unit[1:].tobytes()
    assert not own_cache.exists()


@pytest.mark.parametrize(
    ("train", "words"),
    [
        (np.ones((4, 2)), r"train.npy' has 4 entries; expected 3, one per row of its set, in the"),
        (np.ones(3), r"train.npy, of shape \(3,\) and type float64, cannot be used; expected one"),
        (np.ones((3, 2), int), r"train.npy, of shape \(3, 2\) and type int64, cannot be used"),
        (np.array([[None]] * 3), r"train.npy' cannot be read: "),
    ],
)
def test_files_that_hold_other_rows_are_named(
    tmp_path: Path, sets: tuple[Dataset, Dataset], train: object, words: str
) -> None:
    with pytest.raises(ParameterError, match=words):
        embed_pair(*sets, saved(tmp_path, train, np.ones((2, 2))))


def test_a_ready_row_without_direction_is_named(
    tmp_path: Path, sets: tuple[Dataset, Dataset]
) -> None:
    for bad in (0.0, np.nan):
        files = saved(tmp_path, [[1.0, 0], [bad, 0], [1, 0]], np.ones((2, 2)))
        with pytest.raises(ValueError, match=f"embedding row 1 has length {bad}; expected > 0"):
            embed_pair(*sets, files)


def test_ready_rows_embed_no_other_texts(tmp_path: Path) -> None:
    files = saved(tmp_path, np.ones((3, 2)), np.ones((2, 2)))
    with pytest.raises(ParameterError, match=r"train.npy.* cannot embed 1 other texts\. Give both"):
        tma.embed(["a"], files)


class Odd:
    """An encoder that gives an array of its own."""

    name = "odd/1"

    def __init__(self, *shape: int) -> None:
        self.shape = shape

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        assert texts
        return np.ones(self.shape, np.float32)


@pytest.mark.parametrize("shape", [(1, 3), (3, 3), (2,), (0,)])
def test_an_encoder_that_gives_too_few_rows_is_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"shape \([\d, ]+\) for 2 texts; expected one row a text"):
        tma.embed(["a", "b"], Odd(*shape))


@pytest.mark.usefixtures("own_cache")
def test_two_models_of_one_name_are_told_apart_by_their_columns() -> None:
    tma.embed(["a", "b"], Odd(2, 3))
    with pytest.raises(ValueError, match=r"rows of 4 columns beside rows of 3 .* another name"):
        tma.embed(["a", "c", "b"], Odd(1, 4))


@pytest.mark.parametrize("damage", ["cut", "empty", "changed"])
def test_a_damaged_shard_is_named_once_and_made_again(
    own_cache: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = Letters()
    rows = tma.embed(["abc", "b"], encoder)
    tma.embed(["c"], encoder)
    [file, _] = sorted(own_cache.glob("embeddings/*/*.safetensors"))
    raw = file.read_bytes()
    file.write_bytes(
        {"cut": raw[:-1], "empty": b"", "changed": raw[:-50] + b"?" + raw[-49:]}[damage]
    )
    encoder.given.clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            again = tma.embed(["abc", "b", "c"], encoder)
            np.testing.assert_array_equal(again, [*rows, [0, 0, 1]])
    assert encoder.given == ["abc", "b"]
    [record] = caplog.records
    assert record.getMessage().startswith(f"{file} is damaged (")
    names = sorted(found.name for found in file.parent.iterdir())
    assert names == ["00000001.damaged", "00000002.safetensors", "00000003.safetensors"]


@given(draw=st.data())
def test_a_shard_with_another_byte_or_a_shorter_one_gives_no_other_rows(
    draw: st.DataObject,
) -> None:
    keys = [bytes([number]) * 16 for number in range(3)]
    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "shards"
        written = Shards(folder, keys)
        with written.writing():
            written.add(keys, rows)
        file = folder / "00000001.safetensors"
        raw = bytearray(file.read_bytes())
        raw[draw.draw(st.integers(0, len(raw) - 1))] = draw.draw(st.integers(0, 255))
        file.write_bytes(raw[: draw.draw(st.integers(len(raw) - 20, len(raw)))])
        read = Shards(folder, keys)
        read.read()
        assert list(read.missing) == keys or read.of(keys).tolist() == rows.tolist()


class Stopped(Letters):
    """An encoder that is stopped by the user at its 5,000th text."""

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        if len(self.given) + len(texts) > 5000:
            raise KeyboardInterrupt
        return super().encode(texts)


def test_what_was_written_before_an_interruption_is_not_encoded_again(own_cache: Path) -> None:
    texts = [f"a {row:04}" for row in range(6000)]
    with pytest.raises(KeyboardInterrupt):
        tma.embed(texts, Stopped())
    assert len(list(own_cache.glob("embeddings/*/*"))) == 1
    encoder = Letters()
    assert tma.embed(texts, encoder).shape == (6000, 3)
    assert encoder.given == texts[4096:]


PROCESS = """
import sys, time
import numpy as np
import tma

class Slow:
    name = "slow/1"
    def encode(self, texts):
        print(*texts, flush=True)
        time.sleep(1)
        return np.array([[len(text), 1] for text in texts], np.float32)

print(f"{tma.embed(sys.argv[1:], Slow())[0, 0]:.4f}")
"""


def test_two_processes_encode_a_text_once(own_cache: Path) -> None:
    here = os.environ | {"TMA_CACHE": str(own_cache)}

    def start(*texts: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", PROCESS, *texts]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=here)

    with start("aaa", "b") as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "aaa b\n"
        with start("aaa", "cc") as second:
            assert second.communicate(timeout=60) == ("cc\n0.9487\n", None)
        assert first.communicate(timeout=60) == ("0.9487\n", None)
    names = sorted(file.name for file in own_cache.glob("embeddings/*/*"))
    assert names == ["00000001.safetensors", "00000002.safetensors"]


def test_what_a_killed_process_left_goes_with_the_next_shard(own_cache: Path) -> None:
    tma.embed(["a"], Letters())
    [folder] = own_cache.glob("embeddings/*/")
    (folder / ".new-0123-half").mkdir()
    tma.embed(["b"], Letters())
    names = sorted(file.name for file in folder.iterdir())
    assert names == ["00000001.safetensors", "00000002.safetensors"]


@pytest.mark.usefixtures("own_cache")
def test_only_long_work_shows_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    texts = [f"b {row}" for row in range(1201)]
    tma.embed(texts[:200], Letters())
    assert capsys.readouterr().err == ""
    tma.embed(texts, Letters())
    shown = capsys.readouterr().err
    assert "embeddings: 100%" in shown
    assert " 1001/1001 [" in shown


def test_real_sentences_lie_near_their_paraphrase(cache: Path) -> None:
    rows = tma.embed(
        ["What is the capital of France?", "Name the French capital city.", "Add seven and twelve."]
    )
    assert rows.shape == (3, 384)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    near, far = rows[0] @ rows[1], rows[0] @ rows[2]
    assert near > 0.7
    assert far < 0.3
    assert list(cache.glob("embeddings/*/*.safetensors"))


def test_a_cluster_that_is_none_is_refused_even_where_all_rows_are_cached() -> None:
    with pytest.raises(ParameterError, match="cluster='spark' cannot be used"):
        tma.embed(["a text"], cluster="spark")
