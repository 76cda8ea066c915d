"""How many texts a second are embedded, beside sentence-transformers alone.

Both get the same texts of the built-in suite and the same loaded model, in turn; a ratio is the
median over the pairs. What is measured of `tma.embed` is all of it: keys, sorting, progress, unit
rows, and a cache written to disk.

tma      `tma.embed` with an empty cache
alone    `SentenceTransformer.encode` as it comes: batches of 32, nothing stored
again    `tma.embed` of the same texts once more, all found in the cache
one new  `tma.embed` of the same texts and one that is not in the cache

    python -m benchmarks.embedding [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import tma
from tma.data.load import texts as instance_texts
from tma.encoders import ENCODERS, SentenceEncoder, find_encoder

COUNTS = {"minilm": 2000, "static": 30_000}
QUICK = {"minilm": 200, "static": 2000}
RUNS = 5


@dataclass(frozen=True)
class Line:
    """One line of the table."""

    encoder: str
    work: str
    texts: int
    seconds: float
    texts_per_second: int
    ratio_to_alone: float
    """Texts a second, ours by theirs."""
    runs: int


def suite_texts(count: int) -> list[str]:
    """Return so many distinct texts of the suite, drawn at random."""
    known = list(dict.fromkeys(instance_texts(tma.load("suite", split="train"))))
    return random.Random(0).sample(known, min(count, len(known)))


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def once(encoder: SentenceEncoder, texts: Sequence[str]) -> dict[str, float]:
    """Return the seconds of each piece of work, done one after the other."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TMA_CACHE"] = folder
        return {
            "tma": timed(lambda: tma.embed(texts, encoder)),
            "alone": timed(lambda: encoder.model.encode(list(texts), show_progress_bar=False)),
            "again": timed(lambda: tma.embed(texts, encoder)),
            "one new": timed(lambda: tma.embed([*texts, "one more"], encoder)),
        }


def lines(name: str, texts: Sequence[str], runs: int) -> list[Line]:
    """Return the lines of one encoder."""
    encoder = find_encoder(name)
    assert isinstance(encoder, SentenceEncoder)
    encoder.encode(texts[:64])  # it is loaded, and libraries set themselves up
    before = os.environ.get("TMA_CACHE")
    try:
        found = [once(encoder, texts) for _ in range(runs)]
    finally:
        os.environ.pop("TMA_CACHE")
        if before is not None:
            os.environ["TMA_CACHE"] = before
    out = []
    for work in found[0]:
        seconds = statistics.median(run[work] for run in found)
        ratio = statistics.median(run["alone"] / run[work] for run in found)
        speed = round(len(texts) / seconds)
        out.append(Line(name, work, len(texts), round(seconds, 3), speed, round(ratio, 2), runs))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few texts, one run")
    parser.add_argument("--json", type=Path, help="also write the table to this file")
    arguments = parser.parse_args()
    counts = QUICK if arguments.quick else COUNTS
    known = suite_texts(max(counts.values()))
    print(f"{platform.machine()}, {platform.python_version()}")
    print(
        f"{'encoder':<9}{'work':<9}{'texts':>8}{'seconds':>9}{'texts/s':>10}{'ratio':>8}{'runs':>6}"
    )
    table: list[Line] = []
    for name in ENCODERS:
        for line in lines(name, known[: counts[name]], 1 if arguments.quick else RUNS):
            table.append(line)
            print(
                f"{line.encoder:<9}{line.work:<9}{line.texts:>8,}{line.seconds:>9.2f}"
                f"{line.texts_per_second:>10,}{line.ratio_to_alone:>8.2f}{line.runs:>6}",
                flush=True,
            )
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(line) for line in table], indent=2) + "\n")


if __name__ == "__main__":
    main()
