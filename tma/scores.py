"""The metrics of answers over training steps, beside the loss, and how steadily each moves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from tma.bootstrap import RESAMPLES, by_instance, resample, tasks_first
from tma.errors import check_choice
from tma.intervals import Floats, Interval
from tma.runs import Run
from tma.statistics import check_course, ratio

SCORES = ("rouge1", "rougeL", "exact_match", "reward")
"""Metrics of answers."""


def metric_curves(runs: Sequence[Run]) -> pd.DataFrame:
    """Return the metrics of one order's runs at the steps where answers were made.

    Returns:
        One row a (metric, seed, step): metric, seed, step, value: the mean over the test instances
        that were answered. loss in nats a token; rouge1, rougeL and exact_match from 0 to 1;
        reward, where there is one, without a unit.

    Raises:
        ParameterError: a run made no answers.
    """
    parts = []
    for run in runs:
        for metric, values in _metrics(run).items():
            means = values.mean().rename("value").reset_index()
            parts.append(means.assign(metric=metric, seed=run.config.seed))
    table: pd.DataFrame = pd.concat(parts, ignore_index=True)
    named = table.reindex(columns=["metric", "seed", "step", "value"])
    return named.sort_values("metric", key=lambda m: m.map(_rank), kind="stable", ignore_index=True)


def roughness(
    runs: Sequence[Run], against: str | None = None, seed: int = 0
) -> dict[str, Interval]:
    """Return how unsteadily each metric moves: the share of its movement that goes backward.

    Between consecutive evaluations a curve moves up or down; forward is the direction from its
    first to its last value. The share Σ|backward moves| / Σ|moves| has no unit and no scale, so
    that metrics can be compared: 0 for a monotone curve and for one that does not move, 0.5, the
    most, for one that ends where it began. It is that of a test set of this size: where few answers
    turn from right to wrong and back, a metric jumps, as with many it might not.

    Args:
        runs: runs of one order with answers, one a seed.
        against: None: each metric by itself; a metric's name, such as "loss": each other metric
            minus that one, positive where it is less steady.
        seed: seed of the bootstrap.

    Returns:
        Metric → mean over seeds of the share of each seed's own curve. Redrawing the tasks makes a
        curve rougher than that of the test set; the interval is of how far the resamples lie from
        their mean. Against another, metrics that do not move at all in some seed are left out: to
        stand at its floor is no steadiness.

    Raises:
        ParameterError: a run made no answers, or at fewer than two steps; an unknown metric.

    Source: the paper's claim that loss is the stable metric; the measure is this package's.
    """
    tables = [_metrics(run) for run in runs]
    names = [name for name in tables[0] if all(name in each for each in tables)]
    if against is not None:
        check_choice("against", against, names)
    found = resample([[each[name] for each in tables] for name in names], seed)
    check_course(found)
    moves = np.diff(found.curves, axis=-1)
    total = np.abs(moves).sum(axis=-1)
    back = (total - np.abs(moves.sum(axis=-1))) / 2
    # Rounding must not make a monotone curve move backward.
    share = ratio(np.where(back < 1e-12 * total, 0, back), total)
    own = np.where(total[0] > 0, share[0], 0)
    shares = found.over_seeds(_levelled(np.where(total > 0, share, own)))
    if against is None:
        return {name: found.interval(shares[:, k]).within(0, 0.5) for k, name in enumerate(names)}
    base = shares[:, names.index(against)]
    moving = (total[0] > 0).all(axis=-1)
    others = ((k, name) for k, name in enumerate(names) if name != against and moving[k])
    return {name: found.interval(shares[:, k] - base).within(-0.5, 0.5) for k, name in others}


def _levelled(share: Floats) -> Floats:
    """Return shares (ROWS, …) less what drawing tasks adds to them on average."""
    drawn = share[1 : 1 + RESAMPLES]
    level = np.clip(share[0] + drawn - drawn.mean(axis=0), 0, 0.5)
    return tasks_first(np.concatenate([share[:1], level]))


def _metrics(run: Run) -> dict[str, pd.DataFrame]:
    """Return loss and scores by (task, id) × step, all of the same instances and steps."""
    answers = run.answers
    losses = run.losses.merge(answers[["step", "id"]], on=["step", "id"])
    scores = {name: by_instance(answers, name) for name in SCORES if name in answers}
    return {"loss": by_instance(losses), **scores}


def _rank(metric: str) -> int:
    return ("loss", *SCORES).index(metric)
