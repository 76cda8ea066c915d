"""Result table → labelled axes in the study's palette.

One colour and one dash pattern an order, the same in every figure: the colours are Okabe and Ito's,
told apart with any colour vision, and darker and lighter shades of them for the fine and the coarse
orders; the dashes carry the difference into grey print.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from tma.statistics import Difference

LABELS = {
    "tma_nft": "NFT, nearest first",
    "tma_rt": "RT, random",
    "tma_fft": "FFT, farthest first",
    "tma_min": "MIN, nearest only",
    "tma_max": "MAX, farthest only",
    "random": "random, all data",
    "round_robin": "round-robin",
    "cluster": "cluster",
    "nearest": "nearest first, fine",
    "farthest": "farthest first, fine",
    "coarse_nearest": "nearest first, coarse",
    "coarse_farthest": "farthest first, coarse",
}
PALETTE = {
    "tma_nft": "#0072B2",
    "tma_rt": "#444444",
    "tma_fft": "#D55E00",
    "tma_min": "#56B4E9",
    "tma_max": "#E69F00",
    "random": "#999999",
    "round_robin": "#009E73",
    "cluster": "#CC79A7",
    "nearest": "#004D7A",
    "farthest": "#8F3F00",
    "coarse_nearest": "#7FB8D9",
    "coarse_farthest": "#EAAE7F",
}
DASHES: dict[str, Any] = {
    "tma_nft": "",
    "tma_rt": (1, 1.2),
    "tma_fft": (5, 2),
    "tma_min": (7, 2, 1, 2),
    "tma_max": (3, 1),
    "random": (1, 3),
    "round_robin": (5, 1, 1, 1, 1, 1),
    "cluster": (9, 2),
    "nearest": (12, 1),
    "farthest": (2, 2),
    "coarse_nearest": (12, 3, 3, 3),
    "coarse_farthest": (2, 4),
}


def loss_curves(curves: pd.DataFrame, axes: Axes) -> None:
    """Draw mean test loss over steps, one line an order; several seeds give a band (min to max).

    Args:
        curves: columns order, seed, step, loss (nats a token), from `statistics.curves`.
        axes: where to draw.
    """
    orders = list(dict.fromkeys(curves["order"]))
    band = ("pi", 100) if curves["seed"].nunique() > 1 else None
    sns.lineplot(
        curves,
        x="step",
        y="loss",
        hue="order",
        hue_order=orders,
        style="order",
        style_order=orders,
        palette=PALETTE,
        dashes=DASHES,
        errorbar=band,
        linewidth=2,
        ax=axes,
    )
    handles, names = axes.get_legend_handles_labels()
    axes.legend(handles, [LABELS[name] for name in names], frameon=False)
    axes.set(xlabel="training step", ylabel="test loss (nats a token)")


def difference_bands(found: Mapping[str, Sequence[Difference]], axes: Axes) -> None:
    """Draw each order's loss minus the random order's, with its 95 % interval, over steps.

    Args:
        found: order → differences from random, from `statistics.differences`.
        axes: where to draw.
    """
    axes.axhline(0, color=PALETTE["tma_rt"], linewidth=1.5, dashes=DASHES["tma_rt"])
    for order, rows in found.items():
        steps = [d.step for d in rows]
        colour, dashes = PALETTE[order], DASHES[order] or (None, None)
        axes.plot(steps, [d.estimate for d in rows], color=colour, linewidth=2, dashes=dashes)
        axes.fill_between(
            steps, [d.low for d in rows], [d.high for d in rows], color=colour, alpha=0.2, lw=0
        )
    axes.set(xlabel="training step", ylabel="loss minus RT (nats a token)")


def arrangement_figure(curves: pd.DataFrame, found: Mapping[str, Sequence[Difference]]) -> Figure:
    """Return the figure of the TMA study: the curves, and beside them the differences from RT."""
    with sns.axes_style("ticks"), sns.plotting_context("notebook"):
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
        loss_curves(curves, left)
        difference_bands(found, right)
        for axes in (left, right):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        sns.despine(figure)
    plt.close(figure)
    return figure


def lengths_figure(tokens: NDArray[np.int64], tasks: Sequence[int], max_tokens: int) -> Figure:
    """Return the figure of a dataset: how long its instances are, and how large its tasks.

    Args:
        tokens: (n, 2), tokens of prompt and response.
        tasks: instances of each task, falling; without tasks there is one panel.
        max_tokens: where an instance counts as over-long; a dotted line.
    """
    panels = 2 if tasks else 1
    with sns.axes_style("ticks"), sns.plotting_context("notebook"):
        figure, grid = plt.subplots(1, panels, figsize=(5 * panels, 4), layout="constrained")
        axes = np.atleast_1d(grid)
        lengths = {"prompt": tokens[:, 0], "response": tokens[:, 1], "both": tokens.sum(axis=1)}
        orders = ("tma_nft", "tma_fft", "tma_rt")
        for (name, found), order in zip(lengths.items(), orders, strict=True):
            style = {"color": PALETTE[order], "dashes": DASHES[order] or (None, None)}
            axes[0].plot(*_cumulative(found), label=name, linewidth=2, **style)
        axes[0].axvline(max_tokens, color=PALETTE["random"], linestyle=":")
        axes[0].set(xscale="log", xlabel="tokens", ylabel="share of instances with at most so many")
        axes[0].legend(frameon=False)
        if tasks:
            axes[1].plot(np.arange(1, len(tasks) + 1), tasks, color=PALETTE["tma_nft"], linewidth=2)
            axes[1].set(xlabel="task, the largest first", ylabel="instances", ylim=(0, None))
        sns.despine(figure)
    plt.close(figure)
    return figure


def _cumulative(counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the different counts, rising, and the share that is at most each."""
    values, each = np.unique(np.maximum(counts, 1), return_counts=True)
    return values, np.cumsum(each) / max(1, len(counts))
