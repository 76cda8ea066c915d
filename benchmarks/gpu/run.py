"""Make the runs that `pack.py` has packed, as many at a time as the card holds; then check orders.

    python run.py PARTS OUT [--minutes 8] [--jobs N] [--only runs|checks]

PARTS is the folder of the parts; they are unpacked there, and a second call goes on from the first.
OUT gets `results.json` and finished runs, as `tma runs export` writes them, in tar files: each is
written anew when a run joins it, so that it is whole whenever this ends. Until the parts are
unpacked, which bring the rest, the standard library is all there is.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

BATCH = 15 * 2**20
"""Bytes of a tar file at most."""
EXPORTS = 3
"""Runs that are exported at a time, each on a core."""
MEMORY = 9 * 2**30
"""Bytes that a run takes of the card."""
TRIES = 5
"""Failed runs after which no more are begun."""
CHECKED = ("tma_nft", "tma_fft", "tma_rt", "nearest", "farthest")


class Over(BaseException):
    """The time is over."""


def unpacked(parts: Path) -> Path:
    """Return the folder that the parts were unpacked into, now or before.

    Raises:
        ValueError: a part is not there, or is not what `parts.json` has the sum of.
    """
    kit, draft = parts / "kit", parts / "kit.new"
    if kit.is_dir():
        return kit
    names = list[str]()
    for part in json.loads((parts / "parts.json").read_text("utf-8")):
        file, found = parts / part["name"], "of no file"
        if file.is_file():
            with file.open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != part["sha256"]:
            raise ValueError(
                f"{file.name} has the SHA-256 {found}; expected {part['sha256']}. Copy it again."
            )
        names += [str(file)] if file.name.startswith("part-") else []
    with (
        subprocess.Popen(["cat", *names], stdout=subprocess.PIPE) as joined,
        tarfile.open(fileobj=joined.stdout, mode="r|gz") as tar,
    ):
        tar.extractall(draft, filter="data")
    return draft.rename(kit)


def enter(kit: Path) -> None:
    """Let this process and those it starts work with what is in the kit alone."""
    paths = [str(kit / name) for name in ("source", "site")]
    sys.path[:0] = paths
    os.environ |= {
        "PYTHONPATH": os.pathsep.join(paths),
        "TMA_CACHE": str(kit / "cache"),
        "HF_HUB_OFFLINE": "1",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    }
    (kit / "files").mkdir(exist_ok=True)
    os.chdir(kit / "files")  # settings name files of one's own by name alone


@contextmanager
def until(end: float) -> Iterator[None]:
    """Leave the block at a time of `time.monotonic`, wherever it is."""

    def stop(*_: object) -> None:
        raise Over

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(end - time.monotonic(), 0.001))
    try:
        yield
    except Over:
        pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Results:
    """What has been found, in files of the output folder."""

    def __init__(self, out: Path, kit: Path) -> None:
        from importlib.metadata import version

        from tma.runs.store import hardware

        names = ("torch", "transformers", "sentence-transformers", "accelerate", "datasets")
        self.found: dict[str, Any] = {
            "hardware": hardware(),
            "versions": {"python": sys.version.split()[0]} | {n: version(n) for n in names},
            "runs": [], "left": None, "orders": [], "tests": None, "errors": [],
        }  # fmt: skip
        self._out, self._exported = out, kit / "exported"
        self._batches: list[list[Path]] = [[]]
        self._lock = threading.Lock()
        out.mkdir(parents=True, exist_ok=True)
        self.write()

    def write(self) -> None:
        """Write what has been found so far."""
        from tma.store import write_json

        write_json(self._out / "results.json", self.found)

    def export(self, key: str) -> None:
        """Write a finished run into the last tar file, or one more."""
        folder = self._exported / key
        command = [sys.executable, "-m", "tma.cli", "runs", "export", key, str(folder)]
        one = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=one, capture_output=True, text=True, check=False)
        with self._lock:
            if done.returncode:
                self.found["errors"].append(done.stderr[-500:])
            else:
                self._pack(folder / key)
                self.found["runs"].append(key)
            self.write()

    def _pack(self, run: Path) -> None:
        held = [file for path in (*self._batches[-1], run) for file in path.iterdir()]
        if sum(file.stat().st_size + 1024 for file in held) > BATCH:
            self._batches.append([])
        self._batches[-1].append(run)
        draft = self._out / "draft"
        with tarfile.open(draft, "w") as tar:
            for path in self._batches[-1]:
                tar.add(path, path.name)
        draft.replace(self._out / f"runs-{len(self._batches)}.tar")


def make_runs(kit: Path, results: Results, jobs: int, end: float) -> None:
    """Make what is not finished; export what is as it comes."""
    from tma.errors import TmaError
    from tma.runs.config import RunConfig
    from tma.runs.parallel import make_runs
    from tma.runs.store import is_complete

    listed = json.loads((kit / "runs.json").read_text("utf-8"))
    left = {one["key"]: RunConfig.from_json(one["config"]) for one in listed}
    exports = list[Future[None]]()
    with ThreadPoolExecutor(EXPORTS) as pool, until(end):
        for _ in range(TRIES):
            try:
                for _ in chain([None], make_runs([*left.values()], jobs)):
                    for key in [k for k in left if is_complete(kit / "cache" / "runs" / k)]:
                        del left[key]
                        exports.append(pool.submit(results.export, key))
                break
            except TmaError as error:
                results.found["errors"].append(str(error))
                jobs = max(1, jobs * 3 // 4)  # most likely for lack of memory
                put_last(left, str(error))
    for one in exports:
        one.result()
    results.found["left"] = len(left)
    results.write()


def put_last(left: dict[str, Any], error: str) -> None:
    """Put the run that an error names, the first of that order and seed, behind the others."""
    named = [k for k, c in left.items() if f"order={c.order!r}, seed={c.seed} " in error]
    for key in named[:1]:
        left[key] = left.pop(key)


def at_a_time() -> int:
    """Return how many runs the card and the cores have room for."""
    import torch

    if not torch.cuda.is_available():
        return 1
    memory = torch.cuda.get_device_properties(0).total_memory
    return max(1, min(len(os.sched_getaffinity(0)) - EXPORTS, memory // MEMORY))


def check_orders(kit: Path, results: Results) -> None:
    """Compare orders of the golden rows and of random ones, made on the card, with the CPU's."""
    import numpy as np
    import torch

    import tma
    from benchmarks.arrangement import unit_rows

    devices = ("cpu", "cuda" if torch.cuda.is_available() else "cpu")
    golden = [np.load(path) for path in sorted(kit.glob("source/tests/golden/*.npz"))]
    pairs = [(one["train"], one["test"]) for one in golden]
    for X, Y in chain(pairs, [(unit_rows(100_000, 0), unit_rows(1000, 1))]):
        for name in CHECKED:
            found, seconds = list[Any](), list[float]()
            for device in devices:
                begun = time.perf_counter()
                found.append(tma.arrange(name, X, Y, limit=len(X) // 3, device=device))
                seconds.append(round(time.perf_counter() - begun, 3))
            line = {"rows": [len(X), len(Y)], "order": name, "devices": devices}
            equal = bool(np.array_equal(*found))
            results.found["orders"].append(line | {"equal": equal, "seconds": seconds})
            results.write()


def run_tests(kit: Path, results: Results, end: float) -> None:
    """Run the tests that need a GPU."""
    files = sorted((kit / "source" / "tests").glob("test_*.py"))
    marked = [str(file) for file in files if "pytest.mark.gpu" in file.read_text("utf-8")]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *marked]
    given: dict[str, Any] = {"cwd": kit / "source", "timeout": max(end - time.monotonic(), 1)}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, **given)
        results.found["tests"] = done.stdout[-1000:]
    except subprocess.TimeoutExpired:
        results.found["tests"] = "not finished in time"
    results.write()


def main() -> None:
    begun = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--jobs", type=int, help="runs at a time; default: what the card holds")
    parser.add_argument("--only", choices=("runs", "checks"))
    options = parser.parse_args()
    end, out = begun + 60 * options.minutes, options.out.resolve()
    kit = unpacked(options.parts.resolve())
    enter(kit)
    results = Results(out, kit)
    if options.only != "checks":
        make_runs(kit, results, options.jobs or at_a_time(), end)
    if options.only != "runs":
        with until(end):
            check_orders(kit, results)
        run_tests(kit, results, end)
    print(json.dumps(results.found, indent=1))


if __name__ == "__main__":
    main()
