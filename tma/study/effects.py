"""Differences of orders with their two intervals (`book/protocol.md`).

The difference of two orders on a test instance is that of two runs of the same seed, averaged over
the seeds that test it; the estimate is the mean over all instances. One interval takes the tasks as
given, the other the source datasets as a sample; both are closed forms with Student's t.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd

from tma.errors import ParameterError, check_choice
from tma.runs.store import Run
from tma.study.statistics import (
    READINGS,
    Interval,
    Runs,
    area,
    by_id,
    format_interval,
    format_range,
    instances,
    signed,
    t_interval,
)

Table = TypeVar("Table", pd.DataFrame, pd.Series)
WeightedRuns = Sequence[tuple[float, Sequence[Run]]]
"""A weighted sum of orders: (weight, runs of one order) each."""


class Spread(NamedTuple):
    """How far seeds differ on the same test instances."""

    sd: float
    degrees: int


Spreads = Mapping[str, Spread]
"""By reading."""


@dataclass(frozen=True)
class Effect:
    """A difference of orders, in nats a token."""

    tasks: Interval
    """The mean with its interval for these tasks; unbounded without a spread of seeds."""
    datasets: Interval
    """The same with its interval for tasks of other datasets; unbounded with one dataset."""
    without_one: tuple[float, float]
    """Smallest and largest mean when one source dataset is left out."""
    median: float
    by_tokens: float
    """Mean weighted by the response tokens of the instances."""
    improved: float
    """Share of the test instances with a difference below zero."""
    own_spread: Spread | None
    """Of its own seeds; None: no fold was repeated."""

    @property
    def known(self) -> Interval:
        """The interval for these tasks; without a spread of seeds that for other datasets."""
        return self.tasks if math.isfinite(self.tasks.low) else self.datasets

    @property
    def over(self) -> str:
        """What the known interval is for."""
        return "for these tasks" if self.known is self.tasks else "for tasks of other datasets"

    @property
    def estimate(self) -> float:
        """The mean difference; negative: the first order is better."""
        return self.tasks.estimate


def effect(
    first: Sequence[Run], second: Sequence[Run], measure: str = "area", spread: Spread | None = None
) -> Effect:
    """Return the difference of two orders, first minus second.

    Args:
        first: runs of the one order, one a seed; seeds may test different folds.
        second: runs of the other; those of the same seed belong together.
        measure: final: loss at each run's own end; area: mean loss along the way, up to the end
            of the shorter run.
        spread: how far seeds differ, used where no fold was tested by two.

    Raises:
        ParameterError: an unknown measure, or no seed or test instance in common.
    """
    return combined([(1, first), (-1, second)], measure, spread)


def combined(sides: WeightedRuns, measure: str = "area", spread: Spread | None = None) -> Effect:
    """Return a weighted sum of orders, such as a difference of differences."""
    check_choice("measure", measure, READINGS)
    differences = PairedDifferences.of(sides)
    return estimated(differences.read(measure), differences.instances, spread)


def outweighs(
    one: WeightedRuns, other: WeightedRuns, measure: str = "area", spread: Spread | None = None
) -> Effect:
    """Return by how much one sum of orders is larger in size than another, |one| - |other|.

    The signs of both estimates are taken as given, on the seeds that all sides share. Chance makes
    what varies more look larger, so neither counts as larger unless it excludes zero itself.
    """
    several = [{run.config.seed for run in runs} for _, runs in (*one, *other) if len(runs) > 1]
    shared = set.intersection(*several) if several else set()
    signed = []
    for direction, side in ((1, one), (-1, other)):
        part = [
            (weight, [run for run in runs if len(runs) == 1 or run.config.seed in shared])
            for weight, runs in side
        ]
        sign = math.copysign(1, direction * combined(part, measure).estimate)
        signed += [(sign * weight, runs) for weight, runs in part]
    return combined(signed, measure, spread)


def course(first: Sequence[Run], second: Sequence[Run]) -> dict[int, Effect]:
    """Return the difference of two orders by step: those that all runs evaluated, and the end.

    Where seeds end at different steps, the end of each stands at the last of them. The interval for
    these tasks needs repeated folds: how far seeds differ depends on the step, so that no spread of
    another comparison stands for it.
    """
    differences = PairedDifferences.of([(1, first), (-1, second)])
    curves = differences.curves
    shared = pd.concat(curves, keys=range(len(curves)), names=["run", "id"], join="inner")
    ends = [int(curve.columns[-1]) for curve in curves]
    values = {int(str(step)): gaps for step, gaps in shared.items() if int(str(step)) < min(ends)}
    values[max(ends)] = differences.read("final")
    return {step: estimated(gap, differences.instances, None) for step, gap in values.items()}


def widest(course: Mapping[int, Effect]) -> int:
    """Return the step after which a difference is largest in size."""
    return max(course, key=lambda step: abs(course[step].estimate))


def by_task(first: Sequence[Run], second: Sequence[Run], measure: str = "area") -> pd.DataFrame:
    """Return the mean difference of two orders by test task: gap, tokens (a response), n."""
    check_choice("measure", measure, READINGS)
    differences = PairedDifferences.of([(1, first), (-1, second)])
    gap = differences.read(measure)
    rows = differences.instances.assign(gap=gap.groupby(level="id").mean())
    grouped = rows.groupby("task")
    return grouped.agg(gap=("gap", "mean"), tokens=("tokens", "mean"), n=("gap", "size"))


def variety(runs: Runs, baseline: str, *, steps: int = 4) -> dict[str, tuple[float, Effect]]:
    """Return order → effective number of tasks in each of its first steps, averaged, and how far
    its loss lies from the baseline's at the last evaluation among them.

    The effective number is the exponential of the entropy of the tasks in a step.
    """
    found = dict[str, tuple[float, Effect]]()
    for order, own in runs.items():
        tasks = [run.training.query(f"step <= {steps}")["effective_tasks"].mean() for run in own]
        gaps = course(own, runs[baseline])
        found[order] = (float(np.mean(tasks)), gaps[max(step for step in gaps if step <= steps)])
    return dict(sorted(found.items(), key=lambda one: -one[1][0]))


def contrasts(
    runs: Runs, pairs: Mapping[str, tuple[str, str]], spreads: Spreads
) -> dict[str, dict[str, Effect]]:
    """Return reading → name → first minus second, of the pairs of labels that have runs."""
    known = {name: pair for name, pair in pairs.items() if {*pair} <= {*runs}}
    return {
        measure: {
            name: effect(runs[first], runs[second], measure, spreads.get(measure))
            for name, (first, second) in known.items()
        }
        for measure in READINGS
    }


def table(effects: Mapping[str, Effect]) -> pd.DataFrame:
    """Return effects as rows of numbers: the estimate, both intervals, what stands beside it."""
    columns = [
        *("estimate", "low", "high", "datasets_low", "datasets_high"),
        *("without_one_low", "without_one_high", "median", "by_tokens", "below_zero", "n", "seeds"),
    ]
    rows = [
        (
            *(e.estimate, e.tasks.low, e.tasks.high, e.datasets.low, e.datasets.high),
            *(*e.without_one, e.median, e.by_tokens, e.improved, e.tasks.n, e.tasks.seeds),
        )
        for e in effects.values()
    ]
    return pd.DataFrame(rows, index=list(effects), columns=columns)


def format_effect(effect: Effect) -> str:
    """Return the estimate with its interval for these tasks, or else that for other datasets."""
    return format_interval(effect.known)


def format_table(effects: Mapping[str, Effect]) -> pd.DataFrame:
    """Return effects as rows for display: each interval in one cell."""
    rows = [
        (
            format_interval(e.tasks),
            format_range(e.datasets.low, e.datasets.high),
            format_range(*e.without_one),
            f"{signed(e.median)}; {signed(e.by_tokens)}",
            f"{e.improved:.0%}",
        )
        for e in effects.values()
    ]
    columns = ["difference (these tasks)", "other datasets", "without one dataset"]
    return pd.DataFrame(rows, list(effects), [*columns, "median; by tokens", "below 0"])


class PairedDifferences(NamedTuple):
    """A weighted sum of orders on each test instance, seed by seed."""

    curves: list[pd.DataFrame]
    """Of each seed, nats a token by id × step."""
    finals: list[pd.Series]
    """The same at each run's own end, which may be another step."""
    instances: pd.DataFrame
    """task, source and tokens of each instance, by id."""

    @classmethod
    def of(cls, sides: WeightedRuns) -> PairedDifferences:
        """Return the weighted sum, at the steps that all runs of a seed have and the first end."""
        weights = [weight for weight, _ in sides]
        seeds = _by_seed([runs for _, runs in sides])
        curves, finals = [], []
        for runs in seeds:
            tables = _tables(runs)
            ends = [table.iloc[:, -1] for table in tables]
            steps = set.intersection(*(set(table.columns) for table in tables))
            steps |= {min(table.columns[-1] for table in tables)}
            curves.append(_sum(weights, [_at(table, sorted(steps)) for table in tables]))
            finals.append(_sum(weights, ends))
        return cls(curves, finals, instances([runs[0] for runs in seeds]))

    def read(self, measure: str) -> pd.Series:
        """Return a reading of each curve, up to the end of its own seed, by (run, id)."""
        parts = self.finals
        if measure == "area":
            parts = [pd.Series(area(c.to_numpy(), c.columns), c.index) for c in self.curves]
        read: pd.Series = pd.concat(parts, keys=range(len(parts)), names=["run", "id"])
        return read


