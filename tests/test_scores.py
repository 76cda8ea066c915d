from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
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


def test_what_redrawing_adds_to_roughness_is_taken_off(tmp_path: Path) -> None:
    # Answers become right one after the other and now and then wrong again, so that few test tasks
    # make the curve of all go back and forth; with many it would only rise.
    random, steps = np.random.default_rng(0), 10
    names = [(f"t{k}", f"i{k}") for k in range(18)]
    runs = []
    for seed in range(3):
        needed = random.uniform(size=18)
        noisy = needed[:, None] + 0.15 * random.normal(size=(18, steps))
        right = (noisy < np.linspace(0.1, 0.6, steps)).astype(int).tolist()
        losses = {name: np.linspace(4, 2, steps).tolist() for name in names}
        values = {"exact_match": dict(zip(names, right, strict=True))}
        folder = tmp_path / str(seed)
        runs.append(stored(folder, "random", losses, seed, steps=range(steps), scores=values))
    gap = scores.roughness(runs, "loss")["exact_match"]
    assert gap.low <= gap.estimate <= gap.high
    assert not gap.clear


def test_a_curve_that_never_turns_is_as_steady_as_the_loss(tmp_path: Path) -> None:
    # One answer more is right after each step, but each time others; drawn again, that goes back
    # and forth.
    names = [(f"t{k}", f"i{k}") for k in range(18)]
    losses = {name: np.linspace(4, 2, 10).tolist() for name in names}
    ranks = np.random.default_rng(0).permuted(np.tile(np.arange(18), (10, 1)), axis=1)
    right = dict(
        zip(names, (ranks < np.arange(3, 13)[:, None]).astype(int).T.tolist(), strict=True)
    )
    given: dict[str, Any] = {"steps": range(10), "scores": {"rouge1": right}}
    runs = [stored(tmp_path / str(s), "random", losses, s, **given) for s in (0, 1)]
    gap = scores.roughness(runs, "loss")["rouge1"]
    assert (gap.estimate, gap.low, gap.high) == (0, 0, 0)
