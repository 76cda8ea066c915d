"""Tables → Vega-Lite charts, through altair; what they show is decided in `interactive`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd

from tma.study.styles import DASHES, LABELS, PALETTE

EVERY = "every task"
"""Entry of the list of tasks that picks them all."""

_SPARE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444")
"""Colours (Okabe and Ito's) of orders that the palette of the study does not name."""
_TRAINED = "datum.kind == 'training'"
_WIDTH, _HEIGHT = 620, 360
"""Pixels; the book makes a chart as wide as its page."""


def labels(orders: Iterable[str]) -> dict[str, str]:
    """Return the label of each order, in their sequence; an unknown one is its own."""
    return {order: LABELS.get(order, order) for order in dict.fromkeys(orders)}


def _style(orders: Sequence[str]) -> tuple[list[str], list[list[float]]]:
    """Return the colour and the dashes (pixels) of each order, told apart as far as colours go."""
    taken = {PALETTE[order] for order in orders if order in PALETTE}
    spare = cycle([colour for colour in _SPARE if colour not in taken])
    colours = [PALETTE[order] if order in PALETTE else next(spare) for order in orders]
    dashes = [[2.0 * length for length in DASHES.get(order) or (1, 0)] for order in orders]
    return colours, dashes


def lines_chart(table: pd.DataFrame, title: str, words: str, *, live: bool) -> Any:
    """Return the chart of one line a task and order; if not live, without all that answers."""
    import altair as alt

    values = [str(column) for column in table.columns[3:]]
    base = _line_base(table, title, values[0], live=live)
    if not live:
        return _configured(base.mark_line(strokeWidth=1.4, opacity=0.7, aria=False), words)
    base = base.transform_filter(f"task == '{EVERY}' || datum.task == task")
    dots = base.properties(name="dots").mark_circle(size=70, opacity=0, aria=False)
    shown = [alt.Tooltip(f"{name}:N") for name in ("task", "order")]
    shown += [alt.Tooltip("step:Q"), alt.Tooltip("value:Q", title=title, format=".3f")]
    hover = alt.selection_point(
        "hover", fields=["task"], on="pointerover", clear="pointerout", nearest=True
    )
    picked = alt.selection_point("order", fields=["order"], bind="legend")
    lit = alt.when(hover & picked).then(alt.value(0.8)).otherwise(alt.value(0.08))
    lines = base.mark_line(strokeWidth=1.6, aria=False).encode(opacity=lit)
    layers = (lines.add_params(picked), dots.encode(tooltip=shown).add_params(hover))
    inputs = [_list("task", [EVERY, *sorted(set(table["task"]))])]
    inputs += [_list("measure", values)] if len(values) > 1 else []
    return _configured(alt.layer(*layers, name="chart").add_params(*inputs), words)


def _line_base(table: pd.DataFrame, title: str, value: str, *, live: bool) -> Any:
    """Return data and axes that the lines and the points of a chart share."""
    import altair as alt

    named = labels(table["order"])
    names = list(named.values())
    colours, dashes = _style(list(named))
    line: Any = {"symbolType": "stroke", "symbolSize": 600, "symbolStrokeWidth": 2}  # not the dots'
    legend = alt.Legend(orient="bottom", columns=2, title=None, labelLimit=300, **line)
    data = _inline(table.assign(order=table["order"].map(named)))
    ticks = int(min(10, np.ptp(table["step"]) or 1))  # whole steps
    chosen = "measure" if live and len(table.columns) > 4 else f"'{value}'"
    return (
        alt.Chart(data, name="lines", width=_WIDTH, height=_HEIGHT)
        .transform_calculate(value=f"datum[{chosen}]")
        .encode(
            x=alt.X("step:Q", title="training step", axis=alt.Axis(tickCount=ticks, grid=False)),
            y=alt.Y("value:Q", title=title, scale=alt.Scale(zero=False)),
            color=alt.Color("order:N", scale=alt.Scale(domain=names, range=colours), legend=legend),
            strokeDash=alt.StrokeDash(
                "order:N", scale=alt.Scale(domain=names, range=dashes), legend=legend
            ),
            detail="task:N",
        )
    )


def _list(name: str, values: Sequence[str]) -> Any:
    """Return a parameter of the chart that a list beside it sets; the first value to begin with."""
    import altair as alt

    return alt.param(name, value=values[0], bind=alt.binding_select(options=values, name=name))


def map_chart(table: pd.DataFrame, rounds: int, words: str, *, live: bool) -> Any:
    """Return the chart of the points; if not live, without all that answers."""
    import altair as alt

    base = _map_base(table, live=live)
    limits = alt.binding_range(min=1, max=rounds, step=1, name="up to round")
    last = alt.param("last", value=rounds, bind=limits)
    within = "datum.round <= last" if live else f"datum.round <= {rounds}"
    whole = sorted({round(1 + (rounds - 1) * part / 4) for part in range(5)})
    legend = alt.Legend(orient="bottom", title="round", values=whole, format="d")
    scale = alt.Scale(scheme="viridis", domain=[1, max(2, rounds)])
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "test": ("datum.kind == 'test'", {"color": "#D55E00", "size": 60, "opacity": 0.9}),
        "rest": (f"{_TRAINED} && datum.round == 0", {"color": "#bbbbbb", "size": 22}),
        "rounds": (f"{_TRAINED} && datum.round > 0 && {within}", {"size": 34, "opacity": 0.85}),
    }
    drawn = {
        name: base.properties(name=name)
        .transform_filter(which)
        .mark_point(filled=True, aria=False, **look)
        for name, (which, look) in kinds.items()
    }
    drawn["rounds"] = drawn["rounds"].encode(color=alt.Color("round:Q", scale=scale, legend=legend))
    chart = alt.layer(drawn["rest"], drawn["rounds"], drawn["test"], name="chart")
    return _configured(chart.add_params(last) if live else chart, words)


def _map_base(table: pd.DataFrame, *, live: bool) -> Any:
    """Return data and axes that the kinds of points share."""
    import altair as alt

    axis = alt.Axis(grid=False, labels=False, ticks=False)
    kinds = alt.Scale(domain=["training", "test"], range=["circle", "cross"])
    base = alt.Chart(_inline(table), name="map", width=_WIDTH, height=_HEIGHT).encode(
        x=alt.X("x:Q", title="first principal component", axis=axis),
        y=alt.Y("y:Q", title="second principal component", axis=axis),
        shape=alt.Shape(
            "kind:N", scale=kinds, legend=alt.Legend(orient="bottom", title="instance")
        ),
    )
    told = ["kind:N", "task:N", "round:Q", "similarity:Q"]
    return base.encode(tooltip=told) if live else base


def _inline(table: pd.DataFrame) -> Any:
    """Return the table as data inside the chart: CSV, less than half the size of JSON."""
    import altair as alt

    numbers = {
        str(name): "number" for name in table.columns if pd.api.types.is_numeric_dtype(table[name])
    }
    text = table.to_csv(index=False, lineterminator="\n")
    return alt.InlineData(values=text, format=alt.CsvDataFormat(type="csv", parse=numbers))


def _configured(chart: Any, words: str) -> Any:
    """Return the chart with its description, on white in either colour scheme of the page."""
    import altair as alt

    named = chart.properties(description=words, background="white")
    fit = named.properties(autosize=alt.AutoSizeParams(type="fit", contains="padding"))
    return fit.configure_view(stroke=None).configure_axis(labelFontSize=12, titleFontSize=13)
