"""Runs side by side: each in a process of its own, with its threads pinned to its cores.

A step of a small model keeps two cores busy only part of the time: two runs with one thread each
finish sooner than one after the other with two threads. Threads that wait for each other beside
other work make a step several times slower, so each has a core of its own. After an interruption
the same call goes on: finished runs are read, others continue from their last state.

On a Ray cluster a run is a task, with a GPU or one thread. The store, which all nodes share, stays
the truth: its keys name the runs, its locks let one task make each.
"""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tma.arrange.orders import pool_rows
from tma.arrange.spec import Numbers
from tma.cluster import RETRIES, WAIT, check_cluster, check_left, check_room, connect
from tma.data.load import fingerprint
from tma.embed import embed_pair
from tma.errors import (
    ParameterError,
    StateError,
    TmaError,
    TrainingError,
    check_count,
    first_line,
)
from tma.runs.config import RunConfig, load_aim, load_both
from tma.runs.execute import run
from tma.runs.store import Run, published_folder, stored
from tma.store import cache_dir, canonical_json, writing

if TYPE_CHECKING:
    from datasets import Dataset

_ENVIRONMENT = {
    # glibc keeps freed blocks of up to 32 MB for the next step, whose pages it would clear anew.
    "GLIBC_TUNABLES": "glibc.malloc.arena_max=1:glibc.malloc.mmap_threshold=33554432:"
    "glibc.malloc.trim_threshold=2147483648",
    # Every step has other lengths: keep some compiled kernels, not those of all shapes.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "400",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}


def run_all(
    configs: Mapping[str, Sequence[RunConfig]],
    *,
    processes: int | None = None,
    cluster: str | None = None,
) -> dict[str, list[Run]]:
    """Return the finished runs of these settings: from the store, or made now.

    Args:
        configs: settings by any name, such as that of the order; equal settings are run once.
        processes: runs at a time, each with its share of the cores and the memory of a run; None:
            two on a CPU with two cores or more, else one.
        cluster: "ray" or "ray:ADDRESS", a Ray cluster whose nodes share the cache folder, and the
            files that the settings name: as many runs at a time as it has GPUs or, without one,
            CPUs. The numbers are those of one process with one thread. None: this machine.

    Raises:
        ParameterError: `configs` is no dict of lists of settings, `processes` is below 1 or given
            with a cluster, or the cluster cannot be reached or has no room for a run.
        TmaError: what `tma.run` raises, with the name of the run; the other runs are stopped, and
            go on from their last states when they are asked for again.
    """
    import torch
    from tqdm import tqdm

    if not isinstance(configs, Mapping) or not all(
        isinstance(group, Sequence) and all(isinstance(one, RunConfig) for one in group)
        for group in configs.values()
    ):
        raise ParameterError(
            f"configs of type {type(configs).__name__} cannot be used; expected a dict of lists of "
            'RunConfig, such as {"tma_nft": [config]}.'
        )
    if processes is not None:
        check_count("processes", processes, 1)
    if processes is not None and cluster is not None:
        raise ParameterError(
            f"processes={processes} and cluster={cluster!r} both say how many runs are made at a "
            "time. Give one of the two; a cluster makes as many as it has GPUs or CPUs."
        )
    if cluster is not None:
        check_cluster(cluster)
    # By their text: `columns` makes settings that cannot be hashed.
    distinct = {canonical_json(c.to_json()): c for group in configs.values() for c in group}
    missing = [config for config in distinct.values() if stored(config) is None]
    usual = 1 if torch.cuda.is_available() else min(2, torch.get_num_threads())
    processes = min(processes or usual, len(missing))
    if processes > 1 or (missing and cluster is not None):
        embed_all(missing)
        threads = max(1, torch.get_num_threads() // processes)
        finished = (
            make_runs(missing, processes, threads)
            if cluster is None
            else make_runs_on(cluster, missing)
        )
        for _ in tqdm(finished, desc="runs", total=len(missing), unit="run"):
            pass
    return {name: [run(config) for config in group] for name, group in configs.items()}


def make_runs(configs: Sequence[RunConfig], jobs: int, threads: int = 1) -> Iterator[RunConfig]:
    """Make runs in the order given, `jobs` at a time; yield the settings of each as it finishes.

    Each of a run's threads has a core of its own while there are enough. After an error, Ctrl-C or
    SIGTERM the runs under way are stopped, and go on when they are asked for again.
    """
    from joblib.externals.loky.process_executor import ProcessPoolExecutor

    # Where there are too few cores, jobs share them.
    usable = cycle(sorted(os.sched_getaffinity(0)))
    free = [list(islice(usable, threads)) for _ in range(jobs)]
    left = list(configs)
    under_way = dict[Any, tuple[RunConfig, ProcessPoolExecutor, list[int]]]()
    with _stopped_by_sigterm():
        try:
            while left or under_way:
                while left and free:
                    config, cores = left.pop(0), free.pop(0)
                    # One worker, used once: its memory is free again when the run is finished.
                    worker = ProcessPoolExecutor(1, env=_environment(threads))
                    future = worker.submit(_make, config, cores, os.getpid())
                    under_way[future] = (config, worker, cores)
                for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                    config, worker, cores = under_way[future]
                    _check(future, config)
                    del under_way[future]
                    worker.shutdown()
                    free.append(cores)
                    yield config
        finally:
            for _, worker, _ in under_way.values():
                worker.shutdown(kill_workers=True)


def _environment(threads: int) -> dict[str, str]:
    """Return what a run's process finds in its environment."""
    return _ENVIRONMENT | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


def _check(future: Any, config: RunConfig) -> None:
    """Raise what a run ended with, under the run's name."""
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    try:
        future.result()
    except TerminatedWorkerError as error:
        raise TrainingError(
            f"{_named(config)} was killed, perhaps for lack of memory. Call again with fewer runs "
            "at a time; finished ones are kept."
        ) from error
    except Exception as error:
        raise _failure(config, error) from error


def _named(config: RunConfig) -> str:
    return f"the run of order={config.order!r}, seed={config.seed}"


def _failure(config: RunConfig, error: BaseException) -> TmaError:
    """Return a run's error under the run's name."""
    if isinstance(error, TmaError):
        return type(error)(f"{_named(config)} failed: {error}")
    return TrainingError(f"{_named(config)} failed: {type(error).__name__}: {first_line(error)}")


def _make(config: RunConfig, cores: Sequence[int], parent: int) -> None:
    """Make one run on some cores; end with the parent."""

    def follow() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when to stop
    os.sched_setaffinity(0, cores)
    import torch

    torch.set_num_threads(len(cores))
    run(config)


def make_runs_on(cluster: str, configs: Sequence[RunConfig]) -> Iterator[RunConfig]:
    """Make runs as tasks of a Ray cluster; yield the settings of each as it finishes.

    When a node dies, its runs go on elsewhere from their last states. After an error, Ctrl-C or
    SIGTERM the runs under way are stopped, and go on when they are asked for again.

    Raises:
        ParameterError: Ray is not installed, or the cluster cannot be reached or has no room.
        StateError: a node does not share the cache folder.
        TmaError: what `tma.run` raises, with the name of the run.
    """
    if not configs:
        return
    ray = connect(cluster)
    kinds = ("CPU", "GPU") if ray.cluster_resources().get("GPU", 0) >= 1 else ("CPU",)
    worker = dict.fromkeys(kinds, 1.0)
    check_room(ray, worker)
    with _stopped_by_sigterm(), _sign() as sign:
        given: dict[str, Any] = {"max_calls": 1, "max_retries": RETRIES}
        given |= {"num_cpus": 1, "num_gpus": worker.get("GPU", 0)}
        given["runtime_env"] = {"env_vars": _shared_environment()}
        make = ray.remote(**given)(_make_shared)
        under_way = {make.remote(config.with_absolute_paths(), sign): config for config in configs}
        try:
            while under_way:
                done, _ = ray.wait([*under_way], timeout=WAIT)
                if not done:
                    check_left(ray, worker)
                for task in done:
                    config = under_way.pop(task)
                    _check_task(ray, task, config)
                    yield config
        finally:
            for task in under_way:
                ray.cancel(task, force=True)


def _shared_environment() -> dict[str, str]:
    """Return the environment of a run on any node: one thread, and the store of this machine."""
    published = published_folder()
    places = {"TMA_CACHE": str(cache_dir().resolve())}
    return _environment(1) | places | ({"TMA_PUBLISHED": str(published)} if published else {})


@contextmanager
def _sign() -> Iterator[Path]:
    """Yield a file in the cache, by which a node sees whether it shares that folder."""
    folder = cache_dir().resolve()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".shared-") as file:
            yield Path(file.name)


def _make_shared(config: RunConfig, sign: Path) -> None:
    """Make one run on a node of a cluster."""
    import torch

    if not sign.is_file():
        raise StateError(
            f"{sign.parent} of the calling machine is not what {os.uname().nodename} finds there. "
            "Set TMA_CACHE to a folder that all nodes share."
        )
    torch.set_num_threads(1)
    run(config)


def _check_task(ray: ModuleType, task: Any, config: RunConfig) -> None:
    """Raise what a run on a cluster ended with, under the run's name."""
    try:
        ray.get(task)
    except ray.exceptions.RayTaskError as error:
        raise _failure(config, error.cause or error) from None
    except ray.exceptions.RayError as error:
        raise TrainingError(
            f"{_named(config)} was killed {RETRIES + 1} times, with its node or for lack of "
            f"memory: {first_line(error)} Where runs need more memory, start nodes with fewer CPUs "
            "(ray start --num-cpus). Finished ones are kept."
        ) from error


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """Let SIGTERM stop as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say what a signal does
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def embed_all(configs: Sequence[RunConfig]) -> None:
    """Embed what the runs ask for: here with all threads, and no run waits for another."""
    asked: dict[tuple[str | None, ...], tuple[Dataset, Dataset, str | None, Numbers | None]] = {}
    for config in configs:
        if config.method.embeds:
            train, test = load_both(config)
            pool = pool_rows(config.method, len(train))
            part, aim = train if pool is None else train.select(pool), load_aim(config, test)
            key = config.encoder, fingerprint(part), fingerprint(aim)
            asked.setdefault(key, (train, aim, config.encoder, pool))
    for train, aim, encoder, pool in asked.values():
        embed_pair(train, aim, encoder, rows=pool)
