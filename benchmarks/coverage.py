"""How often the two 95% intervals of a difference hold the truth, on simulated losses.

The difference of two orders on a test instance and a seed is drawn as source dataset + task +
instance + seed + noise, each normal with mean 0. The interval for these tasks is right where it
holds the mean of the source and task effects that were drawn; the one for tasks of other datasets
where it holds 0.

    python -m benchmarks.coverage [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from tma.study.effects import estimated


class Design(NamedTuple):
    """A design of a study."""

    name: str
    sources: int
    tasks: int
    """Of each source."""
    instances: int
    """Of each task."""
    folds: int
    seeds: int
    """Seed s tests fold s modulo `folds`."""


DESIGNS = (
    Design("pocket", 5, 4, 1, 1, 3),
    Design("pocket, 5 seeds", 5, 4, 1, 1, 5),
    Design("study, arm 1 with 1b", 28, 4, 11, 5, 10),
    Design("a fifth of the study's sources", 6, 4, 11, 5, 10),
)


class Sizes(NamedTuple):
    """Standard deviations."""

    source_sd: float
    task_sd: float
    instance_sd: float
    seed_sd: float
    noise_sd: float


SIZES = (
    Sizes(0.05, 0.1, 0.1, 0.03, 0.1),  # the pilot's
    Sizes(0.5, 0.3, 0.5, 0.03, 0.3),
    Sizes(0.1, 0.1, 0.5, 0.1, 0.3),
    Sizes(0.0, 0.0, 0.5, 0.0, 0.3),
)


def covered(design: Design, sizes: Sizes, number: int) -> tuple[bool, bool]:
    """Return whether the two intervals of one simulated sample hold their truths."""
    random = np.random.default_rng(number)
    source, task, instance, seed, noise = sizes
    count = design.sources * design.tasks * design.instances
    tasks = np.arange(count) // design.instances
    sources = tasks // design.tasks
    fixed = source * random.normal(size=design.sources)[sources]
    fixed = fixed + task * random.normal(size=design.sources * design.tasks)[tasks]
    own = fixed + instance * random.normal(size=count)
    names = pd.Index([f"i{k:05}" for k in range(count)], name="id")
    instances = pd.DataFrame({"task": tasks, "source": sources, "tokens": 1}, names)
    parts = []
    for s in range(design.seeds):
        rows = np.flatnonzero(sources % design.folds == s % design.folds)
        gap = own[rows] + seed * random.normal() + noise * random.normal(size=len(rows))
        parts.append(pd.Series(gap, names[rows]))
    finals: pd.Series = pd.concat(parts, keys=range(design.seeds), names=["run", "id"])
    effect = estimated(finals, instances, None)
    held = effect.tasks.low <= float(fixed.mean()) <= effect.tasks.high
    return held, effect.datasets.low <= 0 <= effect.datasets.high


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="100 samples a line instead of 1,000")
    parser.add_argument("--json", type=Path, help="also write the table to this file")
    arguments = parser.parse_args()
    samples = 100 if arguments.quick else 1000
    lines = []
    for design, sizes in itertools.product(DESIGNS, SIZES):
        held = np.mean([covered(design, sizes, number) for number in range(samples)], axis=0)
        line = {"design": design.name, **sizes._asdict()}
        lines.append(line | {"these tasks": float(held[0]), "other datasets": float(held[1])})
    print(pd.DataFrame(lines).assign(samples=samples).to_string(index=False))
    if arguments.json:
        arguments.json.write_text(json.dumps(lines, indent=2) + "\n", "ascii")


if __name__ == "__main__":
    main()
