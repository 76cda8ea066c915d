from __future__ import annotations

import io
import json
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tma.study import interactive
from tma.study.figures import Shown
from tma.study.interactive import VEGALITE


def data(figure: Shown) -> str:
    """The data inside a chart."""
    [text] = figure.forms[VEGALITE]["datasets"].values()
    return str(text)


def losses(orders: int = 2, tasks: int = 3, steps: int = 4) -> pd.DataFrame:
    names = ["tma_nft", "tma_rt", "tma_fft"][:orders]
    levels: dict[str, Any] = {"order": names, "seed": [0, 1]}
    levels |= {"step": range(steps), "task": range(tasks)}
    rows = pd.MultiIndex.from_product([*levels.values()], names=[*levels]).to_frame(index=False)
    rows["loss"] = 3.0 - rows["step"] / 10 + rows["task"]
    return rows.assign(task=lambda own: "task " + own["task"].astype(str))


def test_the_loss_of_a_task_is_the_mean_over_its_instances_and_seeds() -> None:
    columns: dict[str, list[Any]] = {"order": ["tma_rt"] * 4 + ["tma_nft"], "seed": [0, 0, 1, 0, 0]}
    columns |= {"step": [0, 0, 0, 8, 8], "task": ["b", "b", "b", None, "b"]}
    table = pd.DataFrame(columns).assign(loss=[4.0, 2.0, 1.5, 1.00006, 1.25])
    assert data(interactive.loss_by_task(table)) == (
        "order,task,step,loss\n"
        '"RT, random",b,0,2.5\n'
        '"RT, random",without task,8,1.0001\n'
        '"NFT, nearest first",b,8,1.25\n'
    )


def test_a_notebook_stores_the_chart_a_picture_and_words_and_no_script() -> None:
    figure = interactive.loss_by_task(losses())
    assert figure == interactive.loss_by_task(losses())
    stored = figure._repr_mimebundle_(include=None)
    assert set(stored) == {VEGALITE, "image/svg+xml", "text/plain"}
    words = stored["text/plain"]
    assert words == stored[VEGALITE]["description"]
    assert words.startswith("Mean test loss over training steps, one line for each of 3 test tasks")
    text = json.dumps(dict(stored))
    assert "<script" not in text
    addresses = set(re.findall(r"https?://[^\"\\ ]+", text))
    assert {re.sub(r"v5[.\d]+json", "v5", a) for a in addresses} == {
        "https://vega.github.io/schema/vega-lite/v5",  # a name, read by nobody
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert len(text) < 60_000


def test_the_legend_picks_an_order_and_a_list_a_task() -> None:
    chart = interactive.loss_by_task(losses()).forms[VEGALITE]
    params = {p["name"]: p for p in chart["params"]}
    assert params["order"]["bind"] == "legend"
    assert params["hover"]["select"]["fields"] == ["task"]
    options = params["task"]["bind"]["options"]
    assert options == ["every task", "task 0", "task 1", "task 2"]
    assert "bind" not in params["measure"]  # there is but one


def test_of_many_tasks_some_are_drawn_and_counted() -> None:
    figure = interactive.loss_by_task(losses(3, tasks=30, steps=40))
    table = pd.read_csv(io.StringIO(data(figure)))
    # 3,600 points are three times as many as fit.
    assert len(table) == 1200
    assert table["task"].nunique() == 10
    assert table["step"].nunique() == 40
    assert "10 test tasks" in figure.forms["text/plain"]


def test_a_list_picks_the_distance() -> None:
    table = losses(1, tasks=1, steps=2).rename(columns={"loss": "distance"})
    parts = [
        table.assign(measure="euclidean_max"),
        table.assign(measure="cosine_min", distance=table["distance"] - 4),
    ]
    figure = interactive.distances_by_task(pd.concat(parts))
    assert data(figure) == (
        "order,task,step,euclidean_max,cosine_min\n"
        '"NFT, nearest first",task 0,0,3.0,-1.0\n'
        '"NFT, nearest first",task 0,1,2.9,-1.1\n'
    )
    params = {p["name"]: p for p in figure.forms[VEGALITE]["params"]}
    assert params["measure"]["bind"]["options"] == ["euclidean_max", "cosine_min"]
    assert params["measure"]["value"] == "euclidean_max"


def test_a_map_gives_round_and_nearness_of_each_instance() -> None:
    X = np.array([[1, 0], [0, 1], [0.6, 0.8], [-1, 0]], dtype=np.float32)
    Y = np.array([[1, 0], [0.8, 0.6]], dtype=np.float32)
    rounds = [np.array([0, 2]), np.array([1])]
    figure = interactive.embedding_map(X, Y, rounds, ["a", "b", "a", None], ["t", "t"])
    table = pd.read_csv(io.StringIO(data(figure)))
    # What is drawn later lies above: test instances, then the first rounds.
    assert table[["kind", "task", "round", "similarity"]].to_numpy().tolist() == [
        ["training", "without task", 0, -0.8],
        ["training", "b", 2, 0.6],
        ["training", "a", 1, 0.96],
        ["training", "a", 1, 1.0],
        ["test", "t", 0, 1.0],
        ["test", "t", 0, 0.96],
    ]
    # Two components of two dimensions keep every distance: rows 3 and 0 lie 2 apart.
    last, first = table[["x", "y"]].to_numpy()[[0, 3]]
    assert np.linalg.norm(first - last) == pytest.approx(2, abs=2e-3)


def test_a_map_of_many_instances_is_thinned() -> None:
    rng = np.random.default_rng(0)
    X, Y = (rng.normal(size=(n, 8)).astype(np.float32) for n in (2000, 400))
    X, Y = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (X, Y))
    rounds = list(np.arange(1000).reshape(10, 100))
    text = data(interactive.embedding_map(X, Y, rounds, [None] * 2000, [None] * 400))
    table = pd.read_csv(io.StringIO(text))
    assert table["kind"].value_counts().to_dict() == {"training": 1000, "test": 200}
    assert set(table["round"]) == set(range(11))


def test_the_axis_of_steps_has_whole_ones() -> None:
    rows = losses(1, tasks=1, steps=9).query("step > 0")
    svg = interactive.loss_by_task(rows).forms["image/svg+xml"]
    written = re.findall(r">([^<>]+)</text>", svg)
    assert written[: written.index("training step")] == list("12345678")
