"""The metrics of answers over training steps, beside the loss, and how steadily each moves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from tma.errors import ParameterError, check_choice
from tma.runs.store import Run
from tma.study.effects import clusters_of, jackknife
from tma.study.exposure import by_instance
from tma.study.intervals import Floats, Interval

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


def roughness(runs: Sequence[Run], against: str | None = None) -> dict[str, Interval]:
    """Return how unsteadily each metric moves: the share of movement no single turn explains.

    A curve that gets better and then worse, as by overtraining, has turned once; what moves away
    from the goal before the turn, or towards it after, is rough. The share has no unit, so that
    metrics can be compared: 0 for a curve with one turn or none, and for one that does not move.

    Args:
        runs: runs of one order with answers, one a seed.
        against: None: each metric by itself; a metric's name, such as "loss": each other metric
            minus that one, positive where it is less steady.

    Returns:
        Metric → mean over the runs of the roughness of each one's mean curve, at the same test
        instances and steps, with its interval by the jackknife over source datasets. Against
        another, a metric that does not move at all in some run has no value (NaN): to stand at its
        floor is no steadiness.

    Raises:
        ParameterError: a run made no answers, or at fewer than two steps; an unknown metric.

    Source: the paper's claim that loss is the stable metric; the measure is this package's.
    """
    tables, names = _shared(runs)
    if against is not None:
        check_choice("against", against, names)
    if any(each["loss"].shape[1] < 2 for each in tables):
        raise ParameterError(
            "the runs made answers at fewer than two steps; expected two at least. Give more steps "
            "in generate_at."
        )
    found, clusters = dict[str, Interval](), clusters_of(runs)
    for name in names:
        if name == against:
            continue
        moves = all(np.ptp(each[name].mean().to_numpy()) > 0 for each in tables)
        if against is not None and not moves:
            found[name] = Interval(np.nan, -np.inf, np.inf, len(clusters), len(runs))
            continue

        def rough(left: str | None, name: str = name) -> float:
            own = _mean_roughness(tables, name, clusters, left)
            return own - (_mean_roughness(tables, against, clusters, left) if against else 0)

        n = len(clusters)
        least = 0 if against is None else -1
        found[name] = jackknife(clusters.unique().tolist(), rough, n, len(runs)).within(least, 1)
    return found


def overtraining(runs: Sequence[Run]) -> pd.Series:
    """Return how much each metric is worse at the end than at its best, as a share of its range.

    The mean over runs of each one's mean curve; 0 where the end is the best, and for a metric that
    does not move.
    """
    tables, names = _shared(runs)
    found = {
        name: float(np.mean([_lost(_goals(each[name].mean().to_numpy(), name)) for each in tables]))
        for name in names
    }
    return pd.Series(found, name="best minus last, of the range")


def one_turn_roughness(curve: Floats) -> float:
    """Return the share of a curve's movement that a curve with a single turn does not make.

    Args:
        curve: values whose goal is up, (k,).

    Returns:
        The falls before the turn and the rises after it over the sum of all moves, the turn chosen
        so that it is least; 0 for a curve that does not move.
    """
    moves = np.diff(curve)
    total = np.abs(moves).sum()
    falls = np.concatenate([[0], np.cumsum(np.maximum(-moves, 0))])
    rises = np.concatenate([[0], np.cumsum(np.maximum(moves, 0))])
    against = falls + (rises[-1] - rises)
    return float(against.min() / total) if total > 0 else 0.0


def _goals(curve: Floats, metric: str) -> Floats:
    """Return a curve whose goal is up: the loss turned over."""
    return -curve if metric == "loss" else curve


def _lost(curve: Floats) -> float:
    span = float(np.ptp(curve))
    return float(curve.max() - curve[-1]) / span if span > 0 else 0.0


def _mean_roughness(
    tables: Sequence[dict[str, pd.DataFrame]], name: str, clusters: pd.Series, left: str | None
) -> float:
    found = []
    for each in tables:
        own = clusters.loc[each[name].index.get_level_values("id")]
        kept = each[name][(own != left).to_numpy()]
        if len(kept):  # a run may test this dataset alone
            found.append(one_turn_roughness(_goals(kept.mean().to_numpy(), name)))
    return float(np.mean(found)) if found else np.nan


def _shared(runs: Sequence[Run]) -> tuple[list[dict[str, pd.DataFrame]], list[str]]:
    """Return the metrics of each run, and the names of those that all have."""
    tables = [_metrics(run) for run in runs]
    return tables, [name for name in tables[0] if all(name in each for each in tables)]


def _metrics(run: Run) -> dict[str, pd.DataFrame]:
    """Return loss and scores by (task, id) × step, all of the same instances and steps."""
    answers = run.answers
    losses = run.losses.merge(answers[["step", "id"]], on=["step", "id"])
    scores = {name: by_instance(answers, name) for name in SCORES if name in answers}
    return {"loss": by_instance(losses), **scores}


def _rank(metric: str) -> int:
    return ("loss", *SCORES).index(metric)
