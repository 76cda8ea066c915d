"""Runs → curves, their summary, and differences between orders with intervals.

All losses are means over test instances of the loss a response token, in nats. Two orders are
compared on the same test instances; the interval is a bootstrap over whole test tasks, because
instances of one task are alike and resampling them one by one would promise too much. Where all
test instances belong to one task, they are resampled, and the interval holds for that task alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tma.runs import Run

Runs = Mapping[str, Sequence[Run]]
"""Order name → its runs, one a seed."""

RESAMPLES = 2000
"""Bootstrap samples of an interval."""


@dataclass(frozen=True)
class Difference:
    """How far the mean loss of one order lies above another's at one step."""

    step: int
    """Training step."""
    estimate: float
    """Loss of the first minus loss of the second, nats a token; negative: the first is better."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end of the 95 % interval."""

    @property
    def clear(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


def curves(runs: Runs) -> pd.DataFrame:
    """Return one row an (order, seed, step): order, seed, step, loss (mean over instances)."""
    parts = []
    for order, made in runs.items():
        for run in made:
            means = run.losses.groupby("step", as_index=False)["loss"].mean()
            parts.append(means.assign(order=order, seed=run.config.seed))
    table: pd.DataFrame = pd.concat(parts, ignore_index=True)
    return table.reindex(columns=["order", "seed", "step", "loss"])


def summary(runs: Runs) -> pd.DataFrame:
    """Return one row an order, averaged over seeds.

    Columns: instances and steps trained on; first and final: mean test loss before and after;
    fall_percent: 100·(first - final)/first; area: area under the loss curve divided by the number
    of steps, that is the mean loss along the way.
    """
    table = curves(runs)
    rows = []
    for order, made in runs.items():
        each = [c.sort_values("step") for _, c in table[table["order"] == order].groupby("seed")]
        first = float(np.mean([c["loss"].iloc[0] for c in each]))
        final = float(np.mean([c["loss"].iloc[-1] for c in each]))
        area = float(np.mean([_area(c["step"].to_numpy(), c["loss"].to_numpy()) for c in each]))
        rows.append(
            {
                "order": order,
                "seeds": len(made),
                "instances": made[0].manifest["instances"],
                "steps": made[0].manifest["steps"],
                "first": first,
                "final": final,
                "fall_percent": 100 * (first - final) / first,
                "area": area,
            }
        )
    return pd.DataFrame(rows).set_index("order")


def _area(steps: NDArray[np.int64], losses: NDArray[np.float64]) -> float:
    return float(np.trapezoid(losses, steps) / (steps[-1] - steps[0]))


def differences(first: Sequence[Run], second: Sequence[Run], seed: int = 0) -> list[Difference]:
    """Return the paired difference of two orders at every step that both evaluated.

    Args:
        first: runs of the one order; losses are averaged over seeds for each instance.
        second: runs of the other order, on the same test instances.
        seed: seed of the bootstrap; the spread over the runs' own seeds is not in the interval.

    Returns:
        One `Difference` a step, with a percentile interval of 2,000 resamples of the test tasks.

    Raises:
        ValueError: the two were evaluated on different test instances.
    """
    a, b = _by_instance(first), _by_instance(second)
    if not a.index.equals(b.index):
        raise ValueError("the two orders were evaluated on different test instances")
    steps = [step for step in a.columns if step in b.columns]
    gap = a[steps] - b[steps]
    # A single task cannot be resampled; its instances then stand for themselves.
    level = "task" if gap.index.get_level_values("task").nunique() > 1 else "id"
    tasks = gap.groupby(level=level, sort=True)
    sums, counts = tasks.sum().to_numpy(), tasks.size().to_numpy()
    draws = np.random.default_rng(seed).integers(len(counts), size=(RESAMPLES, len(counts)))
    means = sums[draws].sum(axis=1) / counts[draws].sum(axis=1, keepdims=True)
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    found = zip(steps, gap.mean().to_numpy(), low, high, strict=True)
    return [Difference(int(s), float(e), float(lo), float(hi)) for s, e, lo, hi in found]


def _by_instance(runs: Sequence[Run]) -> pd.DataFrame:
    """Return loss by (task, id) × step, averaged over seeds.

    Without tasks each instance is a cluster of its own.
    """
    losses = pd.concat([run.losses for run in runs])
    losses = losses.assign(task=losses["task"].fillna(losses["id"]))
    return losses.pivot_table(index=["task", "id"], columns="step", values="loss").sort_index()


def verdict(lower: Difference, higher: Difference) -> str:
    """Judge a claim that one order lies below random and another above it, at the last step.

    Args:
        lower: the order that should be better than random, minus random.
        higher: the order that should be worse, minus random.

    Returns:
        "supported" where both intervals lie on the claimed side of zero, "not supported" where one
        lies wholly on the other side, else "inconclusive".
    """
    if lower.high < 0 and higher.low > 0:
        return "supported"
    return "not supported" if lower.low > 0 or higher.high < 0 else "inconclusive"
