from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from tests.stored_runs import NEAR, stored
from tma.errors import ParameterError
from tma.runs.store import Run
from tma.study import scores


def answered(tmp_path: Path) -> list[Run]:
    rouge = {key: [0, 0.5, 0.25] for key in NEAR}
    match = {key: [0, 0, 0] for key in NEAR}
    values = {"rouge1": rouge, "exact_match": match}
    return [stored(tmp_path / f"{s}", "tma_rt", NEAR, s, scores=values) for s in (0, 1)]


def test_metrics_stand_beside_the_loss_of_the_same_steps(tmp_path: Path) -> None:
    table = scores.metric_curves(answered(tmp_path))
    assert list(dict.fromkeys(table["metric"])) == ["loss", "rouge1", "exact_match"]
    of_seed = table[(table["seed"] == 1) & (table["metric"] == "rouge1")]
    assert of_seed[["step", "value"]].to_numpy().tolist() == [[0, 0], [2, 0.5], [4, 0.25]]
    assert table[table["metric"] == "loss"]["value"].tolist() == [4, 2.5, 1.5] * 2


@pytest.mark.parametrize(
    ("curve", "rough"),
    [
        ([0, 1, 2, 3], 0),
        ([0, 2, 3, 1], 0),  # a hump: one turn
        ([3, 2, 1], 0),  # it only gets worse
        ([1, 1, 1], 0),
        ([0, 2, 1, 3], 1 / 5),  # one back of five
        ([0, 3, 1, 2], 1 / 6),  # after the turn one forth again
        ([0, 1, 0, 1, 0], 2 / 4 * 0.5),
    ],
)
def test_roughness_is_what_no_single_turn_makes(curve: list[float], rough: float) -> None:
    assert scores.one_turn_roughness(np.array(curve, dtype=float)) == pytest.approx(rough)


def test_metrics_are_compared_at_the_same_instances_and_steps(tmp_path: Path) -> None:
    rouge = {("a", "a1"): [0.0, 2, 1, 3], ("a", "a2"): [0.0, 2, 1, 3], ("b", "b1"): [0.0, 2, 3, 3]}
    losses = {key: [4.0, 3, 2, 1] for key in rouge}
    still = dict.fromkeys(rouge, [0.0] * 4)
    values = {"rouge1": rouge, "exact_match": still}
    runs = [
        stored(tmp_path / f"{s}", "random", losses, s, steps=(0, 1, 2, 4), scores=values)
        for s in (0, 1)
    ]
    found = scores.roughness(runs)
    # The mean curve 0, 2, 5/3, 3 goes a third back of 11 thirds; task a alone one of five.
    rough = found["rouge1"]
    assert (rough.estimate, rough.n, rough.seeds, rough.clusters) == (
        pytest.approx(1 / 11), 3, 2, 2
    )  # fmt: skip
    assert (rough.low, rough.high) == (0, 1)  # two source datasets say next to nothing
    assert (found["loss"].estimate, found["exact_match"].estimate) == (0, 0)
    gaps = scores.roughness(runs, "loss")
    assert list(gaps) == ["rouge1", "exact_match"]
    assert math.isnan(gaps["exact_match"].estimate)  # to stand still is no steadiness
    assert gaps["rouge1"].estimate == pytest.approx(1 / 11)
    with pytest.raises(ParameterError, match="against='bleu'"):
        scores.roughness(runs, "bleu")
    one = stored(tmp_path / "one", "random", {k: [4.0] for k in rouge}, steps=(0,), scores={
        "rouge1": {k: [0.0] for k in rouge}})  # fmt: skip
    with pytest.raises(ParameterError, match="answers at fewer than two steps"):
        scores.roughness([one])


def test_overtraining_is_told_apart(tmp_path: Path) -> None:
    found = scores.overtraining(answered(tmp_path))
    # ROUGE climbs to 0.5 and ends at 0.25; the loss ends at its best; exact match stays at 0.
    assert found.to_dict() == {"loss": 0, "rouge1": 0.5, "exact_match": 0}
