"""Interactive charts: they answer to pointer, legend and inputs, and need no network.

A notebook stores a chart twice: as Vega-Lite JSON, which JupyterLab, VS Code and the book draw with
a library of their own, and as SVG.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tma.arrange.duplicates import near_duplicates
from tma.errors import TmaError
from tma.study.figures import Shown, styles

try:
    import altair as alt
    import vl_convert
except ImportError as error:
    raise TmaError(
        f"an interactive figure needs altair and vl-convert-python, and {error.name} is not "
        "installed; pip install 'tma[book]'"
    ) from error

VEGALITE = "application/vnd.vegalite.v5+json"
"""MIME type of the chart; version 5 is the newest that JupyterLab draws."""
LIBRARY = "v5.20"
"""Version of Vega-Lite that draws the static picture, and that the book carries."""
POINTS = 1500
"""Most points in a chart: of more, only every k-th task or instance is drawn."""
EVERY = "every task"
KEYS = ["order", "task", "step"]


def loss_by_task(losses: pd.DataFrame) -> Shown:
    """Draw the mean test loss of every task over training steps, one line a task and order.

    Hovering highlights a task in every order; the legend picks an order, the list a task. The
    columns order, step, task and loss (nats a token) are averaged over all else.
    """
    table = losses.rename(columns={"loss": "value"}).assign(measure="loss")
    return _lines(table, "test loss (nats a token)", "Mean test loss over training steps")


def distances_by_task(distances: pd.DataFrame) -> Shown:
    """Draw how far each test task lies from the training data so far, over training steps.

    Like `loss_by_task`, with columns measure and distance in place of loss; a list picks a measure.
    """
    words = "Distance between the training data so far and a test task over training steps"
    table = distances.rename(columns={"distance": "value"})
    return _lines(table, "distance to the training data so far", words)


def embedding_map(
    X: NDArray[np.float32],
    Y: NDArray[np.float32],
    rounds: Sequence[NDArray[np.int64]],
    tasks: Sequence[str | None],
    test_tasks: Sequence[str | None],
) -> Shown:
    """Draw training instances by round, and test instances, on two principal components.

    Hovering names the task, the round and the cosine similarity to the nearest instance of the
    other side.
    """
    table, count = _points(X, Y, rounds, [*tasks, *test_tasks]), len(rounds)
    slider = alt.binding_range(min=1, max=count, step=1, name="up to round")
    axis = alt.Axis(grid=False, labels=False, ticks=False)
    ticks = sorted({round(1 + (count - 1) * part / 4) for part in range(5)})
    legend = alt.Legend(orient="bottom", title="round", values=ticks, format="d")
    scale = alt.Scale(scheme="viridis", domain=[1, max(2, count)])
    kinds = alt.Scale(domain=["training", "test"], range=["circle", "cross"])
    kind = alt.Shape("kind:N", scale=kinds, legend=alt.Legend(orient="bottom", title="instance"))
    plain = alt.expr("datum.kind == 'test' ? '#D55E00' : '#bbbbbb'")
    size = alt.expr("datum.kind == 'test' ? 60 : datum.round ? 34 : 22")
    colour = alt.when("datum.round == 0").then(alt.value(plain))
    chart: Any = (
        alt.Chart(_inline(table), name="map", width=620, height=360)
        .mark_point(filled=True, opacity=0.85, aria=False)
        .transform_filter("datum.round <= last")
        .encode(
            x=alt.X("x:Q", title="first principal component", axis=axis),
            y=alt.Y("y:Q", title="second principal component", axis=axis),
            shape=kind,
            size=alt.value(size),
            color=colour.otherwise(alt.Color("round:Q", scale=scale, legend=legend)),
            tooltip=["kind:N", "task:N", "round:Q", "similarity:Q"],
        )
        .add_params(alt.param("last", value=count, bind=slider))
    )
    words = (
        "Map of training and test instances by the first two principal components of their "
        f"embeddings; training instances are coloured by round, 1 to {count}."
    )
    return _shown(chart, chart, words)


def _lines(table: pd.DataFrame, title: str, words: str) -> Shown:
    """Return the chart of one line a task and order of a table of KEYS, measure and value."""
    looks, named = styles(table["order"]), table.fillna({"task": "without task"})
    wide = named.pivot_table("value", KEYS, "measure", sort=False).round(4).reset_index()
    measures, tasks = list(wide.columns[3:]), _thinned(np.unique(wide["task"]), len(wide)).tolist()
    labels = {order: look.label for order, look in looks.items()}
    wide = wide[wide["task"].isin(tasks)].assign(order=wide["order"].map(labels))
    base = _line_base(wide, title, [*looks.values()])
    lines = base.mark_line(strokeWidth=1.5, opacity=0.7, aria=False)
    dots = base.properties(name="dots").mark_circle(size=70, opacity=0, aria=False)
    hover = alt.selection_point(
        "hover", fields=["task"], on="pointerover", clear="pointerout", nearest=True
    )
    order = alt.selection_point("order", fields=["order"], bind="legend")
    lit = alt.when(hover & order).then(alt.value(0.8)).otherwise(alt.value(0.08))
    value = alt.Tooltip("value:Q", title=title, format=".3f")
    points = dots.encode(tooltip=["task:N", "order:N", "step:Q", value])
    live = alt.layer(lines.encode(opacity=lit).add_params(order), points.add_params(hover))
    inputs = [_choice("task", [EVERY, *tasks]), _choice("measure", measures)]
    words = f"{words}, one line for each of {len(tasks)} test tasks and each order."
    live = live.properties(name="chart").add_params(*inputs)
    return _shown(live, lines.add_params(*inputs), words)


def _thinned(values: NDArray[Any], points: int) -> NDArray[Any]:
    """Return every k-th value, so that at most `POINTS` of the points are left."""
    return values[:: math.ceil(points / POINTS)]


def _line_base(table: pd.DataFrame, title: str, looks: Sequence[Any]) -> Any:
    """Return what the lines and the points under the pointer share."""
    symbols: Any = {"symbolType": "stroke", "symbolSize": 600, "symbolStrokeWidth": 2}
    legend = alt.Legend(orient="bottom", columns=2, title=None, labelLimit=300, **symbols)
    axis = alt.Axis(tickCount=int(min(10, np.ptp(table["step"]) or 1)), grid=False)
    names = [look.label for look in looks]
    colours = alt.Scale(domain=names, range=[look.colour for look in looks])
    dashes: Any = [[2 * length for length in look.dashes or (1, 0)] for look in looks]
    dashed = alt.Scale(domain=names, range=dashes)
    return (
        alt.Chart(_inline(table), name="lines", width=620, height=360)
        .transform_filter(f"task == '{EVERY}' || datum.task == task")
        .transform_calculate(value="datum[measure]")
        .encode(
            x=alt.X("step:Q", title="training step", axis=axis),
            y=alt.Y("value:Q", title=title, scale=alt.Scale(zero=False)),
            color=alt.Color("order:N", scale=colours, legend=legend),
            strokeDash=alt.StrokeDash("order:N", scale=dashed, legend=legend),
            detail="task:N",
        )
    )


def _choice(name: str, values: Sequence[str]) -> Any:
    """Return a parameter that a list beside the chart sets, at first to the first value."""
    bind = alt.binding_select(options=values, name=name) if len(values) > 1 else alt.Undefined
    return alt.param(name, value=values[0], bind=bind)


def _points(
    X: NDArray[np.float32],
    Y: NDArray[np.float32],
    rounds: Sequence[NDArray[np.int64]],
    tasks: Sequence[str | None],
) -> pd.DataFrame:
    """Return one row a point: kind, task, round (0: none), similarity, x, y; test points last."""
    from sklearn.decomposition import PCA

    every = len(X) + len(Y)
    round_of = np.zeros(every, dtype=np.int64)
    for number in range(len(rounds), 0, -1):
        round_of[rounds[number - 1]] = number
    sequence = pd.unique(np.concatenate([*rounds, np.arange(len(X))]))
    train, test = _thinned(sequence, every)[::-1], _thinned(np.arange(len(Y)), every)
    near = (near_duplicates(X[train], Y), near_duplicates(Y[test], X))
    rows = np.concatenate([X[train], Y[test]]).astype(np.float64)
    plane = PCA(n_components=2, svd_solver="full").fit_transform(rows).round(3) + 0.0  # no -0.0
    drawn = np.concatenate([train, len(X) + test])
    return pd.DataFrame(
        {
            "kind": np.where(drawn < len(X), "training", "test"),
            "task": [tasks[row] or "without task" for row in drawn],
            "round": round_of[drawn],
            "similarity": np.concatenate([side.cosine for side in near]).round(3),
            "x": plane[:, 0],
            "y": plane[:, 1],
        }
    )


def _inline(table: pd.DataFrame) -> Any:
    """Return the table as data inside the chart: CSV, less than half the size of JSON."""
    numbers: Any = dict.fromkeys(table.select_dtypes("number"), "number")
    text = table.to_csv(index=False, lineterminator="\n")
    return alt.InlineData(values=text, format=alt.CsvDataFormat(type="csv", parse=numbers))


def _shown(live: Any, picture: Any, words: str) -> Shown:
    """Return a chart and its picture, both on white in either colour scheme of the page."""
    fit = alt.AutoSizeParams(type="fit", contains="padding")
    live, picture = (
        chart.properties(description=words, background="white", autosize=fit)
        .configure_view(stroke=None)
        .configure_axis(labelFontSize=12, titleFontSize=13)
        .to_dict()
        for chart in (live, picture)
    )
    svg = vl_convert.vegalite_to_svg(picture, vl_version=LIBRARY)
    short = re.sub(r"(\d\.\d\d)\d+", r"\1", svg)  # hundredths of a pixel: half the size
    return Shown({VEGALITE: live, "image/svg+xml": short, "text/plain": words})
