"""Several runs at a time, each in a process of its own.

A step of a small model keeps two cores busy only part of the time: two runs with a thread each
finish sooner than one after the other with two threads. More processes need more memory.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import repeat
from types import ModuleType

from tma.arrange.orders import pool_rows
from tma.data.load import fingerprint
from tma.embed import embed
from tma.errors import TrainingError, check_count
from tma.runs.config import RunConfig, load_both
from tma.runs.store import Run, run, stored
from tma.store import canonical_json


def run_all(
    configs: Mapping[str, Sequence[RunConfig]], *, processes: int | None = None
) -> dict[str, list[Run]]:
    """Return the finished runs of these settings: from the store, or made now.

    Args:
        configs: settings by a name of one's own, such as that of the order; what stands there more
            than once is made once.
        processes: runs that are made at a time, each with its share of the threads; None: two on a
            CPU with two threads or more, else one. Each takes the memory of a run.

    Raises:
        ParameterError: a number of processes below 1.
        TrainingError: a process was killed, as for want of memory.
        TmaError: what `tma.run` raises; the first error stops the other runs, which go on from
            their last states when they are asked for again.
    """
    if processes is not None:
        check_count("processes", processes, 1)
    # By their text: `columns` makes settings that cannot be hashed.
    wanted = {canonical_json(c.to_json()): c for made in configs.values() for c in made}
    missing = [config for config in wanted.values() if stored(config) is None]
    processes = min(processes or _usual(), len(missing))
    if processes > 1:
        _embed(missing)
        _make(missing, processes)
    return {name: [run(config) for config in made] for name, made in configs.items()}


def _embed(configs: Sequence[RunConfig]) -> None:
    """Embed what the runs ask for: here it has all threads, there one would wait for another."""
    seen = set[str]()
    for config in configs:
        if not config.method.embeds:
            continue
        train, test = load_both(config)
        pool = pool_rows(config.method, len(train))
        for part in (train if pool is None else train.select(pool), test):
            if fingerprint(part) not in seen:
                seen.add(fingerprint(part))
                embed(part)


def _make(configs: Sequence[RunConfig], processes: int) -> None:
    import torch
    from tqdm import tqdm  # not sooner: `_begin` of a worker comes before tqdm

    threads = _threads(len(configs), processes, torch.get_num_threads())
    with _workers(processes) as pool:
        with _no_script():  # each submission starts a process, while there are fewer
            futures: list[Future[None]] = list(map(pool.submit, repeat(_made), configs, threads))
        every = 0.1 if sys.stderr.isatty() else 30
        ended = as_completed(futures)
        bar = tqdm(ended, desc="runs", total=len(futures), unit="run", mininterval=every)
        try:
            for done in bar:
                done.result()
        except BrokenProcessPool as error:
            raise TrainingError(
                f"a process of processes={processes} was killed, as for want of memory. Call again "
                "with fewer; finished runs are kept."
            ) from error


def _threads(number: int, processes: int, threads: int) -> list[int]:
    """Return the threads of each run; the last ones take those of processes without a run."""
    last = number % processes
    even = [max(1, threads // processes)] * (number - last)
    return even + [max(1, threads // max(1, last))] * last


@contextmanager
def _workers(processes: int) -> Iterator[ProcessPoolExecutor]:
    """Start processes; end them at once, whatever they do, when the caller is stopped."""
    # A fork of a process that has threads, as every user of torch has, may hang.
    context = multiprocessing.get_context("spawn")
    before = multiprocessing.active_children()
    pool = ProcessPoolExecutor(processes, context, initializer=_begin)
    try:
        yield pool
    except BaseException:
        for child in multiprocessing.active_children():
            if child not in before:
                child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _no_script() -> Iterator[None]:
    """Start processes without the caller's script, of which a run needs nothing.

    `multiprocessing` would run it again in each, and fail where it says no `if __name__ ==
    "__main__"`, as the lines of a notebook do not.
    """
    script = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


def _begin() -> None:
    """Prepare a process: no bars, and an end with its parent."""
    # Read when tqdm's classes are made: the bars of several processes would overwrite each other.
    os.environ["TQDM_DISABLE"] = "1"
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _made(config: RunConfig, threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    run(config)


def _usual() -> int:
    import torch

    return 1 if torch.cuda.is_available() else min(2, torch.get_num_threads())
