"""How long TMA's rounds and the distances take, beside the alternatives and the product alone.

Random unit rows, n × m = 1,000 × d = 384, N wanted. All systems of a case run in turn, in one
process, five times (three with --quick); the table shows medians, their ratio to the first system
of the case, and the memory above the inputs at its peak.

Rounds, in the cases named by n:

tma       `tma.test_centric_rounds`: checked inputs, exact lists, all rounds
literal   every round the argmin over the (n', m) distance matrix of the rows that are left, in
          float64 as the definition and as ours; one run
literal-t the same in one (m, n) matrix, where numpy scans faster and taken rows become infinite:
          the strongest form of the literal algorithm; one run
faiss     `IndexFlatIP` search alone, with the smallest k that the rounds need (no rounds, no index
          building, similarities in float32: its order may differ in near-ties)
product   the blocked matrix product alone, in float32: what no search in float32 can undercut

Case `crowded`, the whole order of 20,000 rows for 200:

ordinary  random rows
train     training rows within 1e-4 of each other, the test rows elsewhere
both      training rows within 1e-4 of each other, the test rows within 5e-4 of them

Case `distances`, 400,000 rows: the product, WSD, and eight prefix distances at ten prefixes; then
`bigram_kl` of 100,000 texts of 60 words.

    python benchmarks/arrangement.py [--quick] [--case NAME] [--float32] [--json FILE]

`--float32` searches as on a processor that does not multiply in bfloat16; with OMP_NUM_THREADS=1
all systems compute in one thread.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import tma
from tma.arrange.exact_knn import Nearest, Product, UnitRows
from tma.arrange.spec import MEASURES

TESTS, WIDTH, RUNS = 1_000, 384, 5
LITERAL_AT_MOST = 4 * 10**9
"""Bytes of a distance matrix that the literal algorithm still gets."""

Floats = NDArray[np.float32]
System = Callable[[Floats, Floats, int], int]
Works = dict[str, Callable[[], object]]
Case = Callable[[], tuple[Works, Works]]
"""Returns what is run several times, the first system first, and what is run once."""


@dataclass(frozen=True)
class Timing:
    """One line of the table."""

    case: str
    system: str
    seconds: float
    ratio: float
    """To the first system of the case."""
    peak_mb: float
    runs: int


def unit_rows(count: int, seed: int) -> Floats:
    """Return random unit rows."""
    random = np.random.default_rng(seed)
    rows = random.standard_normal((count, WIDTH), dtype=np.float32)
    for start in range(0, count, 10_000):
        part = rows[start : start + 10_000]
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return rows


def ours(X: Floats, Y: Floats, wanted: int) -> int:
    return len(tma.test_centric_rounds(X, Y, wanted, device="cpu"))


def literal(X: Floats, Y: Floats, wanted: int) -> int:
    D = -(X.astype(np.float64) @ Y.T.astype(np.float64))
    left = np.arange(len(X))
    rounds = taken = 0
    while taken < wanted and len(left):
        found = np.unique(D[left].argmin(axis=0))
        left = np.delete(left, found)
        taken += len(found)
        rounds += 1
    return rounds


def literal_transposed(X: Floats, Y: Floats, wanted: int) -> int:
    D = -(Y.astype(np.float64) @ X.T.astype(np.float64))
    rounds = taken = 0
    while taken < wanted:
        found = np.unique(D.argmin(axis=1))
        D[:, found] = np.inf
        taken += len(found)
        rounds += 1
    return rounds


def product(X: Floats, Y: Floats, wanted: int) -> int:
    out = np.empty((8192, len(Y)), np.float32)
    for start in range(0, len(X), len(out)):
        block = X[start : start + len(out)]
        np.matmul(block, Y.T, out=out[: len(block)])
    return 0


def faiss_search(X: Floats, Y: Floats, wanted: int) -> System:
    """Return the search of a built index for the smallest k that the rounds need."""
    import faiss

    k = needed(X, Y, wanted)
    index = faiss.IndexFlatIP(WIDTH)
    index.add(X)

    def search(X: Floats, Y: Floats, wanted: int) -> int:
        index.search(Y, k)
        return k

    return search


def needed(X: Floats, Y: Floats, wanted: int) -> int:
    """Return how far down its list of nearest rows the test row goes that goes farthest."""
    nearest = Nearest(UnitRows(X, "X"), Y, wanted, device="cpu")
    deepest = taken = 0
    last = np.empty(0, dtype=np.int64)
    while taken < wanted:
        last = nearest.first_left()
        found = np.unique(last)
        nearest.take(found)
        taken += len(found)
    for test in range(0, len(Y), 100):
        part = slice(test, test + 100)
        similarity = Y[part] @ X.T
        at_last = np.take_along_axis(similarity, last[part, None], axis=1)
        deepest = max(deepest, int((similarity >= at_last).sum(axis=1).max()))
    return deepest


def measured(function: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds a call takes and the MB of memory it adds at its peak."""
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", "ascii")  # resets the peak
    before = _status("VmRSS")
    started = time.perf_counter()
    function()
    seconds = time.perf_counter() - started
    return seconds, (_status("VmHWM") - before) / 1000


