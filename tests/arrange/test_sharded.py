"""The order of rows in shards is that of the same rows in one place, without any cluster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import tma
from tests.conftest import circle, embeddings, small_lists, unit
from tma.arrange import sharded
from tma.arrange.orders import ordered
from tma.arrange.rounds import Inputs
from tma.arrange.sharded import ShardedRows, merged, shard_sources
from tma.arrange.spec import Method
from tma.errors import ParameterError

Pair = tuple[NDArray[np.float32], NDArray[np.float32]]


class Here:
    """Runs functions in this process, and counts what shards are asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def put(self, value: Any) -> Any:
        return value

    def submit(self, function: Callable[..., Any], *given: Any, parts: int = 1) -> Any:
        if function is sharded.listed:
            self.asked.append((given[1], len(given[2].tests)))
        return function(*given)

    def result(self, submitted: Any) -> Any:
        return submitted


def in_shards(
    shards: list[Any], Y: NDArray[np.float32], name: str, tasks: Here | None = None, **given: Any
) -> list[int]:
    X = ShardedRows(shards, tasks or Here())
    return ordered(Inputs(Method(name, **given), X, Y, np.arange(len(X)))).tolist()


ORDERS: list[tuple[str, dict[str, Any]]] = [
    ("tma_nft", {}),
    ("tma_max", {"collision": "each", "exact_limit": True}),
    ("tma_rt", {"within": "similarity", "seed": 3}),
    ("tma_rounds[1:3]", {"within": "shuffled"}),
    ("nearest", {}),
    ("farthest", {"measure": "euclidean_max"}),
]


@settings(max_examples=60)
@given(embeddings(), st.data())
def test_an_order_over_shards_is_that_of_one_process(pair: Pair, data: st.DataObject) -> None:
    X, Y = pair
    shards = data.draw(st.integers(1, min(5, len(X))))
    places = st.integers(1, max(1, len(X) - 1))
    cuts = data.draw(st.lists(places, min_size=shards - 1, max_size=shards - 1, unique=True))
    name, given = data.draw(st.sampled_from(ORDERS))
    limit = data.draw(st.none() | st.integers(1, len(X)))
    parts = np.split(X, sorted(cuts))
    try:
        expected = tma.arrange(name, X, Y, limit=limit, **given).tolist()
    except ValueError as error:  # such as a mean AD of 0
        with pytest.raises(ValueError, match="mean"):
            in_shards(parts, Y, name, limit=limit, **given)
        assert "mean" in str(error)
        return
    assert in_shards(parts, Y, name, limit=limit, **given) == expected
    with small_lists(), pytest.MonkeyPatch.context() as patched:
        patched.setattr(sharded, "_SPARE", 0)
        patched.setattr(sharded, "FAN", 2)
        assert in_shards(parts, Y, name, limit=limit, **given) == expected


def test_equal_rows_are_taken_by_their_number_in_all_shards() -> None:
    shards = [circle([40, 0]), circle([0]), circle([0, 5])]
    assert in_shards(shards, circle([0]), "tma_min") == [1, 2, 3, 4, 0]


def test_a_shard_that_cannot_matter_is_not_asked_again() -> None:
    # Two clusters, a shard each; each test row's list is filled several times.
    random = np.random.default_rng(0)
    spread = 0.1 * random.standard_normal((2, 600, 4))
    near, far = (unit(spread[k] + np.eye(4)[k]) for k in (0, 1))
    Y = unit(np.eye(4)[:2] + 0.01)
    tasks = Here()
    with small_lists():
        order = in_shards([near, far], Y, "tma_min", tasks, limit=400)
    assert order == tma.arrange("tma_min", np.concatenate([near, far]), Y, limit=400).tolist()
    assert tasks.asked[:2] == [(0, 2), (600, 2)]  # nothing is known yet
    later = tasks.asked[4:]
    assert len(later) > 4 and {tests for _, tests in later} == {1}


def test_lists_are_merged_by_test_row_then_key_then_row() -> None:
    step, key = 2**35, 10**10
    one = np.array([-key, 5, step - key]), np.array([7, 8, 9])
    two = np.array([-key, 4, step - 3]), np.array([2, 3, 4])
    code, row = merged(2, one, two)
    assert row.tolist() == [2, 7, 9, 4]
    assert code.tolist() == [-key, -key, step - key, step - 3]


