"""Differences of orders, and other numbers read off runs, with their intervals.

A run's losses are on the test instances of its seed; at scale `study` another seed tests another
fold. The difference d_j of two orders on test instance j is that of two runs of the same seed,
averaged over the seeds that test it; the estimate is the mean over all instances, of whichever
fold. One interval takes the tasks as given: it covers which of their instances were drawn and what
a seed changes. Another takes the source datasets as a sample of others: it is clustered by them.
Both are closed forms with Student's t; shares and correlations have the second one only, by the
jackknife. The protocol of the study (`book/protocol.md`) says why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import t as student

from tma.errors import ParameterError, check_choice, wrong
from tma.runs.store import Run
from tma.study.intervals import TAILS, Floats, Interval, ends, written

READINGS = ("final", "area")
"""What a curve is read by: the loss at its end, the mean loss along the way."""
Weighted = Sequence[tuple[float, Sequence[Run]]]
"""(weight, runs of one order), of a sum of orders."""
Runs = Mapping[str, Sequence[Run]]
"""Label of an order → its runs, one a seed."""


class Spread(NamedTuple):
    """How far seeds differ on the same test instances, taken from other comparisons."""

    sd: float
    """Standard deviation of the mean difference between seeds."""
    degrees: int
    """Its degrees of freedom."""


@dataclass(frozen=True)
class Effect:
    """What is known of a difference of orders, in nats a token."""

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
    """Share of the test instances on which it is below zero."""
    own_spread: Spread | None
    """How far seeds differ on the same test instances; None: none was repeated."""

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
            of the shorter one (trapezoids over the steps).
        spread: how far seeds differ, where no fold was tested by two; None: such an effect has an
            unbounded interval for these tasks.

    Raises:
        ParameterError: an unknown measure, or no seed, test instance or step in common.
    """
    return combined([(1, first), (-1, second)], measure, spread)


def combined(sides: Weighted, measure: str = "area", spread: Spread | None = None) -> Effect:
    """Return a weighted sum of orders, as of two differences; arguments as those of `effect`."""
    check_choice("measure", measure, READINGS)
    gaps = Gaps.of(sides)
    return gaps.effect(gaps.read(measure), spread)


def outweighs(
    one: Weighted, other: Weighted, measure: str = "area", spread: Spread | None = None
) -> Effect:
    """Return by how much one sum of orders is larger in size than another, |one| - |other|.

    The signs of both estimates are taken as given. Chance makes what varies more look larger, so
    that neither counts as larger unless it excludes zero itself. `spread` is that of all sides.
    """
    every = [{run.config.seed for run in runs} for _, runs in (*one, *other) if len(runs) > 1]
    shared = set.intersection(*every) if every else set()
    parts = tuple(
        [(w, [r for r in runs if len(runs) == 1 or r.config.seed in shared]) for w, runs in side]
        for side in (one, other)
    )
    first, second = (math.copysign(1, combined(part, measure).estimate) for part in parts)
    signed = [(first * weight, runs) for weight, runs in parts[0]]
    signed += [(-second * weight, runs) for weight, runs in parts[1]]
    return combined(signed, measure, spread)


def course(
    first: Sequence[Run], second: Sequence[Run], spread: Spread | None = None
) -> list[Interval]:
    """Return the difference of two orders after each step that both evaluated, for these tasks."""
    gaps = Gaps.of([(1, first), (-1, second)])
    values = gaps.values.dropna(axis=1)
    if values.empty:
        raise ParameterError(
            "the seeds have no evaluated step in common; expected one at least. Give their runs "
            "the same eval_every or eval_at."
        )
    every = ((int(step), gaps.effect(values[step], spread)) for step in values.columns)
    return [replace(found.tasks, step=step) for step, found in every]


def courses(
    runs: Runs, baseline: str, spreads: Mapping[str, Spread] | None = None
) -> dict[str, list[Interval]]:
    """Return the difference of each order from one of them after every step; see `course`.

    How far seeds differ along the way stands for how far they do after a step.
    """
    spread = (spreads or {}).get("area")
    others = {label: made for label, made in runs.items() if label != baseline}
    return {label: course(made, runs[baseline], spread) for label, made in others.items()}


