"""Runs → curves, their summary, and how early the loss falls.

All losses are means over test instances of the loss a response token, in nats.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from tma.errors import check_choice, wrong
from tma.runs.store import Run
from tma.study.effects import READINGS, Runs, area, by_id, check_course, clusters_of, jackknife
from tma.study.exposure import by_instance
from tma.study.intervals import Interval


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
        measure: final or area, as of `effects.effect`.

    Raises:
        ParameterError: an unknown measure.
    """
    check_choice("measure", measure, READINGS)
    each = [curve for _, curve in curves({"": runs}).groupby("seed")]
    read = np.array(
        [
            curve["loss"].iloc[-1]
            if measure == "final"
            else area(curve["loss"].to_numpy(), curve["step"].to_numpy())
            for curve in each
        ]
    )
    return float(read.min() - read.mean()), float(read.max() - read.mean())


def summary(runs: Runs) -> pd.DataFrame:
    """Return one row an order, averaged over seeds.

    Columns: instances and steps trained on; first and final: mean test loss before and after, each
    run's own; fall_percent: 100·(first - final)/first; area: area under the loss curve divided by
    the number of steps, that is the mean loss along the way, at the steps that every run of the
    table with the same end evaluated: a coarser curve has another area, and a longer one too.
    """
    table = curves(runs)
    steps = [set(c["step"]) for _, c in table.groupby(["order", "seed"])]
    rows = []
    for order, made in runs.items():
        of_order = table[table["order"] == order].sort_values("step")
        each = [c for _, c in of_order.groupby("seed")]
        ends = {c["step"].iloc[-1] for c in each}
        alike = (own for own in steps if max(own) in ends)
        shared = set.intersection(*(alike if len(ends) == 1 else steps))
        along = [c[c["step"].isin(shared)] for c in each]
        first = float(np.mean([c["loss"].iloc[0] for c in each]))
        final = float(np.mean([c["loss"].iloc[-1] for c in each]))
        areas = [area(c["loss"].to_numpy(), c["step"].to_numpy()) for c in along]
        rows.append(
            {
                "order": order,
                "seeds": len(made),
                "instances": _mean_count([run.manifest["instances"] for run in made]),
                "steps": _mean_count([run.manifest["steps"] for run in made]),
                "first": first,
                "final": final,
                "fall_percent": 100 * (first - final) / first,
                "area": float(np.mean(areas)),
            }
        )
    return pd.DataFrame(rows).set_index("order")


def _mean_count(counts: Sequence[int]) -> float:
    """Return the mean of counts; a whole number where all are the same, to be shown as one."""
    return counts[0] if len(set(counts)) == 1 else float(np.mean(counts))


def early_share(runs: Sequence[Run], *, step: float) -> Interval:
    """Return the share of the whole fall of the loss that is reached after a number of steps.

    Args:
        runs: runs of one order, one a seed; seeds may test different folds.
        step: the number, in (0, last]; the mean loss there is interpolated between evaluations.

    Returns:
        (first - early)/(first - final) of the mean over all test instances; a steady fall has the
        share step/last, and above 1 the loss rises again later. Its interval is by the jackknife
        over source datasets. NaN where the mean loss does not fall at all.

    Raises:
        ParameterError: a step out of range, or fewer than two evaluated steps.

    Source: the paper's claim that generalization happens very early.
    """
    values, clusters = mean_losses(runs), clusters_of(runs)
    check_course(values)
    steps = values.columns.to_numpy(np.float64)
    if not steps[0] < step <= steps[-1]:
        raise wrong("step", step, f"a number in ({steps[0]:g}, {steps[-1]:g}]")

    def share(left: str | None) -> float:
        mean = values[(clusters.loc[values.index] != left).to_numpy()].mean().to_numpy()
        fall = mean[0] - mean[-1]
        return float((mean[0] - np.interp(step, steps, mean)) / fall) if fall > 0 else np.nan

    return jackknife(clusters.unique().tolist(), share, len(values), len(runs))


def improved(runs: Sequence[Run]) -> pd.Series:
    """Return the share of the test instances whose loss lies below the first one, by step."""
    values = mean_losses(runs)
    later = values[values.columns[1:]]
    found: pd.Series = later.lt(values[values.columns[0]], axis=0).mean()
    return found.rename("share of instances below their first loss")


def mean_losses(runs: Sequence[Run]) -> pd.DataFrame:
    """Return losses by id × step, at the steps that all evaluated, over the seeds that test it."""
    tables = [by_id(run) for run in runs]
    steps = sorted(set.intersection(*(set(table.columns) for table in tables)))
    return pd.concat([table[steps] for table in tables]).groupby(level="id").mean()
