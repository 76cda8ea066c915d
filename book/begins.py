"""Where the effect of order would begin: chapter 4's main comparison with one thing changed.

    python book/begins.py [--quick]

writes `begins.csv` beside this file, which the page `begins.md` shows. Runs are shared with the
notebooks and kept; what is finished is read. `--quick` takes the first line only.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

import tma
from tma import statistics, verdicts
from tma.intervals import Interval, written

TARGET = Path(__file__).with_name("begins.csv")
ORDERS = ("tma_nft", "tma_rt", "tma_fft")
READINGS = {"final": "at the end", "area": "along the way"}


@dataclass(frozen=True)
class Change:
    """One line of the table: what differs from chapter 4 at scale `pocket`."""

    name: str
    """In words."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Of the notebook."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of the runs."""


CHANGES = (
    Change("as in chapter 4: SmolLM2-135M-Instruct, pool of 920, 8 steps"),
    Change("pool of 230", settings={"pool": 230}),
    Change("pool of 1,600", settings={"pool": 1600}),
    Change("24 steps", {"steps": 24}),
    Change("a base model, Gemma-3-270M", {"model": "gemma"}),
)


def line(change: Change, given: Mapping[str, Any]) -> dict[str, str]:
    """Return what NFT and FFT gain over RT under a change, and what C6 says of it.

    Args:
        change: what differs.
        given: parameters of a notebook, with which the change is put together.
    """
    study = tma.study_settings(
        {"scale": "pocket", "output_dir": "out", **given, **change.parameters}
    )
    configs = {order: study.pooled(order, **change.settings) for order in ORDERS}
    runs = tma.run_all(configs)
    pairs = {f"{name} − RT": (f"tma_{name.lower()}", "tma_rt") for name in ("NFT", "FFT")}
    found = statistics.contrasts(runs, pairs)
    cells = {
        f"{name}, {words}": cell(found[reading][name])
        for name in pairs
        for reading, words in READINGS.items()
    }
    train, test = tma.load_both(configs["tma_nft"][0])
    pool = configs["tma_nft"][0].pool
    rounds = str(study.half_rounds(tma.embed(train), tma.embed(test), pool))
    judged = verdicts.turns(study, found["area"])
    return {"changed": change.name, "rounds in half": rounds, **cells, "C6": judged.verdict}


def cell(found: Interval) -> str:
    """Return an interval as the page shows it, nats a token; bold where it excludes zero."""
    text = written(found.estimate, found.low, found.high)
    return f"**{text}**" if found.clear else text


def table(changes: Sequence[Change], given: Mapping[str, Any]) -> pd.DataFrame:
    """Return one row a change."""
    return pd.DataFrame([line(change, given) for change in changes])


def main() -> int:
    """Make the table and store it; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the first line only, not stored")
    quick = parser.parse_args().quick
    given = {"model": "llama", "dataset": None, "seeds": None, "steps": None}
    found = table(CHANGES[:1] if quick else CHANGES, given)
    if not quick:
        found.to_csv(TARGET, index=False, lineterminator="\n")
    sys.stdout.write(found.to_string(index=False) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
