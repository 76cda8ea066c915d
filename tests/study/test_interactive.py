from __future__ import annotations

import io
import json
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tma.errors import ParameterError
from tma.study import interactive
from tma.study.interactive import VEGALITE, Interactive


def drawn(figure: Interactive) -> str:
    """The data inside a chart."""
    [text] = figure.spec["datasets"].values()
    return str(text)


def losses(orders: int = 2, tasks: int = 3, steps: int = 4) -> pd.DataFrame:
    names = ["tma_nft", "tma_rt", "mine"][:orders]
    rows = [
        (order, seed, step, f"task {task}", 3.0 - step / 10 + task)
        for order in names
        for seed in (0, 1)
        for step in range(steps)
        for task in range(tasks)
    ]
    return pd.DataFrame(rows, columns=["order", "seed", "step", "task", "loss"])


def test_the_loss_of_a_task_is_the_mean_over_its_instances_and_seeds() -> None:
    columns = ["order", "seed", "step", "task", "loss"]
    rows = [
        ("tma_rt", 0, 0, "b", 4.0),
        ("tma_rt", 0, 0, "b", 2.0),
        ("tma_rt", 1, 0, "b", 1.5),
        ("tma_rt", 0, 8, None, 1.00006),
        ("tma_nft", 0, 8, "b", 1.25),
    ]
    figure = interactive.loss_by_task(pd.DataFrame(rows, columns=columns))
    assert drawn(figure) == (
        "order,task,step,loss\n"
        '"RT, random",b,0,2.5\n'
        '"RT, random",without task,8,1.0001\n'
        '"NFT, nearest first",b,8,1.25\n'
    )


def test_a_figure_says_what_it_shows() -> None:
    figure = interactive.loss_by_task(losses(3))
    words = (
        "Mean test loss over training steps, one line a test task and order: 3 test tasks, "
        "orders NFT, nearest first; RT, random; mine, up to step 3."
    )
    assert figure.description == figure.spec["description"] == words


def test_a_notebook_stores_the_chart_and_a_picture_and_no_script() -> None:
    stored: dict[str, Any] = interactive.loss_by_task(losses())._repr_mimebundle_(include=None)
    assert set(stored) == {VEGALITE, "image/svg+xml", "text/plain"}
    text = json.dumps(stored)
    assert "<script" not in text
    addresses = set(re.findall(r"https?://[^\"\\ ]+", text))
    assert {re.sub(r"v5[.\d]+json", "v5", a) for a in addresses} == {
        "https://vega.github.io/schema/vega-lite/v5",  # a name, read by nobody
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert len(text) < 60_000


def test_the_same_table_gives_the_same_figure() -> None:
    table = losses(3)
    figures = [interactive.loss_by_task(table) for _ in range(2)]
    assert figures[0] == figures[1]


def test_the_legend_picks_an_order_and_a_list_a_task() -> None:
    params = {p["name"]: p for p in interactive.loss_by_task(losses()).spec["params"]}
    assert params["order"]["bind"] == "legend"
    assert params["hover"]["select"]["fields"] == ["task"]
    options = params["task"]["bind"]["options"]
    assert options == ["every task", "task 0", "task 1", "task 2"]


def test_a_large_table_is_thinned_to_its_first_and_last_steps_and_tasks() -> None:
    figure = interactive.loss_by_task(losses(3, tasks=30, steps=200))
    table = pd.read_csv(io.StringIO(drawn(figure)))
    assert len(table) <= interactive.ROWS
    assert table["step"].nunique() == interactive.STEPS
    assert (table["step"].min(), table["step"].max()) == (0, 199)
    # 1,500 points are 12 of 30 lines in three orders; the lowest and the highest last loss stay.
    assert table["task"].nunique() == 12
    assert {"task 0", "task 29"} <= set(table["task"])
    assert "12 of 30 test tasks" in figure.description


def test_a_list_picks_the_distance() -> None:
    measures = ("cosine_min", "euclidean_max")
    parts = [
        losses(1, tasks=1, steps=2)
        .assign(measure=measure, distance=losses(1, tasks=1, steps=2)["loss"] + at)
        .drop(columns="loss")
        for at, measure in enumerate(measures)
    ]
    figure = interactive.distances_by_task(pd.concat(parts))
    assert drawn(figure) == (
        "order,task,step,cosine_min,euclidean_max\n"
        '"NFT, nearest first",task 0,0,3.0,4.0\n'
        '"NFT, nearest first",task 0,1,2.9,3.9\n'
    )
    params = {p["name"]: p for p in figure.spec["params"]}
    assert params["measure"]["bind"]["options"] == list(measures)
    assert params["measure"]["value"] == "cosine_min"


def test_a_map_gives_round_and_nearness_of_each_instance() -> None:
    X = np.array([[1, 0], [0, 1], [0.6, 0.8], [-1, 0]], dtype=np.float32)
    Y = np.array([[1, 0], [0.8, 0.6]], dtype=np.float32)
    rounds = [np.array([0, 2]), np.array([1])]
    figure = interactive.embedding_map(X, Y, rounds, ["a", "b", "a", None], ["t", "t"])
    table = pd.read_csv(io.StringIO(drawn(figure)))
    told = table[["kind", "task", "round", "similarity"]].to_numpy().tolist()
    assert told == [
        ["training", "a", 1, 1.0],
        ["training", "a", 1, 0.96],
        ["training", "b", 2, 0.6],
        ["training", "without task", 0, -0.8],
        ["test", "t", 0, 1.0],
        ["test", "t", 0, 0.96],
    ]
    # Two components of two dimensions keep every distance: rows 0 and 3 lie 2 apart.
    first, last = table[["x", "y"]].to_numpy()[[0, 3]]
    assert np.linalg.norm(first - last) == pytest.approx(2, abs=2e-3)


def test_a_map_of_many_instances_is_thinned() -> None:
    rng = np.random.default_rng(0)
    X, Y = (rng.normal(size=(n, 8)).astype(np.float32) for n in (2000, 400))
    X, Y = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (X, Y))
    rounds = list(np.arange(1000).reshape(10, 100))
    figure = interactive.embedding_map(X, Y, rounds, [None] * 2000, [None] * 400)
    table = pd.read_csv(io.StringIO(drawn(figure)))
    assert table["kind"].value_counts().to_dict() == {"training": 600, "test": 150}
    assert set(table["round"]) == set(range(11))
    assert len(figure.svg) < 150_000


def test_what_cannot_be_drawn_is_named() -> None:
    with pytest.raises(ParameterError, match="losses='columns order, seed, step, task and 24 rows"):
        interactive.loss_by_task(losses().drop(columns="loss").head(24))
    with pytest.raises(ParameterError, match="and 0 rows"):
        interactive.loss_by_task(losses().head(0))
    rows = np.eye(2, dtype=np.float32)
    with pytest.raises(ParameterError, match="tasks"):
        interactive.embedding_map(rows, rows, [np.array([0])], ["a"], ["a", "b"])
    with pytest.raises(ParameterError, match="at least one round"):
        interactive.embedding_map(rows, rows, [], ["a", "b"], ["a", "b"])


def test_the_axis_of_steps_has_whole_ones() -> None:
    rows = losses(1, tasks=1, steps=9).query("step > 0")
    written = re.findall(r">([^<>]+)</text>", interactive.loss_by_task(rows).svg)
    assert written[: written.index("training step")] == list("12345678")