def _by_seed(sides: Sequence[Sequence[Run]]) -> list[list[Run]]:
    """Return the runs of several orders by shared seed; a single run belongs to every seed."""
    tables = [{run.config.seed: run for run in runs} for runs in sides]
    for number, (runs, own) in enumerate(zip(sides, tables, strict=True), start=1):
        if not runs or len(own) < len(runs):
            seeds = [run.config.seed for run in runs]
            raise ParameterError(
                f"side {number} has runs of seeds {seeds}; expected one run or more, each of a "
                "seed of its own."
            )
    several = [set(own) for own in tables if len(own) > 1]
    shared = sorted(set.intersection(*several)) if several else [0]
    if not shared:
        text = " and ".join(str(sorted(own)) for own in several)
        raise ParameterError(f"the sides have seeds {text}; expected seeds in common.")
    return [
        [runs[0] if len(runs) == 1 else own[seed] for runs, own in zip(sides, tables, strict=True)]
        for seed in shared
    ]


def _tables(runs: Sequence[Run]) -> list[pd.DataFrame]:
    tables = [by_id(run) for run in runs]
    if any(not table.index.equals(tables[0].index) for table in tables):
        counts = " and ".join(str(len(table)) for table in tables)
        raise ParameterError(
            f"the runs of seed {runs[0].config.seed} have different test instances ({counts} of "
            "them); expected the same ids. Compare runs with the same data settings."
        )
    return tables


