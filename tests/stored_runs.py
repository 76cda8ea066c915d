"""Runs as `tma.run` stores them, with known numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from tma import store
from tma.arrange.receipt import Receipt
from tma.runs.config import RunConfig
from tma.runs.store import Run

Losses = Mapping[tuple[str | None, str], Sequence[float]]
"""(task, id) of a test instance → its loss at each step, in nats a token."""

# Mean loss over the two instances of each of two tasks, at steps 0, 2 and 4.
NEAR: dict[tuple[str | None, str], list[float]] = {
    ("a", "a1"): [4, 2, 1],
    ("a", "a2"): [4, 2, 1],
    ("b", "b1"): [4, 3, 2],
    ("b", "b2"): [4, 3, 2],
}
FAR = {key: [first, second + 1, third + 0.5] for key, (first, second, third) in NEAR.items()}


def moved(losses: Losses, by: float) -> Losses:
    return {key: [value + by for value in values] for key, values in losses.items()}


def stored(
    folder: Path,
    order: str,
    losses: Losses,
    seed: int = 0,
    *,
    steps: Sequence[int] = (0, 2, 4),
    scores: Mapping[str, Losses] | None = None,
    consumed: Sequence[str] = (),
    instances: int = 64,
    **settings: Any,
) -> Run:
    """A run with known losses; `scores` are of answers at every step."""
    folder.mkdir()
    generate_at = tuple(steps) if scores else ()
    config = RunConfig.at("pocket", order=order, seed=seed, generate_at=generate_at, **settings)
    counts = {"instances": instances, "steps": steps[-1]}
    store.write_json(folder / "manifest.json", {"config": config.to_json(), **counts})
    Receipt(config.method, "", "", "", 0, tuple(consumed)).save(folder / "order.json")
    losses_table = rows(losses, steps, "loss_sum")
    losses_table.assign(loss_sum=2 * losses_table["loss_sum"], tokens=2).to_parquet(
        folder / "losses.parquet"
    )
    if scores:
        tables = [rows(values, steps, name) for name, values in scores.items()]
        answers = tables[0].assign(answer="")
        for table in tables[1:]:
            answers = answers.merge(table, on=["step", "id", "task"])
        answers.to_parquet(folder / "answers.parquet")
    return Run(folder)


def rows(values: Losses, steps: Sequence[int], name: str) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"step": step, "id": instance, "task": task, name: float(value)}
            for (task, instance), course in values.items()
            for step, value in zip(steps, course, strict=True)
        ]
    )
