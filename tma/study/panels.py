"""Figures of what training data and test losses have to do with each other: C3 and C8."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tma.study.exposure import Association
from tma.study.figures import GREY, drawing, whole_steps
from tma.study.styles import PALETTE, styles

_FAMILIES = {"cosine": "tma_nft", "euclidean": "tma_max", "bigram": "round_robin"}
"""Family of distances → the order whose colour it takes."""
_STATISTICS: dict[str, Any] = {
    "avg": "",
    "min": (4, 1.5),
    "max": (1, 1.2),
    "centroid": (7, 2, 1, 2),
    "kl": "",
}
"""What a distance is over all pairs → its dashes."""


def distances_figure(
    distances: pd.DataFrame, losses: pd.DataFrame, tasks: Sequence[str] | None = None
) -> Figure:
    """Return distances to test tasks over steps beside the tasks' losses: a row a task, a column an
    order.

    Args:
        distances: columns order, task, step, measure, distance, from `seen.distance_curves`; more
            than one value, as of several seeds, is averaged.
        losses: columns order, task, step, loss (nats a token); averaged likewise.
        tasks: which, from the top down; None: three, evenly spaced among all.

    Each curve is scaled to [0, 1] by its smallest and largest value in the whole row, so that the
    orders of one task can be compared; a curve that does not move lies at 0. Distances are thin,
    one colour a family and one dash pattern a statistic; the loss is thick.
    """
    every = list(dict.fromkeys(distances["task"]))
    shown = list(tasks or every[:: max(1, len(every) // 3)][:3])
    orders = list(dict.fromkeys(distances["order"]))
    names, looks = [], styles(orders)
    height = 2.3 * len(shown) + 1
    width = 3.4 * len(orders) + 2
    size: dict[str, Any] = {"width": width, "height": height, "sharex": True, "sharey": True}
    with drawing(len(shown), len(orders), **size) as (figure, grid):
        for row, task in zip(grid, shown, strict=True):
            curves = _scaled(distances, losses, task)
            names = list(dict.fromkeys(curves["measure"]))
            for axes, order in zip(row, orders, strict=True):
                _measures(curves[curves["order"] == order], axes)
            row[0].set_ylabel(f"{task}\nscaled to [0, 1]")
        for axes, order in zip(grid[0], orders, strict=True):
            axes.annotate(looks[order].label, (0.5, 1.04), xycoords="axes fraction", ha="center")
        for axes in grid[-1]:
            axes.set_xlabel("training step")
        handles = grid[0, 0].get_lines()
        for line, name in zip(handles, names, strict=True):
            line.set_label(_name(name))
        place: Any = "outside right"  # the library's own annotations lack it
        figure.legend(handles=handles, loc=place, frameon=False)
    return figure


def _scaled(distances: pd.DataFrame, losses: pd.DataFrame, task: str) -> pd.DataFrame:
    """Return order, measure (loss among them), step and value in [0, 1] of one task."""
    loss = losses.rename(columns={"loss": "value"}).assign(measure="loss")
    both = pd.concat([loss, distances.rename(columns={"distance": "value"})])
    keys = ["order", "measure", "step"]
    of_task = both[both["task"] == task].groupby(keys, sort=False)["value"].mean().reset_index()
    by_measure = of_task.groupby("measure")["value"]
    low, high = by_measure.transform("min"), by_measure.transform("max")
    return of_task.assign(value=(of_task["value"] - low) / (high - low).where(high > low, 1))


def _measures(curves: pd.DataFrame, axes: Axes) -> None:
    for measure, found in curves.groupby("measure", sort=False):
        family, _, statistic = str(measure).partition("_")
        look: dict[str, Any] = {"color": "black", "linewidth": 3, "zorder": 3}
        if measure != "loss":
            dashes = _STATISTICS[statistic] or (None, None)
            look = {"color": PALETTE[_FAMILIES[family]], "linewidth": 1.3, "dashes": dashes}
        steps = found.sort_values("step")
        axes.plot(steps["step"], steps["value"], **look)
    whole_steps([axes])


def _name(measure: str) -> str:
    if measure == "loss":
        return "test loss"
    return "bigram KL" if measure == "bigram_kl" else measure.replace("_", " ")


def association_figure(pairs: pd.DataFrame, found: Association) -> Figure:
    """Return loss drops against similarity, both two-way centred, in bins of equal size.

    Args:
        pairs: columns similarity and drop (nats a token), from `exposure.centred`.
        found: their `association`; drawn as the line that it means, with its 95 % interval, beside
            the grey wedge in which 95 % of the permuted associations lie.
    """
    bins = pd.qcut(pairs["similarity"], 12, duplicates="drop")
    means = pairs.groupby(bins, observed=True)[["similarity", "drop"]].mean()
    ends = means["similarity"].agg(["min", "max"]).to_numpy()
    x = np.linspace(float(ends[0]), float(ends[1]), 50)
    slope = x * float(pairs["drop"].std() / pairs["similarity"].std())
    with drawing(1, 1, 6, 4) as (figure, grid):
        axes = grid[0, 0]
        wedge = (slope * found.baseline_low, slope * found.baseline_high)
        axes.fill_between(x, *wedge, color=GREY, alpha=0.25, lw=0, label="permuted instances, 95 %")
        colour, band = PALETTE["tma_nft"], (slope * found.low, slope * found.high)
        axes.fill_between(x, *band, color=colour, alpha=0.2, lw=0)
        axes.plot(x, slope * found.estimate, color=colour, label="as measured, with 95 % interval")
        axes.plot(means["similarity"], means["drop"], "o", color="black", label="mean of a bin")
        axes.set(
            xlabel="similarity of the data just seen, centred",
            ylabel="loss drop, centred (nats a token)",
        )
        axes.legend(frameon=False)
    return figure
