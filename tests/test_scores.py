from __future__ import annotations

from pathlib import Path

import pytest

from tests.stored_runs import NEAR, stored
from tma import scores
from tma.errors import ParameterError
from tma.runs import Run


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


def test_roughness_is_the_share_of_movement_that_goes_backward(tmp_path: Path) -> None:
    runs = answered(tmp_path)
    found = scores.roughness(runs)
    # ROUGE goes 0.5 up and 0.25 down; the loss only falls; exact match does not move.
    rough = found["rouge1"]
    assert (rough.estimate, rough.low, rough.high) == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert (rough.n, rough.seeds) == (4, 2)
    assert found["loss"].estimate == 0
    still = found["exact_match"]
    assert (still.estimate, still.low, still.high) == (0, 0, 0)
    gaps = scores.roughness(runs, "loss")
    assert list(gaps) == ["rouge1"]  # to stand still is no steadiness
    assert gaps["rouge1"].estimate == pytest.approx(1 / 3)
    with pytest.raises(ParameterError, match="against='bleu'"):
        scores.roughness(runs, "bleu")
