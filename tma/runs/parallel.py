"""Runs side by side: each in a process of its own, with its threads pinned to its cores.

A step of a small model keeps two cores busy only part of the time: two runs with one thread each
finish sooner than one after the other with two threads. Threads that wait for each other beside
other work make a step several times slower, so each has a core of its own. After an interruption
the same call goes on: finished runs are read, others continue from their last state.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import contextmanager
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

from tma.arrange.orders import pool_rows
from tma.arrange.spec import Numbers
from tma.data.load import fingerprint
from tma.embed import embed_pair
from tma.errors import ParameterError, TmaError, TrainingError, check_count, first_line
from tma.runs.config import RunConfig, load_aim, load_both
from tma.runs.execute import run
from tma.runs.store import Run, stored
from tma.store import canonical_json

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
    configs: Mapping[str, Sequence[RunConfig]], *, processes: int | None = None
) -> dict[str, list[Run]]:
    """Return the finished runs of these settings: from the store, or made now.

    Args:
        configs: settings by any name, such as that of the order; equal settings are run once.
        processes: runs at a time, each with its share of the cores and the memory of a run; None:
            two on a CPU with two cores or more, else one.

    Raises:
        ParameterError: `configs` is no dict of lists of settings, or `processes` is below 1.
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
    # By their text: `columns` makes settings that cannot be hashed.
    distinct = {canonical_json(c.to_json()): c for group in configs.values() for c in group}
    missing = [config for config in distinct.values() if stored(config) is None]
    usual = 1 if torch.cuda.is_available() else min(2, torch.get_num_threads())
    processes = min(processes or usual, len(missing))
    if processes > 1:
        embed_all(missing)
        finished = make_runs(missing, processes, max(1, torch.get_num_threads() // processes))
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
    environment = _ENVIRONMENT | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    with _stopped_by_sigterm():
        try:
            while left or under_way:
                while left and free:
                    config, cores = left.pop(0), free.pop(0)
                    # One worker, used once: its memory is free again when the run is finished.
                    worker = ProcessPoolExecutor(1, env=environment)
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


def _check(future: Any, config: RunConfig) -> None:
    """Raise what a run ended with, under the run's name."""
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    name = f"the run of order={config.order!r}, seed={config.seed}"
    try:
        future.result()
    except TmaError as error:
        raise type(error)(f"{name} failed: {error}") from error
    except TerminatedWorkerError as error:
        raise TrainingError(
            f"{name} was killed, perhaps for lack of memory. Call again with fewer runs at a time; "
            "finished ones are kept."
        ) from error
    except Exception as error:
        what = f"{type(error).__name__}: {first_line(error)}"
        raise TrainingError(f"{name} failed: {what}") from error


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
