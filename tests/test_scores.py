from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

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


STEPS = 10
NAMES = [(f"t{k}", f"i{k}") for k in range(18)]


def study(folder: Path, rights: Sequence[NDArray[np.int64]]) -> list[Run]:
    """Runs of three seeds with a loss that only falls and these answers, (instances, steps)."""
    losses = {name: np.linspace(4, 2, STEPS).tolist() for name in NAMES}
    return [
        stored(
            folder.with_name(f"{folder.name}-{seed}"), "random", losses, seed, steps=range(STEPS),
            scores={"exact_match": dict(zip(NAMES, right.tolist(), strict=True))},
        )
        for seed, right in enumerate(rights)
    ]  # fmt: skip


def rough(right: NDArray[np.int64]) -> float:
    moves = np.diff(right.mean(axis=0))
    return float(np.minimum(moves.clip(0).sum(), (-moves).clip(0).sum()) / np.abs(moves).sum())


def answers(random: np.random.Generator) -> NDArray[np.int64]:
    """Answers that become right one after the other, and now and then wrong again."""
    needed = random.uniform(size=(18, 1)) + 0.15 * random.normal(size=(18, STEPS))
    return (needed < np.linspace(0.1, 0.6, STEPS)).astype(np.int64)


def test_intervals_hold_the_roughness_of_test_sets_of_this_size(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    truth = float(np.mean([rough(answers(random)) for _ in range(2000)]))
    assert 0.1 < truth < 0.3  # with endless instances it would be 0
    found = []
    for number in range(40):
        rights = [answers(random) for _ in range(3)]
        gap = scores.roughness(study(tmp_path / str(number), rights), "loss")["exact_match"]
        assert gap.low <= gap.estimate <= gap.high
        assert gap.estimate == pytest.approx(np.mean([rough(right) for right in rights]))
        found.append(gap.low <= truth <= gap.high)
    assert sum(found) >= 34  # 38 expected


def test_a_curve_that_never_turns_is_as_steady_as_the_loss(tmp_path: Path) -> None:
    # One answer more is right after each step, but each time others; drawn again, that goes back
    # and forth.
    ranks = np.random.default_rng(0).permuted(np.tile(np.arange(18), (STEPS, 1)), axis=1)
    right = (ranks < np.arange(3, 13)[:, None]).astype(np.int64).T
    gap = scores.roughness(study(tmp_path, [right] * 3), "loss")["exact_match"]
    assert (gap.estimate, gap.low, gap.clear) == (0, 0, False)


def test_roughness_is_half_at_most(tmp_path: Path) -> None:
    # Answers that are right at every second step alone, and in some resamples none ever is.
    rare = np.zeros((18, STEPS), dtype=np.int64)
    rare[0, 1::2] = 1
    gap = scores.roughness(study(tmp_path, [rare] * 3), "loss")["exact_match"]
    assert gap.estimate == pytest.approx(4 / 9)  # four moves back, five forward
    assert 0 <= gap.low <= gap.high <= 0.5
