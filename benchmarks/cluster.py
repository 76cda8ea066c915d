"""How long TMA takes on a Ray cluster: workers, shards, and more rows than fit anywhere.

Random unit rows, n × m = 1,000 × d = 384, N = 30,000 wanted (`tma_min`), on this machine's cores.

one        `tma.arrange` in one process, of as many threads as there are workers
workers    the same with `cluster=`, 1 and 2 workers of one core, rows in .npy files
shards     the same with 2 workers, rows in 1, 4 and 16 files
streamed   10⁸ rows that are never stored: workers generate each shard by its number whenever it is
           read. As many shards as fit in --minutes; `whole` is extrapolated from the last line, in
           proportion to the rows.

Orders are compared: a line is printed only if it is the order of one process, byte for byte.

    python benchmarks/cluster.py [--rows 400000] [--wanted 30000] [--minutes 10] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import tma
from tma.cluster import connect

TESTS, WIDTH = 1_000, 384
STREAMED, PART = 10**8, 100_000

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Timing:
    """One line of the table."""

    case: str
    rows: int
    shards: int
    workers: int
    seconds: float
    ratio: float
    """To one process of as many threads."""


def unit_rows(count: int, seed: int) -> Floats:
    """Return random unit rows."""
    rows = np.random.default_rng(seed).standard_normal((count, WIDTH), dtype=np.float32)
    for start in range(0, count, 10_000):
        part = rows[start : start + 10_000]
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return rows


def timed(function: Callable[[], NDArray[np.int64]]) -> tuple[NDArray[np.int64], float]:
    started = time.perf_counter()
    order = function()
    return order, time.perf_counter() - started


def local(workers: int) -> None:
    """Start a cluster of so many workers on this machine."""
    import ray

    ray.shutdown()
    ray.init("local", num_cpus=workers, include_dashboard=False, log_to_driver=False)
    connect("ray")


def in_files(folder: Path, rows: Floats, shards: int) -> Path:
    own = folder / str(shards)
    own.mkdir()
    for number, part in enumerate(np.array_split(rows, shards)):
        np.save(own / f"{number:04}.npy", part)
    return own


def stored(rows: int, wanted: int, folder: Path) -> Iterator[Timing]:
    """Yield the lines of rows in files."""
    X, Y = unit_rows(rows, 0), unit_rows(TESTS, 1)
    files = {shards: in_files(folder, X, shards) for shards in (1, 2, 4, 16)}
    arrange = partial(tma.arrange, "tma_min", limit=wanted, device="cpu")
    ones = dict[int, float]()
    for workers, shards in [(1, 1), (1, 2), (2, 2), (2, 1), (2, 4), (2, 16)]:
        if workers not in ones:
            torch.set_num_threads(workers)
            arrange(X[:5000], Y)
            expected, ones[workers] = timed(lambda: arrange(X, Y))
            yield Timing("one", rows, 1, workers, ones[workers], 1.0)
            local(workers)
            arrange(files[shards], Y, cluster="ray")  # processes start, files are read
        order, seconds = timed(partial(arrange, files[shards], Y, cluster="ray"))
        if not np.array_equal(order, expected):
            raise SystemExit(f"{workers} workers, {shards} shards: another order")
        ratio = seconds / ones[workers]
        yield Timing("cluster", rows, shards, workers, seconds, ratio)


def streamed(wanted: int, minutes: float) -> Iterator[Timing]:
    """Yield the lines of generated rows: twice as many shards as long as the time allows."""
    Y = unit_rows(TESTS, 1)
    shards, ends = 4, time.perf_counter() + 60 * minutes
    seconds = 0.0
    while shards * PART <= STREAMED and time.perf_counter() + 2.2 * seconds < ends:
        sources = [partial(unit_rows, PART, 2 + number) for number in range(shards)]
        arrange = partial(tma.arrange, "tma_min", sources, Y, limit=wanted, device="cpu")
        _, seconds = timed(partial(arrange, cluster="ray"))
        yield Timing("streamed", shards * PART, shards, 2, seconds, float("nan"))
        shards *= 2
    done = shards // 2 * PART
    if seconds and done < STREAMED:
        whole = seconds * STREAMED / done  # in proportion to the rows: the last line's
        yield Timing("whole", STREAMED, STREAMED // PART, 2, whole, float("nan"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--wanted", type=int, default=30_000)
    parser.add_argument("--minutes", type=float, default=10, help="for the streamed rows")
    parser.add_argument("--json", type=Path, help="also write the table to this file")
    arguments = parser.parse_args()
    lines: list[Timing] = []
    print(f"{platform.machine()}, {platform.python_version()}; m = {TESTS}, d = {WIDTH}")
    print(f"{'case':<10}{'rows':>12}{'shards':>8}{'workers':>9}{'seconds':>10}{'ratio':>8}")
    with tempfile.TemporaryDirectory() as folder:
        found = stored(arguments.rows, arguments.wanted, Path(folder))
        for line in chain(found, streamed(arguments.wanted, arguments.minutes)):
            lines.append(line)
            print(
                f"{line.case:<10}{line.rows:>12}{line.shards:>8}{line.workers:>9}"
                f"{line.seconds:>10.2f}{line.ratio:>8.2f}",
                flush=True,
            )
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(line) for line in lines], indent=2) + "\n")


if __name__ == "__main__":
    main()
