"""How fast data is loaded and written, and in how much memory.

Each line is measured in a process of its own, whose peak memory is that of everything in it: the
interpreter and the libraries too (the line `nothing` has them alone). Rows are made up: a task of
a thousand, a prompt of about 90 and a response of about 40 characters; one row in a hundred stands
there twice.

nothing     imports only
load        `tma.load` of a JSONL file, from its bytes to the mapped dataset
again       the same once more: the stored dataset is found by the content of the file
stored      `tma.save` of the dataset in its stored order
random      `tma.save` in a random order; the ratio is to `stored`
select      the same by `Dataset.select` and the writers of `datasets`

    python -m benchmarks.data [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROWS, QUICK = (1_000_000, 10_000_000), (100_000,)
SAVED_AT_MOST = 1_000_000
"""Rows for which the writers are measured."""
KINDS = ("folder", "parquet", "jsonl")


@dataclass(frozen=True)
class Line:
    """One line of the table."""

    rows: int
    work: str
    seconds: float
    rows_per_second: int
    ratio_to_stored: float | None
    peak_mb: int


def write_rows(path: Path, count: int) -> None:
    """Write made-up rows."""
    words = [f"w{k:04d}" for k in range(5000)]
    pick = random.Random(0)
    with path.open("w", encoding="utf-8") as stream:
        for k in range(count):
            same = k - 1 if k % 100 == 99 else k
            text = " ".join(words[(same * 7 + j * j * 31) % 5000] for j in range(14))
            row = {"prompt": f"{text} {same}", "response": " ".join(words[same % 4990 :][:7])}
            stream.write(json.dumps(row | {"task": f"task{pick.randrange(1000)}"}) + "\n")


def work(name: str, path: Path, count: int) -> float:
    """Do one piece of work; return its seconds."""
    import numpy as np

    import tma

    if name == "nothing":
        return 0.0
    if name in {"load", "again"}:
        return _timed(lambda: tma.load(str(path), split="train", by="instance"))
    dataset = tma.load(str(path), split="train", by="instance")
    how, kind = name.split()
    target = path.with_name(f"{how}.{kind}") if kind != "folder" else path.with_name(how)
    order = np.random.default_rng(0).permutation(len(dataset))
    if how == "select":
        return _timed(lambda: _select(dataset, order, kind, target))
    return _timed(lambda: tma.save(dataset, order if how == "random" else None, target))


def _select(dataset: Any, order: Any, kind: str, target: Path) -> None:
    chosen = dataset.select(order)
    if kind == "folder":
        chosen.save_to_disk(target)
    elif kind == "parquet":
        chosen.to_parquet(target)
    else:
        chosen.to_json(target)


def _timed(function: Any) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def measured(name: str, path: Path, count: int) -> tuple[float, int]:
    """Return seconds and peak MB of a piece of work in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.data", "--work", name, str(path), str(count)]
    environment = os.environ | {"TMA_CACHE": str(path.parent / "cache")}
    environment |= {"HF_DATASETS_CACHE": str(path.parent / "hf"), "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return found["seconds"], found["peak_mb"]


def lines(count: int, selects: bool) -> list[Line]:
    """Return the lines for one number of rows."""
    out = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        write_rows(path, count)
        writers = [f"{how} {kind}" for kind in KINDS for how in ("stored", "random", "select")]
        stored = 0.0
        for name in ["nothing", "load", "again", *(writers if count <= SAVED_AT_MOST else [])]:
            if name.startswith("select") and not selects:
                continue
            seconds, peak = measured(name, path, count)
            stored = seconds if name.startswith("stored") else stored
            ratio = round(seconds / stored, 2) if stored else None
            speed = round(count / seconds) if seconds else 0
            out.append(Line(count, name, round(seconds, 3), speed, ratio, peak))
            show(out[-1])
    return out


def show(line: Line) -> None:
    ratio = "" if line.ratio_to_stored is None else f"{line.ratio_to_stored:.2f}"
    print(
        f"{line.rows:>11,}  {line.work:<16}{line.seconds:>9.2f}{line.rows_per_second:>12,}"
        f"{ratio:>8}{line.peak_mb:>9}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="100,000 rows only")
    parser.add_argument("--no-select", action="store_true", help="without the slow `select` lines")
    parser.add_argument("--json", type=Path, help="also write the table to this file")
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        import resource

        name, path, count = arguments.work
        seconds = work(name, Path(path), int(count))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000
        print(json.dumps({"seconds": seconds, "peak_mb": peak}))
        return
    print(f"{platform.machine()}, {platform.python_version()}")
    print(f"{'rows':>11}  {'work':<16}{'seconds':>9}{'rows/s':>12}{'ratio':>8}{'peak MB':>9}")
    found: list[Line] = []
    for count in QUICK if arguments.quick else ROWS:
        found += lines(count, not arguments.no_select)
        if arguments.json:
            rows = [asdict(line) for line in found]
            arguments.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
