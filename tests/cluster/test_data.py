"""Embedding and arranging on three nodes of this machine, of which one may be killed."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

import tma
from tests.conftest import unit
from tma import cluster as cluster_module
from tma.arrange import sharded
from tma.cluster import check_room, connect
from tma.errors import ParameterError, TmaError

ray = pytest.importorskip("ray")
ROOT = Path(__file__).parents[2]
MB = 2**20


class Letters:
    """Rows of the counts of a text's letters; each text that is encoded leaves a line in a file."""

    name = "letters/1"

    def __init__(self, said: Path, seconds: float = 0) -> None:
        self.said, self.seconds = said, seconds

    def encode(self, texts: Sequence[str], /) -> NDArray[np.float32]:
        with self.said.open("a", encoding="utf-8") as stream:
            stream.write("".join(f"{text}\n" for text in texts))
        time.sleep(self.seconds)
        return np.array([[text.count(c) + 0.01 for c in "abcdefgh"] for text in texts], np.float32)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A cluster: a head without CPUs, and three nodes with one each and 80 MB for objects."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patched:
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        patched.setenv("PYTHONPATH", path)
        patched.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patched.setenv("TMA_CACHE", str(tmp_path_factory.mktemp("cache")))
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        made.workers = [made.add_node(num_cpus=1, object_store_memory=80 * MB) for _ in range(3)]
        made.wait_for_nodes()
        connect(f"ray:{made.address}")
        yield made
        ray.shutdown()
        made.shutdown()


@contextmanager
def losing_a_node(nodes: Any, when: Callable[[], bool]) -> Iterator[None]:
    """Kill one of the nodes as soon as something has happened; in the end add another."""

    def kill() -> None:
        while not when():
            time.sleep(0.05)
        nodes.remove_node(nodes.workers.pop(), allow_graceful=False)

    thread = Thread(target=kill)
    thread.start()
    yield
    thread.join()
    assert len(nodes.workers) == 2
    nodes.workers.append(nodes.add_node(num_cpus=1, object_store_memory=80 * MB))


def words(count: int) -> list[str]:
    random = np.random.default_rng(0)
    return ["".join(random.choice([*"abcdefgh"], 12)) for _ in range(count)]


