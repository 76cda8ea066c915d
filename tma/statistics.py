"""Runs → curves, their summary, and what is read off them, with intervals.

All losses are means over test instances of the loss a response token, in nats. Two orders are
compared on the same test instances and, run by run, with the same seed; `tma.bootstrap` says what
an interval covers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tma.bootstrap import Resampled, by_instance, matched, resample
from tma.errors import ParameterError, check_choice, wrong
from tma.intervals import Floats, Interval
from tma.runs import Run

Runs = Mapping[str, Sequence[Run]]
"""Order name → its runs, one a seed."""

CONTRASTS = ("final", "area", "steps_to_threshold")
"""What two orders are compared by."""
READINGS = ("final", "area")
"""What a single curve is read by."""
Weighted = Sequence[tuple[float, Sequence[Run]]]
"""(weight, runs of one order), of a combination of orders."""


def curves(runs: Runs) -> pd.DataFrame:
    """Return one row an (order, seed, step): order, seed, step, loss (mean over instances)."""
    parts = []
    for order, made in runs.items():
        for run in made:
            means = run.losses.groupby("step", as_index=False)["loss"].mean()
            parts.append(means.assign(order=order, seed=run.config.seed))
    table: pd.DataFrame = pd.concat(parts, ignore_index=True)
    return table.reindex(columns=["order", "seed", "step", "loss"])


def task_curves(runs: Runs) -> pd.DataFrame:
    """Return one row an (order, seed, step, task): order, seed, step, task, loss.

    The loss is the mean over the task's test instances; an instance without a task is a task.
    """
    parts = []
    for order, made in runs.items():
        for run in made:
            means = by_instance(run.losses).groupby(level="task").mean()
            rows = means.reset_index().melt("task", var_name="step", value_name="loss")
            parts.append(rows.astype({"step": "int64"}).assign(order=order, seed=run.config.seed))
    table: pd.DataFrame = pd.concat(parts, ignore_index=True)
    return table.reindex(columns=["order", "seed", "step", "task", "loss"])


def spread(curves: pd.DataFrame, order: str) -> pd.DataFrame:
    """Return how far the seeds of one order lie apart, one row a step.

    Args:
        curves: from `curves`.
        order: one of its orders.

    Returns:
        Columns step, and over seeds the mean, low (smallest) and high (largest) of the mean loss.

    Raises:
        ParameterError: the curves have no such order.
    """
    check_choice("order", order, list(dict.fromkeys(curves["order"])))
    steps = curves[curves["order"] == order].groupby("step")["loss"]
    return steps.agg(mean="mean", low="min", high="max").reset_index()


def seed_range(runs: Sequence[Run], measure: str = "final") -> tuple[float, float]:
    """Return how far the seeds of one order lie below and above their mean, nats a token.

    Args:
        runs: runs of the order, one a seed.
        measure: final or area, as of `contrast`.

    Raises:
        ParameterError: an unknown measure.
    """
    check_choice("measure", measure, READINGS)
    found = _compared([runs], 0)
    ends, each = found.values[0, 0, :, -1], found.curves[0, 0]  # (seeds,), (seeds, steps)
    read = ends if measure == "final" else _area(each, found.steps)
    return float(read.min() - read.mean()), float(read.max() - read.mean())


def summary(runs: Runs) -> pd.DataFrame:
    """Return one row an order, averaged over seeds.

    Columns: instances and steps trained on; first and final: mean test loss before and after, each
    run's own; fall_percent: 100·(first - final)/first; area: area under the loss curve divided by
    the number of steps, that is the mean loss along the way, at the steps that every run of the
    table evaluated: a coarser curve has another area, and a longer one too.
    """
    table = curves(runs)
    shared = set.intersection(*(set(c["step"]) for _, c in table.groupby(["order", "seed"])))
    rows = []
    for order, made in runs.items():
        of_order = table[table["order"] == order].sort_values("step")
        each = [c for _, c in of_order.groupby("seed")]
        along = [c[c["step"].isin(shared)] for c in each]
        first = float(np.mean([c["loss"].iloc[0] for c in each]))
        final = float(np.mean([c["loss"].iloc[-1] for c in each]))
        area = float(np.mean([_area(c["loss"].to_numpy(), c["step"].to_numpy()) for c in along]))
        rows.append(
            {
                "order": order,
                "seeds": len(made),
                "instances": _mean_count([run.manifest["instances"] for run in made]),
                "steps": _mean_count([run.manifest["steps"] for run in made]),
                "first": first,
                "final": final,
                "fall_percent": 100 * (first - final) / first,
                "area": area,
            }
        )
    return pd.DataFrame(rows).set_index("order")


def _mean_count(counts: Sequence[int]) -> float:
    """Return the mean of counts; a whole number where all are the same, to be shown as one."""
    return counts[0] if len(set(counts)) == 1 else float(np.mean(counts))


def differences(first: Sequence[Run], second: Sequence[Run], seed: int = 0) -> list[Interval]:
    """Return the loss of one order minus that of another at every step that both evaluated.

    Args:
        first: runs of the one order, one a seed.
        second: runs of the other, on the same test instances. Runs of the same seed are paired; a
            single run is paired with every run of the other side.
        seed: seed of the bootstrap.

    Returns:
        One `Interval` a step, in nats a token; negative: the first is better.

    Raises:
        ParameterError: the two have no seeds, steps or test instances in common.
    """
    found = _compared((first, second), seed)
    gaps = found.means[:, 0] - found.means[:, 1]
    return [found.interval(gaps[:, k], int(step)) for k, step in enumerate(found.steps)]


def contrast(first: Sequence[Run], second: Sequence[Run], measure: str, seed: int = 0) -> Interval:
    """Return how two orders differ by one number read off their mean curves, first minus second.

    Args:
        first: runs of the one order, one a seed.
        second: runs of the other, paired as in `differences`.
        measure: final: mean loss at each run's own last evaluated step, nats a token; area: mean
            loss along the curve (trapezoids), nats a token; steps_to_threshold: the first step,
            interpolated between evaluations, at which the mean loss is at or below the one halfway
            between the second's first and last loss. A curve that never gets there counts as its
            last step, so that the difference is then a bound. Where the second's mean loss does not
            end below its first, nothing lies halfway down: the estimate is NaN, and a resample
            counts as lying outside both ends of the interval.
        seed: seed of the bootstrap.

    Returns:
        Negative: the first is better. A curve, unlike final, ends at the last step that both
        evaluated.

    Raises:
        ParameterError: an unknown measure, or the two have no seeds, steps or test instances in
            common; for all but final, fewer than two steps.
    """
    check_choice("measure", measure, CONTRASTS)
    if measure in READINGS:
        return combination([(1, first), (-1, second)], measure, seed)
    found = _compared((first, second), seed)
    check_course(found)
    one, other = found.means[:, 0], found.means[:, 1]
    halfway = (other[:, 0] + other[:, -1]) / 2
    reached = (_first_below(curve, halfway, found.steps) for curve in (one, other))
    gap = next(reached) - next(reached)
    return found.interval(np.where(other[:, -1] < other[:, 0], gap, np.nan))


def contrasts(runs: Runs, pairs: Mapping[str, tuple[str, str]]) -> dict[str, dict[str, Interval]]:
    """Return the contrasts of several pairs of orders by each measure of `CONTRASTS`.

    Args:
        runs: order → its runs, one a seed.
        pairs: name → the first order and the second.

    Returns:
        measure → name → first minus second, as `contrast` gives it.

    Raises:
        ParameterError: as `contrast`.
    """
    found = dict[str, dict[str, Interval]]()
    for measure in CONTRASTS:
        compared = ((name, runs[one], runs[other]) for name, (one, other) in pairs.items())
        found[measure] = {name: contrast(a, b, measure) for name, a, b in compared}
    return found


def combination(sides: Weighted, measure: str = "final", seed: int = 0) -> Interval:
    """Return a weighted sum of what is read off the mean curves of several orders.

    Args:
        sides: (weight, runs of one order, one a seed), runs of the same seed together as in
            `differences`. With weights 1, -1, -1, 1 it is a difference of two differences.
        measure: final or area, as of `contrast`; nats a token.
        seed: seed of the bootstrap.

    Raises:
        ParameterError: an unknown measure, no side, or sides with no seeds, steps or test
            instances in common.
    """
    check_choice("measure", measure, READINGS)
    found = _compared([runs for _, runs in sides], seed)
    return found.interval(_read(found, measure) @ np.array([weight for weight, _ in sides]))


def outweighs(one: Weighted, other: Weighted, measure: str = "final", seed: int = 0) -> Interval:
    """Return by how much one combination is larger in size than another: |one| - |other|.

    Both come from the same resamples; chance makes each look larger than it is, and more so the one
    that varies more. Arguments and errors are those of `combination`.
    """
    check_choice("measure", measure, READINGS)
    found = _compared([runs for _, runs in (*one, *other)], seed)
    values, weights = _read(found, measure), np.array([weight for weight, _ in (*one, *other)])
    split = len(one)
    first = np.abs(values[:, :split] @ weights[:split])
    return found.interval(first - np.abs(values[:, split:] @ weights[split:]))


def early_share(runs: Sequence[Run], fraction: float = 0.05, seed: int = 0) -> Interval:
    """Return the share of the total loss drop that is reached after a fraction of the steps.

    Args:
        runs: runs of one order, one a seed.
        fraction: of the steps from the first evaluation to the last that all seeds share, in
            (0, 1]; the mean loss there is interpolated between evaluations.
        seed: seed of the bootstrap.

    Returns:
        (first - early)/(first - final); a steady fall has the share `fraction`, and above 1 the
        loss rises again later. NaN where the mean loss does not fall at all.

    Raises:
        ParameterError: a fraction out of range, or fewer than two evaluated steps.

    Source: the paper's claim that generalization happens very early.
    """
    if not 0 < fraction <= 1:
        raise wrong("fraction", fraction, "a share of the steps in (0, 1]")
    found = _compared([runs], seed)
    check_course(found)
    mean, steps = found.means[:, 0], found.steps
    at = steps[0] + fraction * (steps[-1] - steps[0])
    k = int(np.searchsorted(steps, at))
    part = (at - steps[k - 1]) / (steps[k] - steps[k - 1])
    early = mean[:, k - 1] + part * (mean[:, k] - mean[:, k - 1])
    return found.interval(ratio(mean[:, 0] - early, mean[:, 0] - mean[:, -1]))


def _compared(orders: Sequence[Sequence[Run]], seed: int) -> Resampled:
    """Return the resampled curves of several orders, seed by seed."""
    if not orders:
        raise wrong("sides", list(orders), "the runs of one order at least")
    sides = list(zip(*matched(*orders), strict=True))
    tables = {run.folder: by_instance(run.losses) for side in sides for run in side}
    return resample([[tables[run.folder] for run in side] for side in sides], seed)


def _read(found: Resampled, measure: str) -> Floats:
    """Return a reading of each side's mean curve, (b, sides)."""
    if measure == "final":
        return found.finals
    check_course(found)
    return _area(found.means, found.steps)


