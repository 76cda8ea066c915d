"""Result tables → labelled axes; an order has one label, colour and dash pattern in every figure.

The colours are Okabe and Ito's, which any colour vision tells apart; the dashes carry the
difference into grey print. Rounds of TMA are steps of one scale from dark to light.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from tma.arrange.spec import ORDERS
from tma.data.describe import check_described, task_sizes, token_counts
from tma.errors import check_choice
from tma.study.effects import Effect
from tma.study.exposure import Association
from tma.study.statistics import Runs, mean_curves

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Shown:
    """What a cell displays: MIME type → the same thing in that form."""

    forms: Mapping[str, Any]
    alt: str = ""
    """What a picture shows, result included, for those who do not see it."""

    def _repr_mimebundle_(self, **_: object) -> Any:
        # `book/publish.py` makes it the alternative text of the picture.
        return (self.forms, {"alt": self.alt}) if self.alt else self.forms


Lengths = tuple[float, ...]
"""Lengths of lines and gaps in points; none: a solid line."""


@dataclass(frozen=True)
class Style:
    """How an order is drawn."""

    label: str
    colour: str
    dashes: Lengths = ()

    @property
    def short(self) -> str:
        """The label's first words, for an axis: RT of "RT, random"."""
        return self.label.partition(",")[0]

    @property
    def line(self) -> dict[str, Any]:
        """Arguments of matplotlib's `plot`."""
        return {"color": self.colour, "dashes": self.dashes or (None, None), "linewidth": 2}


STYLES = {
    "tma_nft": Style("NFT, nearest first", "#0072B2"),
    "tma_rt": Style("RT, random", "#444444", (1, 1.2)),
    "tma_fft": Style("FFT, farthest first", "#D55E00", (5, 2)),
    "tma_nft, shuffled": Style("NFT, shuffled in rounds", "#1B9CE0", (10, 1, 1, 1)),
    "tma_fft, shuffled": Style("FFT, shuffled in rounds", "#F28E5C", (5, 1, 1, 1, 1, 1, 1, 1)),
    "tma_min": Style("MIN, nearest only", "#56B4E9", (7, 2, 1, 2)),
    "tma_max": Style("MAX, farthest only", "#E69F00", (3, 1)),
    "tma_min_rt": Style("MIN shuffled", "#2C7FA8", (7, 1, 1, 1, 1, 1)),
    "tma_max_rt": Style("MAX shuffled", "#A87400", (4, 1, 1, 1)),
    "random": Style("random", "#999999", (1, 3)),
    "round_robin": Style("round-robin", "#009E73", (5, 1, 1, 1, 1, 1)),
    "cluster": Style("cluster", "#CC79A7", (9, 2)),
    "nearest": Style("nearest first, fine", "#004D7A", (12, 1)),
    "farthest": Style("farthest first, fine", "#8F3F00", (2, 2)),
    "coarse_nearest": Style("nearest first, coarse", "#7FB8D9", (12, 3, 3, 3)),
    "coarse_farthest": Style("farthest first, coarse", "#EAAE7F", (2, 4)),
}
"""Order → its style; one that is not here is a solid black line under its own name."""
BLACK = "#000000"
BLUE, GREY = STYLES["tma_nft"].colour, STYLES["tma_rt"].colour
PAPER: dict[str, Any] = {"color": "#C98500", "marker": "D", "markersize": 7, "linestyle": "none"}
"""The paper's own value, in every figure."""
METRICS = {
    "loss": "loss",
    "rouge1": "ROUGE-1",
    "rougeL": "ROUGE-L",
    "exact_match": "exact match",
    "reward": "reward",
}
UNITS = {
    "loss": "nats a token",
    "rouge1": "F-measure",
    "rougeL": "F-measure",
    "exact_match": "share",
    "reward": "no unit",
}
FAMILIES = {"cosine": BLUE, "euclidean": "#6A3D9A", "bigram": "#7A7A00"}
"""Family of a distance → colour, of no order in the same chapter."""
STATISTICS: dict[str, Lengths] = {"min": (4, 1.5), "max": (1, 1.2), "centroid": (7, 2, 1, 2)}
"""Statistic of a distance over all pairs → dashes; the others are solid."""
WIDTH = 6.5
"""Of every figure, in inches: its text is readable on a phone too."""
_ROUNDS = re.compile(r"tma_rounds\[(\d*):(\d*)\]")
_ROUNDS_DASHES = ((), (4, 1.5), (1.5, 1.5), (6, 1.5, 1.5, 1.5), (10, 2), (2, 1, 2, 4))