def test_shards_are_files_of_a_folder_by_name(tmp_path: Path) -> None:
    rows = circle([0, 10, 20, 90])
    for name, part in (("b", rows[2:]), ("a", rows[:2])):
        np.save(tmp_path / f"{name}.npy", part)
    sources = shard_sources(tmp_path, 1)
    assert [Path(source).name for source in sources] == ["a.npy", "b.npy"]
    assert in_shards(sources, circle([89]), "tma_min") == [3, 2, 1, 0]
    uri = [f"file://{source}" for source in sources]  # as of an object store, by pyarrow
    assert in_shards(shard_sources(uri, 1), circle([89]), "tma_min") == [3, 2, 1, 0]
    assert shard_sources(uri[0], 1) == uri[:1]


def test_a_folder_of_an_object_store_is_listed_by_name(tmp_path: Path) -> None:
    for name, degrees in (("b 1%#", 20), ("a", 0)):
        np.save(tmp_path / f"{name}.npy", circle([degrees]))
    (tmp_path / "settings.json").write_text("{}", "utf-8")
    sources = shard_sources(f"file://{tmp_path}/", 1)
    assert sources == [f"file://{tmp_path}/a.npy", f"file://{tmp_path}/b%201%25%23.npy"]
    assert in_shards(sources, circle([19]), "tma_min") == [1, 0]
    with pytest.raises(ParameterError, match=r"X='file:.*/none' cannot be read: .*No such file"):
        shard_sources(f"file://{tmp_path}/none", 1)


def test_a_shard_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    file = tmp_path / "rows.npy"
    with pytest.raises(ParameterError, match=r"X='.*rows\.npy' cannot be read: .*No such file"):
        in_shards(shard_sources([file], 1), circle([0]), "tma_min")
    np.save(file, 2 * circle([0, 10]))
    with pytest.raises(ValueError, match=r"rows\.npy\[0\] has length 2; expected 1"):
        in_shards(shard_sources([file], 1), circle([0]), "tma_min")
    with pytest.raises(ValueError, match=r"has 3 columns and .*rows\.npy 2; embed all with one"):
        ShardedRows([str(file), np.eye(3, dtype=np.float32)], Here())
    (tmp_path / "empty").mkdir()
    for nothing in ([], tmp_path / "empty", ["a.npy", circle([0])]):
        with pytest.raises(ParameterError, match="expected an array, a folder of"):
            shard_sources(nothing, 1)


def test_files_without_a_cluster_are_refused(tmp_path: Path) -> None:
    for files in (tmp_path, str(tmp_path), ["rows.npy"]):
        with pytest.raises(ParameterError, match=r'an array .* or cluster="ray", which reads'):
            tma.arrange("tma_min", files, circle([0]))


def test_what_a_cluster_cannot_make_is_refused_before_anything_is_read() -> None:
    class Unread:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"{name} was asked for")

    unread: Any = Unread()
    with pytest.raises(ParameterError, match=r"order='coarse_nearest' .* on a cluster"):
        tma.arrange_dataset(unread, unread, "coarse_nearest", cluster="ray")
    with pytest.raises(ParameterError, match="cluster='spark' cannot be used"):
        tma.arrange_dataset(unread, unread, "tma_nft", cluster="spark")


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("random", {}, "expected an order of TMA, nearest or farthest, on a cluster"),
        ("coarse_nearest", {}, "expected an order of TMA, nearest or farthest, on a cluster"),
        ("tma_nft", {"pool": 3}, "pool=3 cannot be used; expected none where X is files"),
        ("tma_nft", {"drop_leaks": True}, "drop_leaks=True cannot be used; expected none where X"),
        ("nearest", {"measure": "bigram_kl"}, "expected a measure of embeddings on a cluster"),
    ],
)
def test_what_does_not_run_on_a_cluster_is_refused(
    name: str, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ParameterError, match=message):
        tma.arrange(name, ["rows.npy"], circle([0]), cluster="ray", **given)
