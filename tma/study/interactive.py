"""Interactive figures: Vega-Lite charts that answer to pointer, legend and inputs, offline.

A figure is shown as two things at once. The chart itself is a JSON text that JupyterLab, VS Code
and the book draw with a library of their own, so a stored notebook carries no script. Beside it
stands a static SVG for readers without one. Both are small and the same for the same input: few
points, numbers rounded, names given by us and not counted by the chart library. Names of tasks and
orders are shown, the text of a dataset never.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tma.arrange.duplicates import near_duplicates
from tma.errors import TmaError, check_length, wrong
from tma.study.vega import labels, lines_chart, map_chart

VEGALITE = "application/vnd.vegalite.v5+json"
"""Kind of the chart among a cell's outputs; the version is the newest that JupyterLab draws."""
LIBRARY = "v5.20"
"""Version of Vega-Lite that draws the static picture, and that the book carries."""
ROWS = 1500
"""Points in a chart of lines, at most."""
STEPS = 40
"""Steps of a line, at most; the first and the last are always there."""
DOTS = 600
"""Training rows on a map, at most, and as many test rows as a quarter of it."""


@dataclass(frozen=True)
class Interactive:
    """A chart as a notebook shows and stores it."""

    spec: dict[str, Any]
    """The chart: Vega-Lite, with its data inside."""
    svg: str
    """The same, drawn once, as it looks before anyone touches it."""

    @property
    def description(self) -> str:
        """What the chart shows, in words; screen readers read it out."""
        return str(self.spec["description"])

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        return {VEGALITE: self.spec, "image/svg+xml": self.svg, "text/plain": self.description}


def loss_by_task(losses: pd.DataFrame) -> Interactive:
    """Draw the mean test loss of every task over training steps, one line a task and order.

    Hovering names the task and brings it out in every order; the legend picks an order, the list a
    task.

    Args:
        losses: columns order, step, task, loss (nats a token), such as the `losses` of several runs
            below each other; the mean is taken over the rest (instances, seeds). At most `STEPS`
            steps and `ROWS` points are drawn; tasks are then left out evenly by their last loss.

    Returns:
        The chart. Instances without a task count as one task, "without task".

    Raises:
        ParameterError: a column is missing, or there are no rows.
    """
    table = _means(losses, "losses", ["loss"])
    drawn = _fewer(table)
    words = f"Mean test loss over training steps, {_counted(drawn, table)}."
    return _shown(lambda live: lines_chart(drawn, "test loss (nats a token)", words, live=live))


def distances_by_task(distances: pd.DataFrame) -> Interactive:
    """Draw how far each test task lies from what was trained on so far, over training steps.

    Like `loss_by_task`; a list picks one of the distances.

    Args:
        distances: columns order, step, task, measure (a name of `tma.prefix_distances`), distance;
            the mean is taken over the rest (seeds).

    Returns:
        The chart; it opens with the first measure of the table.

    Raises:
        ParameterError: a column is missing, or there are no rows.
    """
    _check_columns(distances, "distances", ["order", "step", "task", "measure", "distance"])
    measures = list(dict.fromkeys(distances["measure"]))
    keys = ["order", "step", "task"]
    named = distances.assign(task=distances["task"].fillna("without task"))
    wide = named.pivot_table(index=keys, columns="measure", values="distance", sort=False)
    table = _means(wide.reset_index(), "distances", measures)
    drawn = _fewer(table)
    words = (
        f"Distance between the training data seen so far and a test task over training steps, "
        f"{_counted(drawn, table)}. The measures are {', '.join(measures)}."
    )
    return _shown(lambda live: lines_chart(drawn, "distance to what was seen", words, live=live))


def embedding_map(
    X: NDArray[np.float32],
    Y: NDArray[np.float32],
    rounds: Sequence[NDArray[np.int64]],
    tasks: Sequence[str | None],
    test_tasks: Sequence[str | None],
) -> Interactive:
    """Draw training and test instances as points of a plane, training instances by their round.

    The plane is that of the first two principal components of the rows drawn. A slider ends the
    rounds; hovering names the task, the round and the cosine similarity to the nearest instance of
    the other side.

    Args:
        X: (n, d) unit rows of the training instances.
        Y: (m, d) unit rows of the test instances.
        rounds: row numbers of X, round by round, as `tma.test_centric_rounds` gives them, or the
            pieces of any order; rows of no round are drawn in grey.
        tasks: (n,) task of every training instance, None without.
        test_tasks: (m,) task of every test instance.

    Returns:
        The chart, with at most `DOTS` training instances and a quarter of it test instances, left
        out evenly along the order and along the rows.

    Raises:
        ParameterError: the tasks are not as many as the rows, or there are no rounds.
    """
    check_length("tasks", tasks, "training rows", len(X))
    check_length("test_tasks", test_tasks, "test rows", len(Y))
    if not len(rounds):
        raise wrong("rounds", list(rounds), "at least one round of row numbers")
    drawn = _dots(X, Y, rounds, (tasks, test_tasks))
    trained = int((drawn["kind"] == "training").sum())
    words = (
        f"Map of {trained} training and {len(drawn) - trained} test instances by the first two "
        f"principal components of their embeddings; training instances are coloured by round, "
        f"1 to {len(rounds)}."
    )
    return _shown(lambda live: map_chart(drawn, len(rounds), words, live=live))