def styles(names: Iterable[str]) -> dict[str, Style]:
    """Return how orders and blocks of rounds, such as tma_rounds[0:5], are drawn."""
    matches = {name: _ROUNDS.fullmatch(name) for name in names}
    starts = {name: int(match[1] or 0) for name, match in matches.items() if match}
    ranked = sorted(starts, key=lambda name: starts[name])
    looks = dict[str, Style]()
    for name, match in matches.items():
        if match:
            looks[name] = _block_style(starts[name], match[2], ranked.index(name), len(ranked))
        else:
            check_choice("order", name, [*STYLES, *ORDERS])
            looks[name] = STYLES.get(name) or Style(name, BLACK)
    return looks


def _block_style(first: int, stop: str, place: int, count: int) -> Style:
    label = f"rounds {first + 1} to {stop}" if stop else f"rounds from {first + 1}"
    colour = to_hex(plt.get_cmap("viridis")(0.85 * place / max(1, count - 1)))
    return Style(label, colour, _ROUNDS_DASHES[place % len(_ROUNDS_DASHES)])


@contextmanager
def drawing(
    rows: int, columns: int, width: float, height: float, **settings: Any
) -> Iterator[tuple[Figure, Any]]:
    """Yield a figure, sized in inches, and its (rows, columns) axes; close it then."""
    settings |= {"figsize": (width, height), "layout": "constrained", "squeeze": False}
    with sns.axes_style("ticks"), sns.plotting_context("notebook"):
        figure, axes = plt.subplots(rows, columns, **settings)
        try:
            yield figure, axes
            sns.despine(figure)
        finally:
            plt.close(figure)


def _label_steps(panels: Iterable[Axes], *, base: int = 4) -> None:
    """Give steps a logarithmic axis that has a zero: most of what happens does so early."""
    for axes in panels:
        last = float(axes.dataLim.x1)
        powers = [base**power for power in range(1 + int(math.log(max(1, last), base)))]
        axes.set_xlabel("training step")
        axes.set_xscale("symlog", base=2, linthresh=1)
        axes.set_xlim(0, last * 1.03)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks([0, *powers], ["0", *map("{:,}".format, powers)])


def comparison_figure(
    runs: Runs,
    gaps: Mapping[str, Mapping[int, Effect]],
    baseline: str,
    *,
    ranges: bool = True,
    paper: Mapping[str, Mapping[float, float]] | None = None,
) -> Figure:
    """Return mean test losses and, below them, differences from a baseline (`effects.course`).

    A panel a difference, with its 95% intervals: the band is for tasks of other datasets, the two
    thin lines, where folds were repeated, for these tasks. Grey is how far single seeds of the
    baseline lie from their mean, if `ranges`: not where seeds test different folds. Diamonds are
    the differences that the `paper` shows, by share of the steps.
    """
    looks, curves = styles(runs), {order: mean_curves(own) for order, own in runs.items()}
    rows = 1 + math.ceil(len(gaps) / 2)
    with drawing(rows, 2, WIDTH, 3.2 + 2.2 * (rows - 1)) as (figure, grid):
        for axes in grid[0]:
            axes.remove()
        top = figure.add_subplot(grid[0, 0].get_gridspec()[0, :])
        for order, mean in curves.items():
            top.plot(mean["step"], mean["mean"], label=looks[order].label, **looks[order].line)
        top.legend(frameon=False)
        top.set_ylabel("test loss (nats a token)")
        panels = [*grid[1:].flat]
        for axes in panels[len(gaps) :]:
            axes.remove()
        panels = panels[: len(gaps)]
        seeds = curves[baseline] if ranges else None
        for axes, (order, course) in zip(panels, gaps.items(), strict=True):
            _draw_difference(axes, course, looks[order], looks[baseline], seeds)
            for share, gap in (paper or {}).get(order, {}).items():
                axes.plot([share * max(course)], [gap], clip_on=False, **PAPER)
        ends = [end for axes in panels for end in (axes.dataLim.y0, axes.dataLim.y1)]
        room = 0.08 * (max(ends, default=0) - min(ends, default=0))
        for axes in panels:
            axes.set_ylim(min(ends) - room, max(ends) + room)
        for axes in panels[::2]:
            axes.set_ylabel(f"minus {looks[baseline].short} (nats)")
        _label_steps([top], base=2)
        _label_steps(panels)
    return figure


