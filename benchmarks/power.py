"""The smallest difference of two orders that the study's design detects, from a pilot.

The pilot is of scale `study`, on the three source datasets that are for validation alone, with
three seeds on the same test instances. Of the difference d of two orders on instance j and seed s
it gives the variance within tasks (over instances), between seeds (of the mean over all instances),
and between tasks and source datasets. The design has S seeds, n test instances in all and C source
datasets, so that

    SE for these tasks     = sqrt(within / n + between seeds / S)
    SE for other datasets  = sqrt(between source datasets / C)

and detects (t(0.975) + t(0.8)) · SE with 80% power. `python -m benchmarks.power --jobs 2` makes
what of the pilot is missing and prints the table.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import pandas as pd
from scipy.stats import t as student

from tma.runs.config import RunConfig
from tma.runs.parallel import make_runs
from tma.runs.store import Run, stored
from tma.study.effects import PairedDifferences

LABELS = ("tma_nft", "tma_rt")
SEEDS = 3
CONTRASTS = (("tma_nft", "tma_rt"),)
DESIGN = {"seeds": 10, "instances": 1200, "sources": 28}
"""Seeds of the main comparison with those that repeat its folds, test instances of all folds, and
source datasets."""


def settings(label: str, seed: int) -> RunConfig:
    """Return a run of the pilot: as in the study, on the validation data."""
    given: dict[str, Any] = {
        "pool": 10_000,
        "fold": "validation",
        "eval_at": (0, 1, 2, 4, 8, 16, 32, 48, 64),
    }
    changes = given | {"exact_limit": True, "order": label}
    return RunConfig.at("study", model="gemma", seed=seed, **changes)


def components(first: str, second: str) -> dict[str, float]:
    """Return the mean difference and its components of variance."""
    runs = [[found(label, seed) for seed in range(SEEDS)] for label in (first, second)]
    differences = PairedDifferences.of([(1, runs[0]), (-1, runs[1])])
    d = differences.read("area").unstack("run")
    tasks, sources = (differences.instances.loc[d.index, level] for level in ("task", "source"))
    within = (d - d.groupby(tasks).transform("mean")).pow(2).sum() / (len(d) - tasks.nunique())
    means = d.mean(axis=1)
    return {
        "difference": float(d.to_numpy().mean()),
        "sd within tasks": math.sqrt(within.mean()),
        "sd of seeds": float(d.mean().std(ddof=1)),
        "sd of tasks": float(means.groupby(tasks).mean().std(ddof=1)),
        "sd of sources": float(means.groupby(sources).mean().std(ddof=1)),
    }


def found(label: str, seed: int) -> Run:
    run = stored(settings(label, seed))
    assert run is not None
    return run


def detectable(parts: dict[str, float], source_sd: float) -> dict[str, float]:
    """Return what the design detects, for these tasks and for those of other datasets."""
    seeds, n, sources = DESIGN.values()
    of_seeds = parts["sd of seeds"] ** 2 / seeds
    tasks = math.sqrt(parts["sd within tasks"] ** 2 / n + of_seeds)
    # Replicates of five folds give the variance of seeds five degrees of freedom.
    degrees = 5 * tasks**4 / of_seeds**2 if of_seeds else math.inf
    others = source_sd / math.sqrt(sources)
    return {
        "SE, these tasks": tasks,
        "detects, these tasks": tasks * _quantiles(degrees),
        "SE, other datasets": others,
        "detects, other datasets": others * _quantiles(sources - 1),
    }


def _quantiles(degrees: float) -> float:
    return float(student.ppf(0.975, degrees) + student.ppf(0.8, degrees))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    configs = [settings(label, seed) for seed in range(SEEDS) for label in LABELS]
    for _ in make_runs([c for c in configs if stored(c) is None], options.jobs):
        pass
    rows = []
    for first, second in CONTRASTS:
        parts = components(first, second)
        row = {"contrast": f"{first} - {second}", **parts}
        # Three source datasets say little of how far they differ: a trial on P3 had 0.56 of seven.
        rows.append(row | detectable(parts, max(0.56, parts["sd of sources"])))
    print(pd.DataFrame(rows).set_index("contrast").T.round(3).to_string())


if __name__ == "__main__":
    main()