@pytest.mark.slow
def test_texts_are_embedded_as_in_one_process_though_a_node_is_lost(
    nodes: Any, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = words(5000)
    said = tmp_path / "said.txt"
    with losing_a_node(nodes, said.exists):
        found = tma.embed(texts, Letters(said, seconds=0.5), cluster="ray")
    monkeypatch.setenv("TMA_CACHE", str(tmp_path / "another"))
    assert found.tobytes() == tma.embed(texts, Letters(tmp_path / "here.txt")).tobytes()
    before = said.stat().st_size
    monkeypatch.setenv("TMA_CACHE", str(own_cache))
    assert tma.embed(texts, Letters(said), cluster="ray").tobytes() == found.tobytes()
    assert said.stat().st_size == before  # all rows are in the cache


@pytest.mark.slow
def test_files_are_embedded_once_though_a_node_is_lost(nodes: Any, tmp_path: Path) -> None:
    texts, files = words(40), []
    for at in range(8):
        files.append(tmp_path / f"part-{at}.jsonl")
        rows = [{"prompt": f"{at} {text}", "response": "a"} for text in texts]
        files[-1].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    out, said = tmp_path / "out", tmp_path / "said.txt"
    with losing_a_node(nodes, lambda: len([*out.glob("*.npy")]) >= 2):
        results = tma.embed_shards(files, out, Letters(said, seconds=1), cluster="ray")
    for file, result in zip(files, results, strict=True):
        expected = tma.load(file, split="all")
        here = tma.embed(expected, Letters(tmp_path / "here.txt"))
        assert np.load(result).tobytes() == here.tobytes()
        ids = pq.read_table(result.removesuffix(".npy") + ".parquet")
        assert ids["id"].to_pylist() == expected["id"][:]
    suffixes = sorted(path.suffix for path in out.iterdir())
    assert suffixes == [".json"] + [".npy"] * 8 + [".parquet"] * 8
    # The lost node was at work on one file; no other was encoded twice.
    assert 8 * 40 <= len(said.read_text("utf-8").splitlines()) <= 9 * 40
    (out / "part-3.npy").unlink()
    before = said.stat().st_size
    again = tma.embed_shards(files, out, Letters(said), cluster="ray")
    assert again == results and (out / "part-3.npy").is_file()
    assert said.stat().st_size in (before, before + before // 8)
    with pytest.raises(ParameterError, match=r'expected a new folder: its rows are of .*"both"'):
        tma.embed_shards(files, out, Letters(said), cluster="ray", text="prompt")


@pytest.mark.slow
def test_rows_that_a_worker_leaves_out_are_told_here(
    nodes: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "part.jsonl"
    rows = [{"prompt": "ab", "response": "c"}, {"prompt": "d", "response": ""}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    encoder = Letters(tmp_path / "said.txt")
    (result,) = tma.embed_shards([file], tmp_path / "out", encoder, cluster="ray")
    assert len(np.load(result)) == 1
    assert f"{file}: " in caplog.text and "1 left out without prompt or response" in caplog.text


@pytest.mark.slow
def test_after_an_error_no_more_texts_are_encoded(
    nodes: Any, tmp_path: Path, own_cache: Path
) -> None:
    said = tmp_path / "said.txt"
    encode = Letters(said, seconds=1).encode

    class Fails:
        name = "fails/1"

        def encode(self, texts: Sequence[str], /) -> NDArray[np.float32]:
            if "fail" * 100 in texts:
                raise ValueError("a text is odd")
            return encode(texts)

    with pytest.raises(ValueError, match="a text is odd"):
        tma.embed(["fail" * 100, *words(5000)], Fails(), cluster="ray")
    time.sleep(5)  # three nodes could encode all nine slices that are left
    encoded = said.read_text("utf-8").splitlines() if said.exists() else []
    assert len(encoded) <= 6 * 512  # what had begun


@pytest.mark.slow
def test_a_process_that_dies_again_and_again_is_an_error(nodes: Any) -> None:
    def dies() -> NDArray[np.float32]:
        os._exit(1)

    with pytest.raises(TmaError, match=r"a worker was killed 4 times, .* Give smaller files"):
        tma.arrange("tma_min", [dies], np.eye(2), cluster="ray")  # type: ignore[list-item]


@pytest.mark.slow
def test_shards_are_arranged_as_in_one_process_though_a_node_is_lost(
    nodes: Any, tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    X, Y = (unit(np.round(random.standard_normal((n, 64)), 1)) for n in (60_000, 50))
    for at, part in enumerate(np.split(X, 12)):
        np.save(tmp_path / f"{at:02}.npy", part)
    expected = tma.arrange("tma_nft", X, Y, limit=3000)
    started: list[int] = []
    asked = sharded._Search._asked

    def tell(*given: Any) -> Any:
        started.append(1)
        return asked(*given)

    losing = losing_a_node(nodes, lambda: bool(started))
    with losing, pytest.MonkeyPatch.context() as patched:
        patched.setattr(sharded._Search, "_asked", tell)
        found = tma.arrange("tma_nft", tmp_path, Y, limit=3000, cluster="ray")
    assert found.tobytes() == expected.tobytes()
    nearest = tma.arrange("nearest", tmp_path, Y, cluster="ray")
    assert nearest.tobytes() == tma.arrange("nearest", X, Y).tobytes()


@pytest.mark.slow
def test_a_dataset_is_arranged_as_in_one_process(nodes: Any, tmp_path: Path) -> None:
    train, test = (tma.load("pocket", split=split) for split in ("train", "test"))
    for method in (
        tma.Method("tma_nft", limit=64, drop_leaks=True),
        tma.Method("nearest", limit=64, pool=200),
    ):
        here, there = (tma.arrange_dataset(train, test, method, cluster=c) for c in (None, "ray"))
        assert here.ids == there.ids
        assert here.receipt.sha256 == there.receipt.sha256
    with pytest.raises(ParameterError, match=r"order='cluster' .* on a cluster"):
        tma.arrange_dataset(train, test, "cluster", cluster="ray")


@pytest.mark.slow
def test_an_array_that_no_node_can_hold_is_arranged(nodes: Any) -> None:
    random = np.random.default_rng(1)
    X, Y = (unit(random.standard_normal((n, 256))) for n in (100_000, 20))  # 102 MB
    found = tma.arrange("tma_min", X, Y, limit=200, cluster="ray")
    assert found.tobytes() == tma.arrange("tma_min", X, Y, limit=200).tobytes()


@pytest.mark.slow
def test_an_error_in_a_worker_is_the_error_of_one_process(nodes: Any, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"none\.npy' cannot be read: .*No such file"):
        tma.arrange("tma_min", [tmp_path / "none.npy"], np.eye(2), cluster="ray")


@pytest.mark.slow
def test_no_room_is_said_and_not_waited_for(nodes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    message = r"no room for a worker of GPU 2 within 1 s; it has CPU \d of \d free, GPU 0 of 0 free"
    with pytest.raises(ParameterError, match=message):
        check_room(ray, {"GPU": 2}, seconds=1)
    monkeypatch.setattr(cluster_module, "WAIT", 1.0)

    @ray.remote(num_cpus=1)  # type: ignore[untyped-decorator]
    def busy() -> None:
        time.sleep(60)

    taken = [busy.remote() for _ in range(3)]
    try:
        with pytest.raises(
            ParameterError, match="no room for a worker of CPU 1 within 1 s; it has"
        ):
            tma.arrange("tma_min", np.eye(2), np.eye(2), cluster="ray")
    finally:
        for one in taken:
            ray.cancel(one, force=True)


@pytest.mark.slow
def test_a_second_cluster_is_refused(nodes: Any) -> None:
    with pytest.raises(ParameterError, match=r"this process is connected to .* already"):
        connect("ray:10.0.0.1:6379")
    assert connect(f"ray:{nodes.address}") is ray


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("spark", r'expected "ray" or "ray:ADDRESS", such as "ray:10\.0\.0\.1:6379"'),
        ("ray:", 'expected "ray" or "ray:ADDRESS"'),
        (None, 'expected "ray" or "ray:ADDRESS"'),
        ("ray:head", "expected an address of the form HOST:PORT, not 'head'"),
        ("ray:127.0.0.1:1", "nothing answers at 127.0.0.1:1 .* Start one with `ray start --head`"),
    ],
)
def test_a_cluster_that_cannot_be_used_is_refused(value: Any, message: str) -> None:
    ray.shutdown()
    with pytest.raises(ParameterError, match=message):
        connect(value)