def _draw_difference(
    axes: Axes,
    course: Mapping[int, Effect],
    look: Style,
    baseline: Style,
    seeds: pd.DataFrame | None,
) -> None:
    """Draw one difference from a baseline in a panel of its own, under its name."""
    if seeds is not None and (seeds["low"] < seeds["high"]).any():
        low, high = (seeds[end] - seeds["mean"] for end in ("low", "high"))
        axes.fill_between(seeds["step"], low, high, color=GREY, alpha=0.2, lw=0)
    steps = [*course]
    axes.plot(steps, [effect.estimate for effect in course.values()], **look.line)
    axes.axhline(0, **baseline.line | {"linewidth": 1})
    others, these = (
        np.array([[each.low, each.high] for each in intervals]).T
        for intervals in zip(*((one.datasets, one.tasks) for one in course.values()), strict=True)
    )
    if np.isfinite(others).all():
        axes.fill_between(steps, *others, color=look.colour, alpha=0.2, lw=0)
    if np.isfinite(these).all():
        axes.plot(steps, these.T, color=look.colour, linewidth=0.7)
    axes.set_title(look.label, fontsize="medium")


def intervals_figure(
    contrasts: Mapping[str, Effect],
    quantity: str = "loss difference (nats a token)",
    band: tuple[float, float] | None = None,
) -> Figure:
    """Return dots with 95% bars, thick for these tasks and thin for tasks of other datasets.

    A dot is full where the interval for these tasks excludes zero. Marks on the thin bar are the
    range when one source dataset is left out. The grey band is how far single seeds lie from their
    mean (`statistics.seed_range`).
    """
    with drawing(1, 1, WIDTH, 1.2 + 0.4 * len(contrasts)) as (figure, grid):
        axes = grid[0, 0]
        if band is not None:
            axes.axvspan(*band, color=GREY, alpha=0.25, lw=0)
        axes.axvline(0, **STYLES["tma_rt"].line)
        for row, effect in enumerate(contrasts.values()):
            _draw_effect(axes, effect, row)
        names = [STYLES[name].label if name in STYLES else name for name in contrasts]
        axes.set(xlabel=quantity, ylim=(len(contrasts) - 0.5, -0.5))
        axes.set_yticks(range(len(contrasts)), names)
        axes.xaxis.set_major_locator(MaxNLocator(5))
    return figure


def _draw_effect(axes: Axes, effect: Effect, row: int) -> None:
    """Draw an effect with both intervals and its range without one dataset in a row."""
    for interval, width, alpha in ((effect.tasks, 8, 0.35), (effect.datasets, 1.2, 1)):
        if math.isfinite(interval.low):
            bar: dict[str, Any] = {
                "color": BLUE,
                "linewidth": width,
                "alpha": alpha,
                "solid_capstyle": "butt",
            }
            axes.plot([interval.low, interval.high], [row, row], **bar)
    axes.plot(effect.without_one, [row, row], "|", color=BLUE, markersize=11)
    face = BLUE if effect.tasks.clear else "white"
    dot: dict[str, Any] = {"markerfacecolor": face, "markersize": 8, "zorder": 3}
    axes.plot([effect.estimate], [row], "o", color=BLUE, **dot)


