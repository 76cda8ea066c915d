"""Grids of runs on a Ray cluster of local nodes."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import tma
from tests.conftest import stopped
from tma import cli
from tma.cluster import check_room
from tma.errors import ParameterError, StateError, TrainingError
from tma.runs import parallel
from tma.runs.config import RunConfig
from tma.runs.store import stored

ray = pytest.importorskip("ray")

_MEMORY = 80 * 2**20


@pytest.fixture
def config(config: RunConfig) -> RunConfig:
    return replace(config, limit=6, eval_every=2)


@pytest.fixture(autouse=True)
def apart(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs of the test are kept by themselves; those made here have one thread."""
    use(tmp_path / "shared", cache, monkeypatch)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def use(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take a new cache; fetched files are shared."""
    monkeypatch.setenv("TMA_CACHE", str(folder))
    folder.mkdir()
    for shared in ("assets", "models"):
        (folder / shared).symlink_to(cache / shared)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A cluster whose only node, the head, takes no tasks."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_worker_niceness", "0")  # else a busy machine would starve them
    own = {"num_cpus": 0, "object_store_memory": _MEMORY, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=own)
    yield made
    ray.shutdown()
    made.shutdown()


class Watch(threading.Thread):
    """Notes which files of runs are written, and kills the first node that trains a run."""

    def __init__(self, folder: Path, cluster: Any, nodes: Sequence[Any]) -> None:
        super().__init__(daemon=True)
        self.folder, self.cluster, self.nodes = folder / "runs", cluster, nodes
        self.killed: Any = None
        self.ended = threading.Event()
        self.written: dict[str, set[tuple[str, int]]] = {"config": set(), "manifest": set()}
        self.start()

    def run(self) -> None:
        while not self.ended.wait(0.05):
            with suppress(OSError, psutil.Error):  # files and processes come and go
                self._look()

    def _look(self) -> None:
        for name, seen in self.written.items():
            for file in self.folder.glob(f"*/{name}.json"):
                seen.add((file.parent.name, file.stat().st_mtime_ns))
        if self.killed is None:
            self.killed = next(filter(self._trains, self.nodes), None)
            if self.killed is not None:
                self.cluster.remove_node(self.killed, allow_graceful=False)

    def _trains(self, node: Any) -> bool:
        """Return whether a process of a node holds the lock of a run whose settings stand."""
        (raylet,) = node.all_processes["raylet"]
        children = psutil.Process(raylet.process.pid).children(recursive=True)
        held = [Path(file.path) for child in children for file in child.open_files()]
        runs = [file.with_suffix("") for file in held if file.parent == self.folder]
        return any((run / "config.json").is_file() for run in runs)

    def times(self, name: str) -> list[int]:
        """Return how often each run's file of a name was written."""
        self.ended.set()
        self.join()
        keys = [key for key, _ in self.written[name]]
        return sorted(keys.count(key) for key in {*keys})


@pytest.mark.slow
def test_a_grid_outlives_a_node_with_the_tables_of_one_process(
    config: RunConfig,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cluster: Any,
) -> None:
    long = [replace(config, seed=seed, epochs=60, eval_every=10**6) for seed in range(3)]
    short = [replace(config, order="nearest", seed=seed) for seed in range(2)]
    grid = {"long": long, "short": [*short, short[0]]}
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=_MEMORY) for _ in range(3)]
    watch = Watch(tmp_path / "shared", cluster, nodes)
    made = tma.run_all(grid, cluster=f"ray:{cluster.address}")
    assert watch.killed is not None
    assert watch.times("config") == [1, 1, 1, 1, 2]  # that of the killed node was begun twice
    assert watch.times("manifest") == [1, 1, 1, 1, 1]
    assert made["short"][2].folder == made["short"][0].folder
    ray.shutdown()
    assert tma.run_all(grid, cluster="ray:192.0.2.1:1") == made  # nothing is left to be made
    use(tmp_path / "alone", cache, monkeypatch)
    for run in (*made["long"], *made["short"]):
        one = tma.run(run.config)
        assert one.folder != run.folder
        assert one.manifest["sums"] == run.manifest["sums"]
        assert one.manifest["hardware"] == run.manifest["hardware"]


@pytest.mark.slow
def test_a_cluster_goes_on_with_an_interrupted_run_and_names_one_that_fails(
    config: RunConfig, cluster: Any
) -> None:
    wrong = replace(config, seed=21, learning_rate=1e30)
    half, left = replace(config, seed=22), replace(config, seed=23, epochs=10_000)
    cluster.add_node(num_cpus=1, object_store_memory=_MEMORY)
    stopped(half)
    message = r"the run of order='random', seed=21 failed: step \d: .* is (nan|inf)"
    with pytest.raises(TrainingError, match=message):
        tma.run_all({"all": [half, wrong, left]}, cluster=f"ray:{cluster.address}")
    found = stored(half)
    assert found is not None
    assert found.training["step"].tolist() == [1, 2]
    assert stored(left) is None


@pytest.mark.slow
def test_a_cluster_without_room_says_so_at_first_and_when_its_last_node_dies(
    config: RunConfig, cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "WAIT", 1)
    check = partial(check_room, seconds=1)
    monkeypatch.setattr(parallel, "check_room", check)
    given: dict[str, Any] = {"configs": {"one": [replace(config, epochs=10_000)]}}
    given |= {"cluster": f"ray:{cluster.address}"}
    with pytest.raises(ParameterError, match="no room for a worker of CPU 1 within 1 s"):
        tma.run_all(**given)
    monkeypatch.setattr(parallel, "check_room", check_room)
    node = cluster.add_node(num_cpus=1, object_store_memory=_MEMORY)
    watch = Watch(tmp_path / "shared", cluster, [node])
    with pytest.raises(
        ParameterError, match="has no room left: no CPU, of which a worker takes 1,"
    ):
        tma.run_all(**given)
    assert watch.killed is node
    assert watch.times("manifest") == []


def test_a_node_that_does_not_share_the_cache_makes_nothing(
    config: RunConfig, tmp_path: Path
) -> None:
    with pytest.raises(StateError, match=f"{tmp_path} of the calling machine is not what .* Set "):
        parallel._make_shared(config, tmp_path / "sign")
    assert stored(config) is None


def test_processes_and_a_cluster_are_not_both_given(config: RunConfig) -> None:
    with pytest.raises(ParameterError, match="processes=2 and cluster='ray' both say"):
        tma.run_all({"one": [config]}, processes=2, cluster="ray")


def test_the_study_takes_jobs_or_a_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["study", "--scale", "pocket", "--jobs", "2", "--cluster", "ray"]) == 2
    assert "--jobs 2 and --cluster ray both say how many runs are made" in capsys.readouterr().err