def _status(field: str) -> int:
    """Return a field of the process's memory status, in kB."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def rounds(n: int, wanted: int) -> tuple[Works, Works]:
    """Return the systems that find rounds."""
    X, Y = unit_rows(n, 0), unit_rows(TESTS, 1)
    often: dict[str, System] = {"tma": ours, "product": product}
    if wanted < n:
        often["faiss"] = faiss_search(X, Y, wanted)
    once: dict[str, System] = {}
    if 8 * n * TESTS <= LITERAL_AT_MOST:
        once = {"literal": literal, "literal-t": literal_transposed}
    for function in often.values():
        function(X[:5000], Y, 1000)  # libraries set themselves up at their first call

    def works(systems: dict[str, System]) -> Works:
        return {name: partial(system, X, Y, wanted) for name, system in systems.items()}

    return works(often), works(once)


def crowded(n: int, m: int) -> tuple[Works, Works]:
    """Return the whole order of ordinary and of crowded rows."""
    centre = unit_rows(1, 2)

    def around(count: int, seed: int, apart: float) -> Floats:
        rows = centre + unit_rows(count, seed).astype(np.float64) * (apart / 2**0.5)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return rows.astype(np.float32)

    train, test = unit_rows(n, 0), unit_rows(m, 1)
    near = around(n, 0, 1e-4)
    pairs = {"ordinary": (train, test), "train": (near, test), "both": (near, around(m, 1, 5e-4))}
    return {name: partial(ours, *pair, n) for name, pair in pairs.items()}, {}


def distances(n: int, texts: int) -> tuple[Works, Works]:
    """Return WSD and the prefix distances."""
    X, Y = unit_rows(n, 0), unit_rows(TESTS, 1)
    works: Works = {
        "product": partial(product, X, Y, n),
        "wsd": partial(tma.weighted_similarity_distance, X, Y, device="cpu"),
    }
    for measure in MEASURES:
        train, test = (X, Y) if measure != "bigram_kl" else (words(texts, 0), words(TESTS, 1))
        steps = np.linspace(len(train) // 10, len(train), 10, dtype=np.int64)
        works[measure] = partial(tma.prefix_distances, train, test, steps, measure)
    return works, {}


def words(count: int, seed: int) -> list[str]:
    """Return texts of 60 words, which are as frequent as a language's (Zipf's law)."""
    random = np.random.default_rng(seed)
    return [" ".join(map(str, line)) for line in random.zipf(1.3, (count, 60)) % 50_000]


CASES: dict[str, Case] = {
    "30k": partial(rounds, 30_000, 30_000),
    "100k": partial(rounds, 100_000, 30_000),
    "100k whole": partial(rounds, 100_000, 100_000),
    "400k": partial(rounds, 400_000, 30_000),
    "1M": partial(rounds, 1_000_000, 30_000),
    "crowded": partial(crowded, 20_000, 200),
    "distances": partial(distances, 400_000, 100_000),
}
QUICK = ("30k", "100k", "100k whole", "crowded")


def timings(case: str, runs: int) -> list[Timing]:
    """Return the lines of one case."""
    often, once = CASES[case]()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in [*often, *once]}
    for works in [often] * runs + [once]:
        for name, work in works.items():
            found[name].append(measured(work))
    first = statistics.median(seconds for seconds, _ in next(iter(found.values())))
    return [_line(case, name, taken, first) for name, taken in found.items()]


def _line(case: str, name: str, taken: list[tuple[float, float]], first: float) -> Timing:
    median = statistics.median(seconds for seconds, _ in taken)
    peak = max(peak for _, peak in taken)
    return Timing(case, name, round(median, 3), round(median / first, 2), round(peak), len(taken))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the small sizes, three runs")
    parser.add_argument("--case", choices=CASES, action="append", help="these cases alone")
    parser.add_argument("--json", type=Path, help="also write the table to this file")
    parser.add_argument("--float32", action="store_true", help="no products in bfloat16")
    arguments = parser.parse_args()
    if arguments.float32:
        slow = Product("cpu", torch.float32)
        Product.on = classmethod(lambda *_: slow)  # type: ignore[method-assign, assignment]
    lines: list[Timing] = []
    print(f"{platform.machine()}, {platform.python_version()}; m = {TESTS}, d = {WIDTH}")
    print(f"{'case':<12}{'system':<19}{'seconds':>9}{'ratio':>9}{'peak MB':>9}{'runs':>6}")
    for case in arguments.case or (QUICK if arguments.quick else CASES):
        for line in timings(case, 3 if arguments.quick else RUNS):
            lines.append(line)
            print(
                f"{line.case:<12}{line.system:<19}{line.seconds:>9.3f}{line.ratio:>9.2f}"
                f"{line.peak_mb:>9.0f}{line.runs:>6}",
                flush=True,
            )
        if arguments.json:
            arguments.json.write_text(json.dumps([asdict(line) for line in lines], indent=2) + "\n")


if __name__ == "__main__":
    main()
