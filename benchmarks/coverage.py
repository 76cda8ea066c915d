"""How often the two 95 % intervals of a difference hold the truth, on simulated losses.

The difference of two orders on a test instance and a seed is drawn as source dataset + task +
instance + seed + noise, each normal with mean 0. The interval for these tasks is right where it
holds the mean of the source and task effects that were drawn; the one for tasks of other datasets
where it holds 0.

    python -m benchmarks.coverage [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from tma.study.effects import Gaps


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
SIZES = (
    (0.05, 0.1, 0.1, 0.03, 0.1),
    (0.5, 0.3, 0.5, 0.03, 0.3),
    (0.1, 0.1, 0.5, 0.1, 0.3),
    (0.0, 0.0, 0.5, 0.0, 0.3),
)
"""Standard deviations of source, task, instance, seed and noise; the first are the pilot's."""


def covered(design: Design, sizes: tuple[float, ...], number: int) -> tuple[bool, bool]:
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
    about = pd.DataFrame({"task": tasks, "source": sources, "tokens": 1}, names)
    parts = []
    for s in range(design.seeds):
        rows = np.flatnonzero(sources % design.folds == s % design.folds)
        gap = own[rows] + seed * random.normal() + noise * random.normal(size=len(rows))
        parts.append(pd.Series(gap, names[rows]))
    finals = pd.concat(parts, keys=range(design.seeds), names=["run", "id"])
    found = Gaps(finals.to_frame(), finals, about).effect(finals, None)
    own_mean = float(fixed.mean())
    held = found.tasks.low <= own_mean <= found.tasks.high
    return held, found.datasets.low <= 0 <= found.datasets.high


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="100 samples a line instead of 1,000")
    parser.add_argument("--json", type=Path, help="also write the table to this file")
    arguments = parser.parse_args()
    samples = 100 if arguments.quick else 1000
    columns = ["source_sd", "task_sd", "instance_sd", "seed_sd", "noise_sd"]
    lines = []
    for design in DESIGNS:
        for sizes in SIZES:
            held = np.array([covered(design, sizes, number) for number in range(samples)])
            line = {"design": design.name, **dict(zip(columns, sizes, strict=True))}
            for name, share in zip(
                ("these tasks", "other datasets"), held.mean(axis=0), strict=True
            ):
                line[name] = float(share)
            lines.append(line)
    print(pd.DataFrame(lines).assign(samples=samples).to_string(index=False))
    if arguments.json:
        arguments.json.write_text(json.dumps(lines, indent=2) + "\n", "ascii")


if __name__ == "__main__":
    main()