def variety_figure(found: Mapping[str, tuple[float, Effect]], quantity: str) -> Figure:
    """Return a row an order: its tasks a step, and a difference with its interval (`variety`)."""
    with drawing(1, 2, WIDTH, 1.2 + 0.4 * len(found), sharey=True) as (figure, [axes]):
        for row, (tasks, effect) in enumerate(found.values()):
            axes[0].barh([row], [tasks], color=GREY, height=0.5)
            _draw_effect(axes[1], effect, row)
        axes[0].set(xlabel="effective tasks a step", ylim=(len(found) - 0.5, -0.5))
        axes[0].set_yticks(range(len(found)), [look.label for look in styles(found).values()])
        axes[1].axvline(0, **STYLES["tma_rt"].line)
        axes[1].set_xlabel(quantity)
    return figure


def tasks_figure(gaps: Mapping[str, pd.DataFrame]) -> Figure:
    """Return a dot a test task, its difference over the length of its responses (`by_task`).

    A panel a difference; a larger dot has more test instances.
    """
    with drawing(1, len(gaps), WIDTH, 3.4, sharey=True) as (figure, grid):
        for axes, (name, tasks) in zip(grid[0], gaps.items(), strict=True):
            axes.axhline(0, color=GREY, linewidth=1)
            axes.scatter(tasks["tokens"], tasks["gap"], 4 * tasks["n"], BLUE, alpha=0.4, lw=0)
            axes.set(xscale="log", xlabel="tokens a response")
            axes.set_title(name, fontsize="medium")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_locator(NullLocator())
        grid[0, 0].set_ylabel("difference (nats a token)")
    return figure


def note_figure(text: str) -> Figure:
    """Return a figure that says why there is none yet."""
    with drawing(1, 1, WIDTH, 0.8) as (figure, grid):
        grid[0, 0].set_axis_off()
        grid[0, 0].text(0, 0.5, "\n".join(wrap(text, 70)), va="center")
    return figure


def metrics_figure(metric_curves: pd.DataFrame) -> Figure:
    """Return a panel a metric of `statistics.metric_curves`: seeds thin lines, their mean thick."""
    metrics = metric_curves["metric"].unique()
    rows, columns = math.ceil(len(metrics) / 2), min(2, len(metrics))
    with drawing(rows, columns, WIDTH, 2.7 * rows, sharex=True) as (figure, grid):
        for axes, metric in zip(grid.flat, metrics, strict=False):
            table = metric_curves[metric_curves["metric"] == metric]
            for _, seed in table.groupby("seed"):
                axes.plot(seed["step"], seed["value"], color=GREY, linewidth=0.8, alpha=0.6)
            mean = table.groupby("step")["value"].mean()
            axes.plot(mean.index, mean.to_numpy(), color=BLUE, linewidth=2, marker="o", ms=4)
            axes.set_ylabel(f"{METRICS[metric]} ({UNITS[metric]})")
            axes.xaxis.set_tick_params(labelbottom=True)
        for axes in grid.flat[len(metrics) :]:
            axes.remove()
        _label_steps(grid.flat[: len(metrics)])
    return figure


