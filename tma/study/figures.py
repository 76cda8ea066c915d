"""Result table → labelled axes, in the study's styles (`tma.study.styles`)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from tma.study.effects import Effect
from tma.study.statistics import Interval, spread
from tma.study.styles import LABELS, PALETTE, Style, styles

METRICS = {
    "loss": "loss (nats a token)",
    "rouge1": "ROUGE-1 (F-measure)",
    "rougeL": "ROUGE-L (F-measure)",
    "exact_match": "exact match (share)",
    "reward": "reward (no unit)",
}
"""Metric → what stands at its axis."""
GREY = PALETTE["tma_rt"]


@contextmanager
def drawing(
    rows: int, columns: int, width: float, height: float, **settings: Any
) -> Iterator[tuple[Figure, Any]]:
    """Yield a figure and its axes, (rows, columns), in the look of the study; close it after."""
    with sns.axes_style("ticks"), sns.plotting_context("notebook"):
        figure, axes = plt.subplots(
            rows,
            columns,
            figsize=(width, height),
            layout="constrained",
            squeeze=False,
            **settings,
        )
        try:
            yield figure, axes
            sns.despine(figure)
        finally:
            plt.close(figure)


def loss_curves(curves: pd.DataFrame, axes: Axes, looks: Mapping[str, Style]) -> None:
    """Draw mean test loss over steps, one line an order; several seeds give a band (min to max).

    Args:
        curves: columns order, seed, step, loss (nats a token), from `statistics.curves`.
        axes: where to draw.
        looks: how each order is drawn, from `styles`.
    """
    for order in dict.fromkeys(curves["order"]):
        look = looks[order]
        found = spread(curves, order)
        axes.plot(found["step"], found["mean"], label=look.label, **look.line)
        if curves.loc[curves["order"] == order, "seed"].nunique() > 1:
            axes.fill_between(
                found["step"], found["low"], found["high"], color=look.colour, alpha=0.2, lw=0
            )
    axes.legend(frameon=False)
    axes.set(xlabel="training step", ylabel="test loss (nats a token)")


def difference_bands(
    gaps: Mapping[str, Sequence[Interval]],
    axes: Axes,
    looks: Mapping[str, Style],
    baseline: Style,
    seeds: pd.DataFrame | None = None,
) -> None:
    """Draw each order's loss minus the baseline's, with its 95 % interval, over steps.

    Args:
        gaps: order → differences from the baseline, from `effects.course`.
        axes: where to draw.
        looks: how each order is drawn, from `styles`.
        baseline: how the baseline is drawn; the line at zero.
        seeds: from `statistics.spread`: how far the baseline's own seeds lie from their mean, a
            grey band.
    """
    if seeds is not None:
        low, high = (seeds[end] - seeds["mean"] for end in ("low", "high"))
        label = f"seeds of {baseline.short}, min to max"
        axes.fill_between(seeds["step"], low, high, color=GREY, alpha=0.25, lw=0, label=label)
        axes.legend(frameon=False)
    axes.axhline(0, **baseline.line)
    for order, rows in gaps.items():
        steps = np.array([gap.step for gap in rows])
        estimate, low, high = np.array([(gap.estimate, gap.low, gap.high) for gap in rows]).T
        axes.plot(steps, estimate, **looks[order].line)
        axes.fill_between(steps, low, high, color=looks[order].colour, alpha=0.2, lw=0)
    axes.set(xlabel="training step", ylabel=f"loss minus {baseline.short} (nats a token)")


def comparison_figure(
    curves: pd.DataFrame,
    gaps: Mapping[str, Sequence[Interval]],
    baseline: str,
) -> Figure:
    """Return the figure of a comparison: loss curves, and beside them differences from a baseline.

    Args:
        curves: from `statistics.curves`, the baseline among them.
        gaps: order → its differences from the baseline, from `effects.course`.
        baseline: name of the baseline among the curves. Where it has several seeds, a grey band
            shows how far they lie from their mean.

    Raises:
        ParameterError: a name that cannot be drawn, or a baseline that is not among the curves.
    """
    looks = styles([*dict.fromkeys(curves["order"]), *gaps])
    seeds = spread(curves, baseline)
    single = bool((seeds["low"] == seeds["high"]).all())
    with drawing(1, 2, 10, 4) as (figure, grid):
        loss_curves(curves, grid[0, 0], looks)
        difference_bands(gaps, grid[0, 1], looks, looks[baseline], None if single else seeds)
        whole_steps(grid.flat)
    return figure


def metrics_figure(metric_curves: pd.DataFrame) -> Figure:
    """Return one panel a metric over steps: each seed a thin line, their mean a thick one.

    Args:
        metric_curves: columns metric, seed, step, value, from `scores.metric_curves`.
    """
    metrics = list(dict.fromkeys(metric_curves["metric"]))
    columns = math.ceil(math.sqrt(len(metrics)))
    rows = -(-len(metrics) // columns)
    with drawing(rows, columns, 3.6 * columns, 3 * rows, sharex=True) as (figure, grid):
        for axes, metric in zip(grid.flat, metrics, strict=False):
            found = metric_curves[metric_curves["metric"] == metric]
            for _, seed in found.groupby("seed"):
                axes.plot(seed["step"], seed["value"], color=GREY, linewidth=0.8, alpha=0.6)
            mean = found.groupby("step")["value"].mean()
            colour = PALETTE["tma_nft"]
            axes.plot(mean.index, mean.to_numpy(), color=colour, linewidth=2, marker="o", ms=4)
            axes.set(ylabel=METRICS.get(metric, metric), xlabel="training step")
            axes.xaxis.set_tick_params(labelbottom=True)
        for axes in grid.flat[len(metrics) :]:
            axes.remove()
        whole_steps(grid.flat[: len(metrics)])
    return figure


def intervals_figure(
    contrasts: Mapping[str, Effect],
    quantity: str = "loss difference (nats a token)",
    band: tuple[float, float] | None = None,
) -> Figure:
    """Return dots with 95 % bars, one row a contrast, beside a line at zero.

    Args:
        contrasts: name → effect, drawn from the top down with its interval for these tasks; a dot
            is full where that excludes zero, else hollow.
        quantity: what the intervals are of, with its unit; stands at the axis.
        band: from `statistics.seed_range`: how far single seeds of the random order lie from their
            mean; drawn in grey.
    """
    with drawing(1, 1, 7, 1.2 + 0.4 * len(contrasts)) as (figure, grid):
        axes = grid[0, 0]
        if band is not None:
            axes.axvspan(*band, color=GREY, alpha=0.25, lw=0)
        axes.axvline(0, **styles(["tma_rt"])["tma_rt"].line)
        for row, found in enumerate(effect.tasks for effect in contrasts.values()):
            axes.plot([found.low, found.high], [row, row], color=PALETTE["tma_nft"], linewidth=2)
            face = PALETTE["tma_nft"] if found.clear else "white"
            dot = {"color": PALETTE["tma_nft"], "markerfacecolor": face, "markersize": 8}
            axes.plot([found.estimate], [row], "o", zorder=3, **dot)
        axes.set(xlabel=quantity, ylim=(len(contrasts) - 0.5, -0.5))
        axes.set_yticks(range(len(contrasts)), [LABELS.get(name, name) for name in contrasts])
    return figure


def whole_steps(panels: Iterable[Axes]) -> None:
    """Mark whole training steps alone."""
    for axes in panels:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def lengths_figure(tokens: NDArray[np.int64], tasks: Sequence[int], max_tokens: int) -> Figure:
    """Return the figure of a dataset: how long its instances are, and how large its tasks.

    Args:
        tokens: (n, 2), tokens of prompt and response.
        tasks: instances of each task, falling; without tasks there is one panel.
        max_tokens: where an instance counts as over-long; a dotted line.
    """
    panels = 2 if tasks else 1
    looks = styles(("tma_nft", "tma_fft", "tma_rt"))
    with drawing(1, panels, 5 * panels, 4) as (figure, grid):
        axes = grid[0]
        lengths = {"prompt": tokens[:, 0], "response": tokens[:, 1], "both": tokens.sum(axis=1)}
        for (name, found), look in zip(lengths.items(), looks.values(), strict=True):
            axes[0].plot(*_cumulative(found), label=name, **look.line)
        axes[0].axvline(max_tokens, color=PALETTE["random"], linestyle=":")
        axes[0].set(xscale="log", xlabel="tokens", ylabel="share of instances with at most so many")
        axes[0].legend(frameon=False)
        if tasks:
            axes[1].plot(np.arange(1, len(tasks) + 1), tasks, **looks["tma_nft"].line)
            axes[1].set(xlabel="task, the largest first", ylabel="instances", ylim=(0, None))
    return figure


def _cumulative(counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the different counts, rising, and the share that is at most each."""
    values, each = np.unique(np.maximum(counts, 1), return_counts=True)
    return values, np.cumsum(each) / max(1, len(counts))