def check_course(found: Resampled) -> None:
    """Refuse curves of one step.

    Raises:
        ParameterError: fewer than two steps.
    """
    if len(found.steps) < 2:
        raise ParameterError(
            f"the runs share the evaluated steps {found.steps.tolist()}; expected two at least. "
            "Give them the same eval_every, eval_at and generate_at."
        )


def _area(losses: Floats, steps: NDArray[np.int64]) -> Floats:
    """Return the mean along curves (…, steps), by trapezoids."""
    area: Floats = np.trapezoid(losses, steps, axis=-1) / (steps[-1] - steps[0])
    return area


def _first_below(curves: Floats, least: Floats, steps: NDArray[np.int64]) -> Floats:
    """Return the first step at which each curve (b, steps) is at or below its threshold (b,)."""
    below = curves <= least[:, None]
    k = np.where(below.any(axis=1), below.argmax(axis=1), len(steps) - 1)
    row, before = np.arange(len(k)), np.maximum(k - 1, 0)
    above, under = curves[row, before], curves[row, k]
    # No part of the last interval is taken off where the threshold was never reached.
    part = np.where(under < above, (above - least) / np.where(under < above, above - under, 1), 1)
    part = np.where(below[row, k], part, 1)
    reached: Floats = steps[before] + part * (steps[k] - steps[before])
    return reached


def ratio(part: Floats, whole: Floats) -> Floats:
    """Return part / whole; NaN where the whole is not positive."""
    positive = whole > 0
    return np.where(positive, part / np.where(positive, whole, 1), np.nan)
