"""The difference of two orders, with an interval for these test tasks and one for other datasets.

The difference d_j of two orders on test instance j is that of two runs of the same seed, averaged
over the seeds that test it; the estimate is the mean over all instances, of whichever fold. The
first interval takes the tasks as given: it covers which of their instances were drawn and what a
seed changes. The second takes the source datasets as a sample of others: it is clustered by them.
Both are closed forms with Student's t; the protocol of the study (`book/protocol.md`) says why.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.stats import t as student

from tma.bootstrap import matched
from tma.errors import check_choice
from tma.intervals import TAILS, Interval
from tma.runs import Run
from tma.statistics import READINGS


@dataclass(frozen=True)
class Effect:
    """What is known of the difference of two orders, first minus second, in nats a token."""

    tasks: Interval
    """The mean difference, with the interval for these tasks, over instances and seeds; endless
    where nothing says how far seeds differ."""
    datasets: Interval
    """The same mean, with the interval for tasks of other datasets; endless with one dataset."""
    without_one: tuple[float, float]
    """Smallest and largest mean when one source dataset is left out."""
    median: float
    """Median over test instances."""
    by_tokens: float
    """Mean weighted by the response tokens of the instances."""
    improved: float
    """Share of the test instances on which the first is better."""
    seed_sd: float
    """Standard deviation of the mean difference between seeds on the same test instances; NaN where
    none was repeated."""

    @property
    def estimate(self) -> float:
        """The mean difference; negative: the first is better."""
        return self.tasks.estimate


def effect(
    first: Sequence[Run], second: Sequence[Run], measure: str = "area", seed_sd: float | None = None
) -> Effect:
    """Return the difference of two orders.

    Args:
        first: runs of the one order, one a seed; seeds may test different folds.
        second: runs of the other; those of the same seed belong together.
        measure: final: loss after the last step both evaluated; area: mean loss along the way
            (trapezoids over the steps).
        seed_sd: standard deviation between seeds where no fold was tested by two; None: such an
            effect has an endless interval for these tasks.

    Raises:
        ParameterError: an unknown measure, or no seed in common.
    """
    check_choice("measure", measure, READINGS)
    gaps = [_gap(one, other, measure) for one, other in matched(first, second)]
    found = pd.concat(gaps, keys=range(len(gaps)), names=["run", "id"])
    own_sd, degrees = _between_seeds(found)
    table = found.groupby(level="id").agg(
        gap=("gap", "mean"), task=("task", "first"), source=("source", "first"),
        tokens=("tokens", "first"),
    )  # fmt: skip
    sd = own_sd if degrees else (math.nan if seed_sd is None else seed_sd)
    seeds = len(gaps)
    sums = table.groupby("source")["gap"].agg(["sum", "size"])
    rest = (sums["sum"].sum() - sums["sum"]) / (sums["size"].sum() - sums["size"])
    return Effect(
        _for_tasks(table, sd, max(degrees, 1), seeds),
        _for_datasets(table, seeds),
        (float(rest.min()), float(rest.max())),
        float(table["gap"].median()),
        float(np.average(table["gap"], weights=table["tokens"])),
        float((table["gap"] < 0).mean()),
        own_sd,
    )


def _gap(one: Run, other: Run, measure: str) -> pd.DataFrame:
    """Return the difference on each test instance: gap, task, source, tokens, by id."""
    tables = [run.losses.pivot(index="id", columns="step", values="loss") for run in (one, other)]
    shared = tables[0].columns.intersection(tables[1].columns).sort_values()
    gap = (tables[0] - tables[1])[shared].dropna()
    if measure == "final":
        read = gap[shared[-1]]
    else:
        steps = shared.to_numpy(np.float64)
        area = np.trapezoid(gap.to_numpy(), steps, axis=1) / (steps[-1] - steps[0])
        read = pd.Series(area, gap.index)
    about = one.losses.drop_duplicates("id").set_index("id").loc[gap.index]
    task = about["task"].fillna(about.index.to_series())
    # Runs of an older form, and data without source datasets: a task stands for itself.
    source = about["source"].fillna(task) if "source" in about else task
    return pd.DataFrame({"gap": read, "task": task, "source": source, "tokens": about["tokens"]})


def _between_seeds(found: pd.DataFrame) -> tuple[float, int]:
    """Return how far the mean differs between seeds that test the same instances.

    Returns:
        The standard deviation, and its degrees of freedom; NaN and 0 where no two seeds do.
    """
    ids = found.reset_index().groupby("run")["id"].agg(lambda own: " ".join(sorted(own)))
    groups = found["gap"].groupby(level="run").mean().groupby(ids)
    repeated = groups.agg(["var", "size"]).query("size > 1")
    degrees = int((repeated["size"] - 1).sum())
    if not degrees:
        return math.nan, 0
    pooled = float((repeated["var"] * (repeated["size"] - 1)).sum()) / degrees
    return math.sqrt(pooled), degrees


def _for_tasks(table: pd.DataFrame, seed_sd: float, degrees: int, seeds: int) -> Interval:
    """Return the interval over the instances of each task and over seeds."""
    n, mean = len(table), float(table["gap"].mean())
    groups = table.groupby("task")["gap"].agg(["var", "size"])
    inside = int((groups["size"] - 1).sum())
    if not inside:  # one instance a task: the tasks stand for instances
        groups = pd.DataFrame({"var": [table["gap"].var()], "size": [n]})
        inside = n - 1
    pooled = (groups["var"] * (groups["size"] - 1)).sum() / max(1, inside)
    of_instances = float((groups["size"] * groups["var"].fillna(pooled)).sum()) / n**2
    of_seeds = seed_sd**2 / seeds
    variance = of_instances + of_seeds
    spread = of_instances**2 / max(1, inside) + of_seeds**2 / degrees
    freedom = variance**2 / spread if spread > 0 else math.inf
    return _interval(Interval(mean, -math.inf, math.inf, n, seeds), variance, freedom)


def _for_datasets(table: pd.DataFrame, seeds: int) -> Interval:
    """Return the interval clustered by source dataset."""
    n, mean = len(table), float(table["gap"].mean())
    sums = (table["gap"] - mean).groupby(table["source"]).sum()
    count = len(sums)
    variance = math.nan if count < 2 else count / (count - 1) * float((sums**2).sum()) / n**2
    endless = Interval(mean, -math.inf, math.inf, n, seeds, clusters=count)
    return _interval(endless, variance, count - 1)


def _interval(endless: Interval, variance: float, freedom: float) -> Interval:
    """Return an interval with its ends, if its variance is known."""
    if not math.isfinite(variance):
        return endless
    half = float(student.ppf(TAILS[1], freedom)) * math.sqrt(variance)
    return replace(endless, low=endless.estimate - half, high=endless.estimate + half)
