from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.stored_runs import Losses, stored
from tma.effects import effect
from tma.errors import ParameterError
from tma.runs import Run


def run(folder: Path, order: str, finals: dict[tuple[str | None, str], float], seed: int) -> Run:
    losses: Losses = {key: [2.0, 2.0, last] for key, last in finals.items()}
    made = stored(folder / f"{order}-{seed}", order, losses, seed)
    path = made.folder / "losses.parquet"
    table = pd.read_parquet(path)
    table.assign(source=table["task"].str[0]).to_parquet(path)
    return made


def test_an_effect_is_the_mean_over_all_instances_with_its_intervals(tmp_path: Path) -> None:
    # Two folds of two tasks; tasks of one letter are of one source dataset.
    folds = [
        {("a1", "p"): -1.0, ("a1", "q"): -3.0, ("b1", "r"): 0.0, ("b1", "s"): -2.0},
        {("c1", "t"): -2.0, ("c1", "u"): -4.0, ("d1", "v"): 1.0, ("d1", "w"): -1.0},
    ]
    gaps = [-1.0, -3.0, 0.0, -2.0, -2.0, -4.0, 1.0, -1.0]
    zero = [dict.fromkeys(fold, 0.0) for fold in folds]
    # Each fold is tested by two seeds, whose mean differences are 0.2 apart.
    shifted = [folds[0], folds[1], *({k: v + 0.2 for k, v in fold.items()} for fold in folds)]
    first = [run(tmp_path, "tma_nft", fold, seed) for seed, fold in enumerate(shifted)]
    second = [run(tmp_path, "tma_rt", fold, seed) for seed, fold in enumerate(zero * 2)]
    found = effect(first, second, "final")
    assert found.estimate == pytest.approx(np.mean(gaps) + 0.1)
    assert (found.tasks.n, found.tasks.seeds, found.datasets.clusters) == (8, 4, 4)
    assert found.seed_sd == pytest.approx(math.sqrt(0.2**2 / 2))
    # Within each task the variance is 2, so that 8 · 2 / 64 = 0.25 over instances; seeds add
    # 0.02 / 4 = 0.005. Degrees of freedom: 0.255² / (0.25² / 4 + 0.005² / 2) = 4.158.
    half = found.tasks.high - found.estimate
    assert half == pytest.approx(2.7353 * math.sqrt(0.255), rel=1e-3)
    # Sums of the sources around the mean: a -1.0, b 1.0, c -3.0, d 3.0; 4/3 · 20 / 64.
    assert found.datasets.high - found.estimate == pytest.approx(
        3.18245 * math.sqrt(4 / 3 * 20 / 64), rel=1e-4
    )
    # Without d and without c.
    assert found.without_one == pytest.approx((-11.4 / 6, -5.4 / 6))
    assert found.median == pytest.approx(-1.5 + 0.1)
    assert found.improved == pytest.approx(6 / 8)


def test_without_repeated_folds_the_spread_of_seeds_is_given_or_unknown(tmp_path: Path) -> None:
    fold = {("a1", "p"): -1.0, ("a1", "q"): -3.0, ("b1", "r"): 0.0, ("b1", "s"): -2.0}
    one = [run(tmp_path, "tma_nft", fold, 0)]
    other = [run(tmp_path, "tma_rt", dict.fromkeys(fold, 0.0), 0)]
    unknown = effect(one, other, "final")
    assert (unknown.tasks.low, unknown.tasks.high) == (-math.inf, math.inf)
    assert math.isnan(unknown.seed_sd)
    given = effect(one, other, "final", seed_sd=0.0)
    # 4 · 2 / 16 = 0.5 on two degrees of freedom.
    assert given.tasks.high - given.estimate == pytest.approx(4.30265 * math.sqrt(0.5), rel=1e-4)


def test_the_mean_along_the_way_is_the_area_under_the_curve(tmp_path: Path) -> None:
    fold = {("a1", "p"): 1.0, ("a1", "q"): 1.0}
    one = [run(tmp_path, "tma_nft", fold, 0)]
    other = [run(tmp_path, "tma_rt", dict.fromkeys(fold, 0.0), 0)]
    # The curves part after step 2 of 4: a triangle of width 2 and height 1 over 4 steps.
    assert effect(one, other, "area").estimate == pytest.approx(0.25)
    assert effect(one, other, "final").estimate == pytest.approx(1.0)
    with pytest.raises(ParameterError, match="measure='best'"):
        effect(one, other, "best")