def _check_columns(table: pd.DataFrame, name: str, needed: Sequence[str]) -> None:
    missing = [column for column in needed if column not in table.columns]
    if missing or table.empty:
        came = f"columns {', '.join(map(str, table.columns))} and {len(table)} rows"
        raise wrong(name, came, f"a table with rows and the columns {', '.join(needed)}")


def _means(table: pd.DataFrame, name: str, values: list[str]) -> pd.DataFrame:
    """Return one row an (order, task, step) with the mean of the values, orders as they came."""
    _check_columns(table, name, ["order", "step", "task", *values])
    named = table.assign(task=table["task"].fillna("without task").astype(str))
    means = named.groupby(["order", "task", "step"], sort=True, as_index=False)[values].mean()
    place = {order: at for at, order in enumerate(dict.fromkeys(table["order"]))}
    return means.sort_values("order", key=lambda column: column.map(place), kind="stable")


def _fewer(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with at most `STEPS` steps and `ROWS` rows; numbers to four decimals."""
    steps = np.unique(table["step"])
    fewer = table[table["step"].isin(_even(steps, STEPS))]
    last = fewer[fewer["step"] == steps[-1]].groupby("task")[fewer.columns[3]].mean()
    ranked = last.sort_values(kind="stable").index.to_numpy()
    kept = _even(ranked, max(1, ROWS * len(ranked) // len(fewer)))
    return fewer[fewer["task"].isin(kept)].round(4).reset_index(drop=True)


def _even(values: NDArray[Any], most: int) -> NDArray[Any]:
    """Return at most so many of the values, evenly spaced, the first and the last among them."""
    if len(values) <= most:
        return values
    chosen: NDArray[Any] = values[np.linspace(0, len(values) - 1, most).round().astype(int)]
    return chosen


def _counted(drawn: pd.DataFrame, table: pd.DataFrame) -> str:
    """Return in words how many of the tasks are drawn, in which orders and up to which step."""
    shown, every = drawn["task"].nunique(), table["task"].nunique()
    tasks = f"{every} test tasks" if shown == every else f"{shown} of {every} test tasks"
    orders = "; ".join(labels(drawn["order"]).values())
    return f"one line a test task and order: {tasks}, orders {orders}, up to step {_end(drawn)}"


def _end(table: pd.DataFrame) -> int:
    return int(table["step"].max())


def _dots(
    X: NDArray[np.float32],
    Y: NDArray[np.float32],
    rounds: Sequence[NDArray[np.int64]],
    tasks: tuple[Sequence[str | None], Sequence[str | None]],
) -> pd.DataFrame:
    """Return one row a point: kind, task, round (0: none), similarity, x, y."""
    of = np.zeros(len(X), dtype=np.int64)
    for number, rows in reversed(list(enumerate(rounds, start=1))):
        of[rows] = number
    order = np.concatenate([*rounds, np.flatnonzero(of == 0)])
    train = _even(pd.unique(order), DOTS)
    test = _even(np.arange(len(Y)), max(2, DOTS // 4))
    sides = [
        ("training", train, of[train], tasks[0], near_duplicates(X[train], Y).cosine),
        ("test", test, np.zeros_like(test), tasks[1], near_duplicates(Y[test], X).cosine),
    ]
    parts = [
        pd.DataFrame(
            {
                "kind": kind,
                "task": [names[row] or "without task" for row in rows],
                "round": number,
                "similarity": near.round(3),
            }
        )
        for kind, rows, number, names, near in sides
    ]
    plane = _plane(np.concatenate([X[train], Y[test]]))
    return pd.concat(parts, ignore_index=True).assign(x=plane[:, 0], y=plane[:, 1])


def _plane(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the rows' first two principal components, to three decimals."""
    from sklearn.decomposition import PCA

    found = PCA(n_components=2, svd_solver="full").fit_transform(rows.astype(np.float64))
    # Adding zero turns a rounded -0.0 into 0.0.
    plane: NDArray[np.float64] = found.round(3) + 0.0
    return plane


def _shown(draw: Callable[[bool], Any]) -> Interactive:
    """Return the figure of a chart that is drawn with (True) and without what answers."""
    try:
        import altair  # noqa: F401
        import vl_convert
    except ImportError as error:
        raise TmaError(
            f"an interactive figure needs altair and vl-convert-python, and {error.name} is not "
            "installed; pip install 'tma[book]'"
        ) from error
    svg = vl_convert.vegalite_to_svg(draw(False).to_dict(), vl_version=LIBRARY)
    # Hundredths of a pixel are enough, and halve the file.
    short = re.sub(r"(\d\.\d\d)\d+", r"\1", svg)
    return Interactive(draw(True).to_dict(), short)
