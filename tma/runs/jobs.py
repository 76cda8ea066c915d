"""Many runs, a few at a time, for hours: each in a process of its own, with one thread on one core.

Two threads that wait for each other beside other work make a step several times slower; one thread
also gives the same bits whatever else the machine does. Stopped at any moment and called again, the
same call makes what is missing: a run is whole or made anew from its last state.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from types import FrameType, ModuleType

from tma.errors import TrainingError
from tma.runs.config import RunConfig
from tma.runs.store import run

_CONTEXT = multiprocessing.get_context("spawn")
_ENVIRONMENT = {
    # Freed blocks of up to 32 MB are kept for the next step, whose pages would have to be cleared
    # anew; larger ones, of ever other sizes, would leave holes among them.
    "GLIBC_TUNABLES": "glibc.malloc.arena_max=1:glibc.malloc.mmap_threshold=33554432:"
    "glibc.malloc.trim_threshold=2147483648",
    # Compiled kernels of so many shapes are kept, not of all: every step has other lengths.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "400",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}


def make(configs: Sequence[RunConfig], jobs: int) -> Iterator[RunConfig]:
    """Make runs in their sequence, so many at a time; yield the settings of each that is finished.

    Args:
        configs: settings of the runs.
        jobs: runs at a time; each takes a core and the memory of a run.

    Raises:
        TrainingError: a run failed or its process was killed, as for want of memory. The runs that
            are under way then are stopped, and go on when they are asked for again.
        KeyboardInterrupt: the process was told to stop (Ctrl-C or SIGTERM); likewise.
    """
    left, cores = list(configs), _cores(jobs)
    under_way = dict[int, tuple[BaseProcess, RunConfig, int]]()
    with _stopped_by_sigterm():
        try:
            while left or under_way:
                while left and cores:
                    core, config = cores.pop(0), left.pop(0)
                    process = _start(config, core)
                    under_way[process.sentinel] = (process, config, core)
                ready = set(wait([*under_way]))
                for ended in [sentinel for sentinel in under_way if sentinel in ready]:
                    process, config, core = under_way.pop(ended)
                    process.join()
                    if process.exitcode:
                        raise TrainingError(_why(process.exitcode, config))
                    cores.append(core)
                    yield config
        finally:
            for process, _, _ in under_way.values():
                process.terminate()
            for process, _, _ in under_way.values():
                process.join()


def _why(status: int, config: RunConfig) -> str:
    what = f"the run of order={config.order!r}, seed={config.seed}"
    if status < 0:
        name = signal.Signals(-status).name
        return f"{what} was killed by {name}, as for want of memory. Call again with fewer --jobs."
    return f"{what} failed; what went wrong stands above. Mend it and call again."


def _cores(jobs: int) -> list[int]:
    """Return a core for each job; fewer cores than jobs are shared."""
    try:
        usable = sorted(os.sched_getaffinity(0))
    except AttributeError:  # not on this system: nothing is pinned
        usable = list(range(os.cpu_count() or 1))
    return [usable[number % len(usable)] for number in range(jobs)]


def _start(config: RunConfig, core: int) -> BaseProcess:
    process = _CONTEXT.Process(target=_made, args=(config, core, os.getpid()), daemon=True)
    # `multiprocessing` would run the caller's script again, of which a run needs nothing.
    script, before = sys.modules["__main__"], dict(os.environ)
    sys.modules["__main__"] = ModuleType("__main__")
    os.environ.update(_ENVIRONMENT)  # read when the libraries of the new process are loaded
    try:
        process.start()
    finally:
        sys.modules["__main__"] = script
        os.environ.clear()
        os.environ.update(before)
    return process


def _made(config: RunConfig, core: int, parent: int) -> None:
    """Make one run on one core; end with the parent."""
    import threading
    import time

    def follow() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent tells when to stop
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    import torch

    torch.set_num_threads(1)
    run(config)


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """Let SIGTERM stop as Ctrl-C does."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
