"""Runs → curves and numbers with their 95% intervals: how early the loss falls, how steadily.

A loss is the mean over response tokens, in nats; a curve is the mean over test instances. Shares
and roughness are no means of instances: they have one interval, for tasks of other datasets, by the
jackknife over source datasets (`book/protocol.md`). Differences of orders are in `effects`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import t as student

from tma.errors import DataError, ParameterError, wrong
from tma.runs.store import Run

Floats = NDArray[np.float64]
Runs = Mapping[str, Sequence[Run]]
"""Label of an order → its runs, one a seed."""
READINGS = ("final", "area")
"""The loss at the end of a curve, and the mean loss along the way."""
SCORES = ("rouge1", "rougeL", "exact_match", "reward")
TAILS = (0.025, 0.975)


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95% interval, over `n` test instances."""

    estimate: float
    low: float
    high: float
    n: int
    seeds: int
    freedom: float = math.inf
    """Degrees of freedom of Student's t."""
    over: str | None = None
    """What the jackknife left out: source, task or id; None: it was not used."""
    without_one: tuple[float, float] = (math.nan, math.nan)
    """Smallest and largest estimate of the jackknife."""

    @property
    def clear(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0

    def among(self, count: int) -> Interval:
        """Return the interval widened for being one of `count` (Bonferroni)."""
        wide, usual = student.ppf((1 - TAILS[0] / count, TAILS[1]), max(1, self.freedom))
        near, ratio = self.estimate, float(wide / usual)
        low, high = (near + ratio * (end - near) for end in (self.low, self.high))
        return replace(self, low=low, high=high)

    def mirrored(self) -> Interval:
        """Return the interval of minus the estimate."""
        low, high, (least, most) = -self.high, -self.low, self.without_one
        return replace(
            self, estimate=-self.estimate, low=low, high=high, without_one=(-most, -least)
        )

    def within(self, least: float, most: float) -> Interval:
        """Return the interval cut to the values that its quantity can have."""
        if not math.isfinite(self.estimate):
            return self
        return replace(self, low=max(self.low, least), high=min(self.high, most))

    def minus(self, value: float) -> Interval:
        """Return the interval of the estimate minus a constant."""
        ends = (self.estimate, self.low, self.high, *self.without_one)
        near, low, high, least, most = (end - value for end in ends)
        return replace(self, estimate=near, low=low, high=high, without_one=(least, most))


def t_interval(estimate: float, variance: float, freedom: float, *, n: int, seeds: int) -> Interval:
    """Return estimate ± t · √variance; unbounded where estimate or variance is not finite."""
    low, high = -math.inf, math.inf
    if math.isfinite(variance) and math.isfinite(estimate):
        half = float(student.ppf(TAILS[1], freedom)) * math.sqrt(variance)
        low, high = estimate - half, estimate + half
    return Interval(estimate, low, high, n, seeds, freedom=freedom)


def jackknife(
    clusters: pd.Series, statistic: Callable[[str | None], float], n: int, seeds: int
) -> Interval:
    """Return θ, `statistic` of the cluster left out or None, with its interval over clusters."""
    names = clusters.unique().tolist()
    left = np.array([statistic(name) for name in names])
    squares = float(((left - left.mean()) ** 2).sum())
    variance = (len(names) - 1) / len(names) * squares if len(names) > 1 else np.nan
    found = t_interval(statistic(None), variance, len(names) - 1, n=n, seeds=seeds)
    ends = (float(left.min()), float(left.max()))
    return replace(found, over=str(clusters.name), without_one=ends)


def signed(value: float, decimals: int = 3) -> str:
    """Return a number with its sign, the typographic minus."""
    return f"{value:+.{decimals}f}".replace("-", "−")


def format_estimate(estimate: float, low: float | None, high: float | None) -> str:
    """Return an estimate with its interval, if it has one: signed, three decimals under ten."""
    if not math.isfinite(estimate):
        return "–"
    near, *ends = (
        signed(value, 3 if abs(value) < 10 else 1)
        for value in (estimate, low, high)
        if value is not None and math.isfinite(value)
    )
    return f"{near} ({' to '.join(ends)})" if len(ends) == 2 else near


def format_interval(interval: Interval) -> str:
    """Return an interval as `format_estimate` does."""
    return format_estimate(interval.estimate, interval.low, interval.high)


def format_range(low: float, high: float) -> str:
    """Return the ends of an interval as tables show them; a dash where it has none."""
    return f"{signed(low)} to {signed(high)}" if math.isfinite(low + high) else "–"


def format_share(share: Interval) -> str:
    """Return a share with its interval in per cent."""
    return f"{share.estimate:.0%} ({share.low:.0%} to {share.high:.0%})"


def table(intervals: Mapping[str, Interval]) -> pd.DataFrame:
    """Return named intervals as rows: estimate, low, high, n, seeds."""
    columns = ["estimate", "low", "high", "n", "seeds"]
    return pd.DataFrame([vars(one) for one in intervals.values()], list(intervals), columns)


def by_instance(run: Run, rows: pd.DataFrame | None = None, value: str = "loss") -> pd.DataFrame:
    """Return a run's losses, or another value, by (task, id) × step; without a task, (id, id)."""
    rows = run.losses if rows is None else rows
    rows = rows.assign(task=rows["task"].fillna(rows["id"]))
    found = rows.pivot(index=["task", "id"], columns="step", values=value).sort_index()
    unusable = np.argwhere(~np.isfinite(found.to_numpy(np.float64)))
    if len(unusable):
        row, column = unusable[0]
        raise DataError(
            f"run {run.key} has {value}={found.iloc[row, column]} at step {found.columns[column]} "
            f"of test instance {found.index[row][1]!r}; expected a finite number. Remove the "
            f"folder {run.folder} and make the run again."
        )
    return found


def by_id(run: Run) -> pd.DataFrame:
    """Return a run's test losses by id × step, sorted."""
    return by_instance(run).droplevel("task").sort_index()


def check_steps(steps: Sequence[Any] | pd.Index) -> None:
    """Refuse curves of fewer than two steps."""
    if len(steps) < 2:
        raise ParameterError(
            f"the runs share the evaluated steps {list(steps)}; expected two at least. Give them "
            "the same eval_every, eval_at and generate_at, with more steps."
        )


def area(values: Floats, steps: Sequence[Any] | pd.Index) -> Floats:
    """Return the mean along curves (…, steps), of two steps or more, by trapezoids."""
    check_steps(steps)
    mean: Floats = np.trapezoid(values, np.asarray(steps), axis=-1) / (steps[-1] - steps[0])
    return mean


def instances(runs: Sequence[Run]) -> pd.DataFrame:
    """Return task (else the id), source and response tokens of instances, by id.

    An instance without a source dataset has its task for one; where none has any, all share one
    unknown dataset.
    """
    rows = pd.concat([run.losses.drop_duplicates("id") for run in runs])
    rows = rows.drop_duplicates("id").set_index("id")
    task = rows["task"].fillna(rows.index.to_series())
    known = "source" in rows and rows["source"].notna().any()
    source = rows["source"].fillna(task) if known else "unknown"
    return pd.DataFrame({"task": task, "source": source, "tokens": rows["tokens"]})


def clusters_of(runs: Sequence[Run]) -> pd.Series:
    """Return each test instance's source dataset by id; with one, its task; with one, its id.

    The name of the series says which: source, task or id.
    """
    found = instances(runs)
    for level in ("source", "task"):
        if found[level].nunique() > 1:
            return found[level]
    return found.index.to_series(name="id")


def mean_curves(runs: Sequence[Run]) -> pd.DataFrame:
    """Return step, and mean, low and high over the seeds of one order's mean test loss.

    Where seeds end at different steps, the end of each stands at the last of them.
    """
    curves = [by_instance(run).mean() for run in runs]
    last = max(curve.index[-1] for curve in curves)
    ended: pd.Series = pd.concat([curve.rename({curve.index[-1]: last}) for curve in curves])
    return ended.groupby(level="step").agg(mean="mean", low="min", high="max").reset_index()


def task_curves(runs: Runs) -> pd.DataFrame:
    """Return order, seed, step, task and loss, the mean over the task's test instances."""
    parts = []
    for order, own in runs.items():
        for run in own:
            losses = by_instance(run).groupby(level="task").mean()
            rows = losses.melt(value_name="loss", ignore_index=False).reset_index()
            parts.append(rows.assign(order=order, seed=run.config.seed))
    return pd.concat(parts, ignore_index=True)[["order", "seed", "step", "task", "loss"]]


def seed_range(runs: Sequence[Run], measure: str = "final") -> tuple[float, float]:
    """Return how far the seeds of one order lie below and above their mean, nats a token."""
    means = [by_instance(run).mean() for run in runs]
    read = np.array([m.iloc[-1] if measure == "final" else _area(m) for m in means])
    return float(read.min() - read.mean()), float(read.max() - read.mean())


def _area(curve: pd.Series) -> float:
    return float(area(curve.to_numpy(), curve.index))


def summary(runs: Runs) -> pd.DataFrame:
    """Return one row an order, averaged over seeds, each read up to its own last step.

    The area is the mean loss along the way, at the steps that all runs with the same end evaluated.
    """
    means = {order: [by_instance(run).mean() for run in own] for order, own in runs.items()}
    shared = dict[int, pd.Index]()
    for curve in itertools.chain.from_iterable(means.values()):
        end = int(curve.index[-1])
        shared[end] = shared.get(end, curve.index).intersection(curve.index)
    rows = {}
    for order, own in means.items():
        first, final = (float(np.mean([curve.iloc[at] for curve in own])) for at in (0, -1))
        rows[order] = {
            "seeds": len(own),
            "instances": _mean_count([run.manifest["instances"] for run in runs[order]]),
            "steps": _mean_count([run.manifest["steps"] for run in runs[order]]),
            "first": first,
            "final": final,
            "fall_percent": 100 * (first - final) / first,
            "area": float(np.mean([_area(curve[shared[curve.index[-1]]]) for curve in own])),
        }
    return pd.DataFrame(list(rows.values()), index=pd.Index(rows, name="order"))


def _mean_count(counts: Sequence[int]) -> float:
    """Return the mean of counts; an integer where all are the same, to be shown as one."""
    return counts[0] if len(set(counts)) == 1 else float(np.mean(counts))


def early_share(runs: Sequence[Run], *, step: float) -> Interval:
    """Return the share of the whole fall of the loss that is reached after a number of steps.

    (first - early)/(first - final) of the mean over all test instances: above 1 where the loss
    rises again, NaN where it does not fall at all. Between evaluations it is interpolated.
    """
    values, clusters = mean_losses(runs), clusters_of(runs)
    steps = values.columns.to_numpy(np.float64)
    if not steps[0] < step <= steps[-1]:
        raise wrong("step", step, f"a number in ({steps[0]:g}, {steps[-1]:g}]")

    def share(left: str | None) -> float:
        mean = values[(clusters.loc[values.index] != left).to_numpy()].mean().to_numpy()
        fall = mean[0] - mean[-1]
        return float((mean[0] - np.interp(step, steps, mean)) / fall) if fall > 0 else np.nan

    return jackknife(clusters, share, len(values), len(runs))


def improved(runs: Sequence[Run]) -> pd.Series:
    """Return the share of the test instances whose loss lies below the first one, by step."""
    values = mean_losses(runs)
    found: pd.Series = values.iloc[:, 1:].lt(values.iloc[:, 0], axis=0).mean()
    return found.rename("share of instances below their first loss")


def mean_losses(runs: Sequence[Run]) -> pd.DataFrame:
    """Return losses by id × step, at the steps that all evaluated, over the seeds that test it."""
    return pd.concat([by_id(run) for run in runs], join="inner").groupby(level="id").mean()


def metric_curves(runs: Sequence[Run]) -> pd.DataFrame:
    """Return metric, seed, step and mean value where one order's runs made answers."""
    tables = _metrics(runs)
    parts = [
        each[name].mean().rename("value").reset_index().assign(metric=name, seed=run.config.seed)
        for name in tables[0]
        for run, each in zip(runs, tables, strict=True)
    ]
    return pd.concat(parts, ignore_index=True)[["metric", "seed", "step", "value"]]


def roughness(runs: Sequence[Run], against: str | None = None) -> dict[str, Interval]:
    """Return by metric the share of its movement that no single turn makes, averaged over runs.

    Against another metric, such as "loss": minus that one's, positive where it is less steady. A
    metric that does not move at all in some run has no value then (NaN): to stand at its floor is
    no steadiness.
    """
    tables, clusters = _metrics(runs), clusters_of(runs)
    check_steps(min((each["loss"].columns for each in tables), key=len))

    def rough(name: str, left: str | None) -> float:
        own = _mean_roughness(tables, name, clusters, left)
        return own - (_mean_roughness(tables, against, clusters, left) if against else 0)

    found, n = dict[str, Interval](), len(clusters)
    for name in (name for name in tables[0] if name != against):
        if against and any(np.ptp(each[name].mean()) == 0 for each in tables):
            found[name] = Interval(np.nan, -np.inf, np.inf, n, len(runs))
            continue
        interval = jackknife(clusters, partial(rough, name), n, len(runs))
        found[name] = interval.within(-1 if against else 0, 1)
    return found


def overtraining(runs: Sequence[Run]) -> pd.Series:
    """Return how much each metric is worse at the end than at its best, as a share of its range."""
    tables, found = _metrics(runs), dict[str, float]()
    for name in tables[0]:
        curves = [_goal_up(each[name], name) for each in tables]
        found[name] = float(np.mean([(c.max() - c[-1]) / (np.ptp(c) or 1) for c in curves]))
    return pd.Series(found, name="best minus last, of the range", dtype=float)


def one_turn_roughness(curve: Floats) -> float:
    """Return the share of a curve's movement that a curve with a single turn does not make.

    The goal is up: falls before the turn and rises after it, over all moves, at the best turn.
    """
    moves = np.diff(curve)
    total = np.abs(moves).sum()
    falls = np.concatenate([[0], np.cumsum(np.maximum(-moves, 0))])
    rises = np.concatenate([[0], np.cumsum(np.maximum(moves, 0))])
    against = falls + (rises[-1] - rises)
    return float(against.min() / total) if total > 0 else 0.0


def _goal_up(table: pd.DataFrame, metric: str) -> Floats:
    mean: Floats = table.mean().to_numpy(np.float64)
    return -mean if metric == "loss" else mean


def _mean_roughness(
    tables: Sequence[dict[str, pd.DataFrame]], name: str, clusters: pd.Series, left: str | None
) -> float:
    found = []
    for each in tables:
        own = clusters.loc[each[name].index.get_level_values("id")]
        kept = each[name][(own != left).to_numpy()]
        if len(kept):  # a run may test this dataset alone
            found.append(one_turn_roughness(_goal_up(kept, name)))
    return float(np.mean(found)) if found else np.nan


def _metrics(runs: Sequence[Run]) -> list[dict[str, pd.DataFrame]]:
    """Return of each run the metrics that all have, at the same instances and steps."""
    tables = []
    for run in runs:
        if run.manifest["config"]["generate_at"]:
            answers = run.answers
            losses = run.losses.merge(answers[["step", "id"]], on=["step", "id"])
            scores = {name: by_instance(run, answers, name) for name in SCORES if name in answers}
            tables.append({"loss": by_instance(run, losses), **scores})
        else:
            tables.append({"loss": by_instance(run)})
    names = [name for name in tables[0] if all(name in each for each in tables)]
    return [{name: each[name] for name in names} for each in tables]