def _sum(weights: Sequence[float], tables: Sequence[Table]) -> Table:
    parts = [weight * table for weight, table in zip(weights, tables, strict=True)]
    return functools.reduce(operator.add, parts)


def _at(table: pd.DataFrame, steps: Sequence[Any]) -> pd.DataFrame:
    between = table.reindex(columns=sorted({*table.columns, *steps}))
    return between.interpolate(axis=1, method="index")[[*steps]]


def estimated(values: pd.Series, instances: pd.DataFrame, spread: Spread | None) -> Effect:
    """Return the effect that paired differences by (run, id) give."""
    seeds = values.index.get_level_values("run").nunique()
    own = _between_seeds(values)
    mean = values.groupby(level="id").mean().rename("gap")
    rows = instances.loc[mean.index].assign(gap=mean)
    sources = rows.groupby("source")["gap"].agg(["sum", "size"])
    rest = sources.sum() - sources
    left = (rest["sum"] / rest["size"])[rest["size"] > 0]
    return Effect(
        _for_tasks(rows, own or spread, seeds),
        _for_datasets(rows, seeds),
        (float(left.min()), float(left.max())),
        float(mean.median()),
        float(np.average(rows["gap"], weights=rows["tokens"])),
        float((mean < 0).mean()),
        own,
    )


def _between_seeds(values: pd.Series) -> Spread | None:
    """Return how far the mean differs between seeds that test the same instances, if any do."""
    ids = values.rename("gap").reset_index().groupby("run")["id"].agg(" ".join)
    folds = values.groupby(level="run").mean().groupby(ids)
    repeated = folds.agg(["var", "size"]).query("size > 1")
    degrees = int((repeated["size"] - 1).sum())
    if not degrees:
        return None
    pooled = float((repeated["var"] * (repeated["size"] - 1)).sum()) / degrees
    return Spread(math.sqrt(pooled), degrees)


def _for_tasks(rows: pd.DataFrame, spread: Spread | None, seeds: int) -> Interval:
    n, mean = len(rows), float(rows["gap"].mean())
    tasks = rows.groupby("task")["gap"].agg(["var", "size"])
    if (tasks["size"] == 1).all():  # the tasks stand for instances
        tasks = pd.DataFrame({"var": [rows["gap"].var()], "size": [n]})
    degrees = tasks["size"] - 1
    inside = int(degrees.sum())
    pooled = (tasks["var"] * degrees).sum() / max(1, inside)
    # A task of one instance among others has their pooled variance, on their degrees of freedom.
    degrees = degrees.where(degrees > 0, max(1, inside))
    parts = tasks["size"] * tasks["var"].fillna(pooled) / n**2
    of_seeds = math.nan if spread is None else spread.sd**2 / seeds
    variance = float(parts.sum()) + of_seeds
    squares = float((parts**2 / degrees).sum())
    squares += 0 if spread is None else of_seeds**2 / spread.degrees
    freedom = variance**2 / squares if squares > 0 else math.inf
    return t_interval(mean, variance if inside else math.nan, freedom, n=n, seeds=seeds)


def _for_datasets(rows: pd.DataFrame, seeds: int) -> Interval:
    n, mean = len(rows), float(rows["gap"].mean())
    sums = (rows["gap"] - mean).groupby(rows["source"]).sum()
    count = len(sums)
    variance = count / (count - 1) * float((sums**2).sum()) / n**2 if count > 1 else math.nan
    return t_interval(mean, variance, count - 1, n=n, seeds=seeds)