def distances_figure(distances: pd.DataFrame, losses: pd.DataFrame) -> Figure:
    """Return `exposure.distances_of` over steps beside the losses of three test tasks at most (C3).

    A row an order, a column a task. Each curve is scaled to [0, 1] by its range in its column.
    """
    every, orders = distances["task"].unique(), distances["order"].unique()
    tasks = every[:: max(1, len(every) // 3)][:3]
    curves, looks = _scaled(distances, losses), styles(orders)
    size = (WIDTH, 1.9 * len(orders) + 1.5)
    with drawing(len(orders), len(tasks), *size, sharex=True, sharey=True) as (figure, grid):
        for row, order in zip(grid, orders, strict=True):
            for axes, task in zip(row, tasks, strict=True):
                shown = curves[(curves["task"] == task) & (curves["order"] == order)]
                for measure, curve in shown.groupby("measure", sort=False):
                    axes.plot(curve["step"], curve["value"], **_measure_line(str(measure)))
            row[0].set_ylabel(looks[order].short)
        _label_steps(grid[-1])
        for axes, task in zip(grid[0], tasks, strict=True):
            axes.set_title("\n".join(wrap(str(task), 18)), fontsize="medium")
        place: Any = "outside lower center"  # matplotlib's annotations lack it
        figure.legend(handles=grid[0, 0].get_lines(), loc=place, frameon=False, ncols=3)
    return figure


def _scaled(distances: pd.DataFrame, losses: pd.DataFrame) -> pd.DataFrame:
    """Return order, task, measure (loss among them), step and value in [0, 1], by step."""
    loss = losses.rename(columns={"loss": "value"}).assign(measure="loss")
    both = pd.concat([loss, distances.rename(columns={"distance": "value"})])
    keys = ["order", "task", "measure", "step"]
    means = both.groupby(keys, sort=False)["value"].mean().reset_index()
    values = means.groupby(["task", "measure"])["value"]
    low, high = values.transform("min"), values.transform("max")
    scaled = means.assign(value=(means["value"] - low) / (high - low).where(high > low, 1))
    return scaled.sort_values("step", kind="stable")


def _measure_line(measure: str) -> dict[str, Any]:
    if measure == "loss":
        return {"label": "test loss", "color": "black", "linewidth": 3, "zorder": 3}
    family, _, statistic = measure.partition("_")
    label = f"{family} {'KL' if statistic == 'kl' else statistic}"
    dashes = STATISTICS.get(statistic, (None, None))
    return {"label": label, "color": FAMILIES[family], "linewidth": 1.3, "dashes": dashes}


def association_figure(pairs: pd.DataFrame, association: Association) -> Figure:
    """Return drops against similarities of `exposure.centred`, in bins of equal size (C8)."""
    bins = pd.qcut(pairs["similarity"], 12, duplicates="drop")
    means = pairs.groupby(bins, observed=True)[["similarity", "drop"]].mean()
    x = np.linspace(means["similarity"].min(), means["similarity"].max(), 50)
    slope = x * float(pairs["drop"].std() / pairs["similarity"].std())
    low, line, high = (slope * r for r in (association.low, association.estimate, association.high))
    with drawing(1, 1, WIDTH, 4) as (figure, grid):
        axes = grid[0, 0]
        wedge = (slope * association.baseline_low, slope * association.baseline_high)
        axes.fill_between(x, *wedge, color=GREY, alpha=0.25, lw=0, label="permuted instances, 95%")
        axes.fill_between(x, low, high, color=BLUE, alpha=0.2, lw=0)
        axes.plot(x, line, color=BLUE, label="as measured, with 95% interval")
        axes.plot(means["similarity"], means["drop"], "o", color="black", label="mean of a bin")
        axes.set_xlabel("similarity of the data just seen, centred")
        axes.set_ylabel("loss drop, centred (nats a token)")
        axes.legend(frameon=False)
    return figure


def data_figure(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, *, max_tokens: int = 1024
) -> Figure:
    """Return the figure of a dataset: share of instances over tokens, and instances a task.

    Args:
        dataset: instances as `tma.load` gives them; without tasks there is one panel.
        tokenizer: counts tokens.
        max_tokens: where an instance counts as over-long; a dotted line.

    Raises:
        DataError, ParameterError: as `tma.describe`.
    """
    check_described(dataset, tokenizer, max_tokens)
    sizes = [size for task, size in task_sizes(dataset).most_common() if task is not None]
    tokens, panels = token_counts(dataset, tokenizer), 2 if sizes else 1
    lengths = {"prompt": tokens[:, 0], "response": tokens[:, 1], "both": tokens.sum(axis=1)}
    with drawing(1, panels, WIDTH, 3.4) as (figure, [axes]):
        for (name, counts), order in zip(
            lengths.items(), ("tma_nft", "tma_fft", "tma_rt"), strict=True
        ):
            values, each = np.unique(np.maximum(counts, 1), return_counts=True)
            share = np.cumsum(each) / max(1, len(counts))
            axes[0].plot(values, share, label=name, **STYLES[order].line)
        axes[0].axvline(max_tokens, color=STYLES["random"].colour, linestyle=":")
        axes[0].set(xscale="log", xlabel="tokens", ylabel="share of instances with at most so many")
        axes[0].legend(frameon=False)
        if sizes:
            axes[1].plot(np.arange(1, len(sizes) + 1), sizes, **STYLES["tma_nft"].line)
            axes[1].set(xlabel="task, the largest first", ylabel="instances", ylim=(0, None))
    return figure
