"""How often the 95 % intervals hold the truth, on simulated losses with a known difference of zero.

Two orders, S seeds, 18 test tasks of one instance each, as at scale `pocket`. The difference of the
two on a task and a seed is drawn as task effect + seed effect + noise, each normal with mean 0, so
that the true difference is 0; an interval is right where it holds 0.

    python -m benchmarks.coverage [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tma.bootstrap import resample

TASKS = 18
SIZES = (
    (1.0, 0.0, 1.0),
    (1.0, 0.2, 1.0),
    (0.3, 0.3, 0.3),
    (0.2, 0.5, 0.2),
    (0.0, 1.0, 1.0),
    (0.3, 0.0, 1.0),
    (0.0, 0.0, 1.0),
)
"""Standard deviations of task effect, seed effect and noise; the last two: noise rules."""


@dataclass(frozen=True)
class Coverage:
    """One line of the table."""

    seeds: int
    task_sd: float
    seed_sd: float
    noise_sd: float
    samples: int
    coverage: float


def covered(seeds: int, sizes: tuple[float, float, float], number: int) -> bool:
    """Return whether the interval of one simulated sample holds the true difference."""
    random = np.random.default_rng([seeds, number])
    task, seed, noise = sizes
    gaps = (
        task * random.normal(size=(TASKS, 1))
        + seed * random.normal(size=seeds)
        + noise * random.normal(size=(TASKS, seeds))
    )
    names = [f"t{k:02}" for k in range(TASKS)]
    index = pd.MultiIndex.from_arrays([names, names], names=["task", "id"])
    zero = [pd.DataFrame({1: np.zeros(TASKS)}, index) for _ in range(seeds)]
    found = resample([[pd.DataFrame({1: column}, index) for column in gaps.T], zero], number)
    interval = found.interval(found.means[:, 0, 0] - found.means[:, 1, 0])
    return interval.low <= 0 <= interval.high


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="200 samples a line instead of 1,000")
    parser.add_argument("--json", type=Path, help="also write the table to this file")
    arguments = parser.parse_args()
    samples = 200 if arguments.quick else 1000
    print(f"{'seeds':>5}{'task sd':>9}{'seed sd':>9}{'noise sd':>9}{'samples':>9}{'coverage':>10}")
    lines = []
    for seeds in (1, 3, 5):
        for sizes in SIZES:
            held = sum(covered(seeds, sizes, number) for number in range(samples))
            lines.append(Coverage(seeds, *sizes, samples, held / samples))
            print("{:>5}{:>9}{:>9}{:>9}{:>9}{:>10.3f}".format(*asdict(lines[-1]).values()))
    if arguments.json:
        rows = [asdict(line) for line in lines]
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n", "ascii")


if __name__ == "__main__":
    main()