def contrasts(
    runs: Runs, pairs: Mapping[str, tuple[str, str]], spreads: Mapping[str, Spread] | None = None
) -> dict[str, dict[str, Effect]]:
    """Return the differences of several pairs of orders by each reading.

    Args:
        runs: label → runs.
        pairs: name → labels of the first order and the second; a pair without runs is left out.
        spreads: reading → how far seeds differ, where no fold was tested by two.

    Returns:
        Reading → name → first minus second.
    """
    there = {n: p for n, p in pairs.items() if all(label in runs for label in p)}
    return {
        measure: {
            name: effect(runs[one], runs[other], measure, (spreads or {}).get(measure))
            for name, (one, other) in there.items()
        }
        for measure in READINGS
    }


def largest_spread(runs: Runs, pairs: Sequence[tuple[str, str]], measure: str) -> Spread | None:
    """Return how far seeds differ in that comparison in which they do so most; None: in none.

    Args:
        runs: label → runs.
        pairs: labels of the first order and the second; those without runs are passed over.
        measure: final or area.
    """
    there = [pair for pair in pairs if all(label in runs for label in pair)]
    found = [effect(runs[one], runs[other], measure).own_spread for one, other in there]
    return max((spread for spread in found if spread is not None), default=None)


def table(effects: Mapping[str, Effect]) -> pd.DataFrame:
    """Return effects as rows of numbers: the estimate, both intervals, what stands beside it."""
    rows = {
        name: {
            "estimate": e.estimate,
            "low": e.tasks.low,
            "high": e.tasks.high,
            "datasets_low": e.datasets.low,
            "datasets_high": e.datasets.high,
            "without_one_low": e.without_one[0],
            "without_one_high": e.without_one[1],
            "median": e.median,
            "by_tokens": e.by_tokens,
            "below_zero": e.improved,
            "n": e.tasks.n,
            "seeds": e.tasks.seeds,
        }
        for name, e in effects.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def shown(effects: Mapping[str, Effect]) -> pd.DataFrame:
    """Return effects as rows for display: each interval in one cell."""
    rows = {
        name: {
            "difference (these tasks)": written(e.estimate, e.tasks.low, e.tasks.high),
            "other datasets": ends(e.datasets.low, e.datasets.high),
            "without one dataset": ends(*e.without_one),
            "median; by tokens": f"{e.median:+.3f}; {e.by_tokens:+.3f}",
            "below 0": f"{e.improved:.0%}",
        }
        for name, e in effects.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def jackknife(
    clusters: Sequence[str], statistic: Callable[[str | None], float], n: int, seeds: int
) -> Interval:
    """Return a number with its interval for tasks of other datasets, leaving out one at a time.

    Args:
        clusters: the source datasets, each once (see `clusters_of`).
        statistic: the one left out, or None → the number.
        n: test instances.
        seeds: seeds.

    Returns:
        SE² = (C - 1)/C · Σ (θ_c - mean θ)², with t on C - 1 degrees of freedom; endless where there
        are fewer than two, or where a number is not finite.
    """
    estimate, count = statistic(None), len(clusters)
    left = np.array([statistic(one) for one in clusters])
    variance = (count - 1) / max(1, count) * float(((left - left.mean()) ** 2).sum())
    endless = Interval(estimate, -math.inf, math.inf, n, seeds, clusters=count)
    return _interval(endless, variance if count > 1 else math.nan, count - 1)


def by_id(run: Run) -> pd.DataFrame:
    """Return a run's test losses by id × step, nats a token."""
    return run.losses.pivot(index="id", columns="step", values="loss")


def check_course(values: pd.DataFrame) -> None:
    """Refuse values by … × step of fewer than two steps.

    Raises:
        ParameterError: there is no course to read.
    """
    if values.shape[1] < 2:
        raise ParameterError(
            f"the runs share the evaluated steps {values.columns.tolist()}; expected two at least. "
            "Give them the same eval_every and eval_at."
        )


def area(curves: Floats, steps: NDArray[Any]) -> Floats:
    """Return the mean along curves (…, steps), by trapezoids."""
    mean: Floats = np.trapezoid(curves, steps, axis=-1) / (steps[-1] - steps[0])
    return mean


def about(run: Run) -> pd.DataFrame:
    """Return task, source and response tokens of each test instance, by id.

    Where the data names no source datasets, a task stands for itself; without tasks, an instance.
    """
    found = run.losses.drop_duplicates("id").set_index("id")
    task = found["task"].fillna(found.index.to_series())
    source = found["source"].fillna(task) if "source" in found else task
    return pd.DataFrame({"task": task, "source": source, "tokens": found["tokens"]})


def clusters_of(runs: Sequence[Run]) -> pd.Series:
    """Return the cluster of each test instance of some runs, by id, for `jackknife`.

    It is its source dataset; its task where there is one dataset; itself where there is one task.
    """
    tables = pd.concat([about(run) for run in runs])
    found = tables[~tables.index.duplicated()]
    for level in ("source", "task"):
        if found[level].nunique() > 1:
            return found[level]
    return found.index.to_series()


def matched(*sides: Sequence[Run]) -> list[tuple[Run, ...]]:
    """Return the runs of several orders that belong together: those of the same seed.

    A single run, as of an order without chance, is put beside every seed of the other sides.

    Raises:
        ParameterError: a side has no run or two of one seed, or no seed is on all sides that have
            several.
    """
    found = [_by_seed(number, side) for number, side in enumerate(sides, start=1)]
    several = [runs for runs in found if len(runs) > 1]
    if not several:
        return [tuple(run for runs in found for run in runs.values())]
    shared = sorted(set.intersection(*(set(runs) for runs in several)))
    if not shared:
        seeds = " and ".join(str(sorted(runs)) for runs in several)
        raise ParameterError(f"the sides have seeds {seeds}; expected seeds in common.")
    return [tuple(r.get(seed) or next(iter(r.values())) for r in found) for seed in shared]


def _by_seed(number: int, runs: Sequence[Run]) -> dict[int, Run]:
    found = {run.config.seed: run for run in runs}
    if not runs or len(found) < len(runs):
        seeds = [run.config.seed for run in runs]
        raise ParameterError(f"side {number} has runs of seeds {seeds}; expected one run or more, "
                             "each of a seed of its own.")  # fmt: skip
    return found


@dataclass(frozen=True)
class Gaps:
    """A weighted sum of orders on each test instance of each seed."""

    values: pd.DataFrame
    """Nats a token by (number of the seed, id) × step; NaN where a seed was not evaluated."""
    finals: pd.Series
    """The same at each run's own end, which may be another step."""
    about: pd.DataFrame
    """task, source and tokens of each instance, by id."""

    @classmethod
    def of(cls, sides: Weighted) -> Gaps:
        """Return the weighted sum of orders, seed by seed.

        Raises:
            ParameterError: no side, or no seed, test instance or step in common.
        """
        if not sides:
            raise wrong("sides", list(sides), "the runs of one order at least")
        weights = [weight for weight, _ in sides]
        seeds = matched(*(runs for _, runs in sides))
        tables = [_tables(runs) for runs in seeds]
        values = [_sum(weights, own) for own in tables]
        ends = [_sum(weights, [_last(one) for one in own]) for own in tables]
        abouts = pd.concat([about(runs[0]) for runs in seeds])
        keys = range(len(seeds))
        whole, finals = (pd.concat(p, keys=keys, names=["run", "id"]) for p in (values, ends))
        whole = whole[sorted(whole.columns)]
        return cls(whole, finals[0], abouts[~abouts.index.duplicated()])

    def read(self, measure: str) -> pd.Series:
        """Return a reading of each curve, up to the end of its own seed."""
        if measure == "final":
            return self.finals
        parts = []
        for _, own in self.values.groupby(level="run"):
            curves = own.dropna(axis=1)
            check_course(curves)
            parts.append(pd.Series(area(curves.to_numpy(), curves.columns.to_numpy()), own.index))
        return pd.concat(parts)

    def effect(self, read: pd.Series, spread: Spread | None) -> Effect:
        """Return what is known of one value an instance and seed."""
        seeds = read.index.get_level_values("run").nunique()
        own = _between_seeds(read)
        gap = read.groupby(level="id").mean().rename("gap")
        rows = self.about.loc[gap.index].assign(gap=gap)
        sums = rows.groupby("source")["gap"].agg(["sum", "size"])
        others = sums["size"].sum() - sums["size"]
        rest = (sums["sum"].sum() - sums["sum"])[others > 0] / others[others > 0]
        ends = (float(rest.min()), float(rest.max())) if len(rest) else (math.nan, math.nan)
        return Effect(
            _for_tasks(rows, own or spread, seeds),
            _for_datasets(rows, seeds),
            ends,
            float(gap.median()),
            float(np.average(rows["gap"], weights=rows["tokens"])),
            float((gap < 0).mean()),
            own,
        )


def _tables(runs: Sequence[Run]) -> list[pd.DataFrame]:
    """Return the losses of runs by id × step, all of the same test instances."""
    tables = [by_id(run) for run in runs]
    if any(not table.index.equals(tables[0].index) for table in tables):
        counts = " and ".join(str(len(table)) for table in tables)
        raise ParameterError(
            f"the runs of seed {runs[0].config.seed} have different test instances ({counts} of "
            "them); expected the same ids. Compare runs with the same data settings."
        )
    return tables


def _last(table: pd.DataFrame) -> pd.DataFrame:
    """Return the last column alone, under a name that is the same for all."""
    return table.iloc[:, -1:].set_axis([0], axis=1)


def _sum(weights: Sequence[float], tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return the weighted sum of tables at the steps that all have, and at the first end.

    An instance that both halves of an order hold is used once, so that some orders end a step
    before others; the longer curves are read there on the straight line to their next step.
    """
    shared = set.intersection(*(set(table.columns) for table in tables))
    if not shared:
        raise ParameterError(
            "the runs have no evaluated step in common; expected one at least. Give them the same "
            "eval_every or eval_at."
        )
    steps = sorted(shared | {min(table.columns.max() for table in tables)})
    parts = (weight * _at(table, steps) for weight, table in zip(weights, tables, strict=True))
    return sum(parts, pd.DataFrame(0.0, tables[0].index, steps))


def _at(table: pd.DataFrame, steps: Sequence[Any]) -> pd.DataFrame:
    """Return values at some steps, linearly interpolated between those of the table."""
    between = table.reindex(columns=sorted({*table.columns, *steps}))
    return between.interpolate(axis=1, method="index")[[*steps]]


def _between_seeds(read: pd.Series) -> Spread | None:
    """Return how far the mean differs between seeds that test the same instances, if any do."""
    ids = read.rename("gap").reset_index().groupby("run")["id"].agg(" ".join)
    groups = read.groupby(level="run").mean().groupby(ids)
    repeated = groups.agg(["var", "size"]).query("size > 1")
    degrees = int((repeated["size"] - 1).sum())
    if not degrees:
        return None
    pooled = float((repeated["var"] * (repeated["size"] - 1)).sum()) / degrees
    return Spread(math.sqrt(pooled), degrees)


def _for_tasks(rows: pd.DataFrame, spread: Spread | None, seeds: int) -> Interval:
    """Return the interval over the instances of each task and over seeds."""
    n, mean = len(rows), float(rows["gap"].mean())
    groups = rows.groupby("task")["gap"].agg(["var", "size"])
    if (groups["size"] == 1).all():  # the tasks stand for instances
        groups = pd.DataFrame({"var": [rows["gap"].var()], "size": [n]})
    degrees = groups["size"] - 1
    inside = int(degrees.sum())
    pooled = (groups["var"] * degrees).sum() / max(1, inside)
    # A task of one instance among others has their pooled variance, on their degrees of freedom.
    degrees = degrees.where(degrees > 0, max(1, inside))
    parts = groups["size"] * groups["var"].fillna(pooled) / n**2
    of_seeds = math.nan if spread is None else spread.sd**2 / seeds
    variance = float(parts.sum()) + of_seeds
    squares = float((parts**2 / degrees).sum())
    squares += 0 if spread is None else of_seeds**2 / spread.degrees
    freedom = variance**2 / squares if squares > 0 else math.inf
    endless = Interval(mean, -math.inf, math.inf, n, seeds, freedom=freedom)
    return _interval(endless, variance if inside else math.nan, freedom)


def _for_datasets(rows: pd.DataFrame, seeds: int) -> Interval:
    """Return the interval clustered by source dataset."""
    n, mean = len(rows), float(rows["gap"].mean())
    sums = (rows["gap"] - mean).groupby(rows["source"]).sum()
    count = len(sums)
    variance = math.nan if count < 2 else count / (count - 1) * float((sums**2).sum()) / n**2
    endless = Interval(mean, -math.inf, math.inf, n, seeds, clusters=count)
    return _interval(endless, variance, count - 1)


def _interval(endless: Interval, variance: float, freedom: float) -> Interval:
    """Return an interval with its ends, if its variance is known."""
    if not math.isfinite(variance) or not math.isfinite(endless.estimate):
        return endless
    half = float(student.ppf(TAILS[1], freedom)) * math.sqrt(variance)
    low, high = endless.estimate - half, endless.estimate + half
    return replace(endless, low=low, high=high, freedom=freedom)
