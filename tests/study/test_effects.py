from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.stored_runs import FAR, NEAR, Losses, moved, stored
from tma.errors import DataError, ParameterError
from tma.runs.store import Run
from tma.study import effects
from tma.study.effects import (
    Spread,
    by_task,
    combined,
    contrasts,
    course,
    effect,
    outweighs,
    variety,
)

Finals = dict[tuple[str | None, str], float]
STILL = Spread(0.0, 5)
"""Seeds that do not differ."""


def run(folder: Path, order: str, finals: Finals, seed: int) -> Run:
    folder.mkdir(exist_ok=True)
    losses: Losses = {key: [2.0, 2.0, last] for key, last in finals.items()}
    made = stored(folder / f"{order}-{seed}", order, losses, seed)
    path = made.folder / "losses.parquet"
    table = pd.read_parquet(path).assign(source=lambda rows: rows["task"].str[0])
    table.loc[table["id"] == "q", ["tokens", "loss_sum"]] *= 2
    table.to_parquet(path)
    return made


def sides(folder: Path, finals: Finals) -> tuple[list[Run], list[Run]]:
    """A run with these final losses, and one that ends at zero."""
    zero = dict.fromkeys(finals, 0.0)
    return [run(folder, "tma_nft", finals, 0)], [run(folder, "tma_rt", zero, 0)]


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
    assert (found.tasks.n, found.tasks.seeds) == (8, 4)
    assert found.own_spread == (pytest.approx(math.sqrt(0.2**2 / 2)), 2)
    # Within each task the variance is 2, so that 8 · 2 / 64 = 0.25 over instances, 0.0625 of each;
    # seeds add 0.02 / 4 = 0.005. Degrees of freedom: 0.255² / (4 · 0.0625² + 0.005² / 2) = 4.158.
    half = found.tasks.high - found.estimate
    assert half == pytest.approx(2.7353 * math.sqrt(0.255), rel=1e-3)
    # Sums of the sources around the mean: a -1.0, b 1.0, c -3.0, d 3.0; 4/3 · 20 / 64.
    assert found.datasets.high - found.estimate == pytest.approx(
        3.18245 * math.sqrt(4 / 3 * 20 / 64), rel=1e-4
    )
    # Without d and without c.
    assert found.without_one == pytest.approx((-11.4 / 6, -5.4 / 6))
    assert found.median == pytest.approx(-1.5 + 0.1)
    # Instance q, of -3, has twice the tokens of the others.
    assert found.by_tokens == pytest.approx((sum(gaps) - 3) / 9 + 0.1)
    assert found.improved == pytest.approx(6 / 8)


def test_without_repeated_folds_the_spread_of_seeds_is_given_or_unknown(tmp_path: Path) -> None:
    fold: Finals = {("a1", "p"): -1.0, ("a1", "q"): -3.0, ("b1", "r"): 0.0, ("b1", "s"): -2.0}
    one, other = sides(tmp_path, fold)
    unknown = effect(one, other, "final")
    assert (unknown.tasks.low, unknown.tasks.high) == (-math.inf, math.inf)
    assert unknown.own_spread is None
    # With seeds that do not differ: 4 · 2 / 16 = 0.5 on two degrees of freedom.
    given = effect(one, other, "final", spread=STILL).tasks
    assert given.high - given.estimate == pytest.approx(4.30265 * math.sqrt(0.5), rel=1e-4)


def test_the_mean_along_the_way_is_the_area_under_the_curve(tmp_path: Path) -> None:
    fold: Finals = {("a1", "p"): 1.0, ("a1", "q"): 1.0}
    one, other = sides(tmp_path, fold)
    # The curves part after step 2 of 4: a triangle of width 2 and height 1 over 4 steps.
    assert effect(one, other, "area").estimate == pytest.approx(0.25)
    assert effect(one, other, "final").estimate == pytest.approx(1.0)
    with pytest.raises(ParameterError, match="measure='best'"):
        effect(one, other, "best")


def test_runs_are_paired_by_seed(tmp_path: Path) -> None:
    # Each seed moves both orders by as much: the pairs agree, however far the seeds lie apart.
    near = [stored(tmp_path / f"n{s}", "nearest", moved(NEAR, s), s) for s in (0, 1, 2)]
    far = [stored(tmp_path / f"f{s}", "farthest", moved(FAR, s), s) for s in (2, 1)]
    found = effect(near, far, "final")
    assert (found.estimate, found.tasks.low, found.tasks.high) == (-0.5, -0.5, -0.5)
    assert (found.tasks.seeds, found.own_spread) == (2, (0, 1))
    steps = course(near, far)
    assert {step: one.estimate for step, one in steps.items()} == {0: 0, 2: -1, 4: -0.5}


def test_a_run_without_chance_stands_beside_every_seed(tmp_path: Path) -> None:
    near = [stored(tmp_path / "near", "nearest", NEAR)]
    far = [stored(tmp_path / f"f{s}", "random", moved(FAR, s), s) for s in (0, 1)]
    found = effect(far, near, "final")
    # 0.5 and 1.5: the variance between seeds is 1/2.
    assert (found.estimate, found.tasks.seeds) == (1, 2)
    assert found.own_spread == (pytest.approx(math.sqrt(0.5)), 1)


def test_a_run_of_another_length_is_read_at_its_own_end(tmp_path: Path) -> None:
    longer = {key: [*value, 0.0] for key, value in NEAR.items()}
    near = [stored(tmp_path / "near", "tma_nft", NEAR)]
    more = [stored(tmp_path / "more", "tma_rt", longer, steps=(0, 2, 4, 6))]
    assert effect(more, near, "final", STILL).estimate == -1.5
    # Along the way both are the same curve, as far as both go.
    assert effect(more, near, "area", STILL).estimate == 0


def test_differences_of_differences_and_their_sizes(tmp_path: Path) -> None:
    def runs(name: str, a: float, b: float) -> list[Run]:
        finals = {"a": a, "b": b}
        losses = {key: [4, 2, 2 - finals[key[0]]] for key in NEAR}
        return [stored(tmp_path / f"{name}{s}", "random", moved(losses, s), s) for s in (0, 1, 2)]

    # Task a gains 1 by the one and 3 by the other, task b 0 and 2: the second gains 2 everywhere.
    base, one, other = runs("base", 0, 0), runs("one", 1, 0), runs("other", 3, 2)
    gain, greater = [(1, base), (-1, one)], [(1, base), (-1, other)]
    assert combined(gain, "final") == effect(base, one, "final")
    both = combined([*greater, (-1, base), (1, one)], "final")
    assert (both.estimate, both.tasks.low, both.tasks.high) == (2, 2, 2)
    assert outweighs(gain, greater, "final").estimate == -2
    # The size counts, not the sign.
    loss = [(-1, base), (1, other)]
    assert outweighs(loss, gain, "final").estimate == 2
    assert outweighs(loss, gain, "area").estimate == 0.5


def test_pairs_whose_runs_are_there_are_compared(tmp_path: Path) -> None:
    runs = {
        "tma_nft": [stored(tmp_path / "near", "tma_nft", NEAR)],
        "tma_rt": [stored(tmp_path / "far", "tma_rt", FAR)],
    }
    pairs = {"NFT − RT": ("tma_nft", "tma_rt"), "FFT − RT": ("tma_fft", "tma_rt")}
    found = contrasts(runs, pairs, {"final": STILL})
    names = ["NFT − RT"]
    assert {m: list(gaps) for m, gaps in found.items()} == {"final": names, "area": names}
    assert found["final"]["NFT − RT"].tasks.high == -0.5
    assert found["area"]["NFT − RT"].tasks.high == math.inf
    row = effects.table(found["final"]).loc["NFT − RT"]
    assert (row["estimate"], row["n"], row["below_zero"]) == (-0.5, 4, 1)
    # No source dataset is known: nothing is said of others.
    shown = ["−0.500 (−0.500 to −0.500)", "–", "–", "−0.500; −0.500", "100%"]
    assert effects.format_table(found["final"]).loc["NFT − RT"].tolist() == shown


def test_runs_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    near = [stored(tmp_path / "near", "tma_nft", NEAR)]
    fewer = {key: value for key, value in NEAR.items() if key != ("b", "b2")}
    with pytest.raises(ParameterError, match=r"different test instances \(4 and 3"):
        effect(near, [stored(tmp_path / "fewer", "tma_rt", fewer)])
    with pytest.raises(ParameterError, match=r"side 2 has runs of seeds \[0, 0\]"):
        effect(near, near * 2)
    with pytest.raises(ParameterError, match=r"side 1 has runs of seeds \[\]"):
        effect([], near)
    one, two = ([stored(tmp_path / f"{s}", "random", NEAR, s) for s in p] for p in ((1, 2), (3, 4)))
    with pytest.raises(ParameterError, match=r"the sides have seeds \[1, 2\] and \[3, 4\]"):
        effect(one, two)
    single = [stored(tmp_path / "single", "tma_rt", {("a", "1"): [4], ("b", "2"): [3]}, steps=(0,))]
    assert effect(single, single, "final", STILL).estimate == 0
    with pytest.raises(ParameterError, match=r"evaluated steps \[0\]; expected two"):
        effect(single, single, "area")


def test_a_spread_of_seeds_is_taken_over_with_its_degrees_of_freedom(tmp_path: Path) -> None:
    fold: Finals = {("a1", "p"): -1.0, ("a1", "q"): -3.0, ("b1", "r"): 0.0, ("b1", "s"): -8.0}
    one, other = sides(tmp_path, fold)
    found = effect(one, other, "final", Spread(2.0, 5)).tasks
    # Variances 2 and 32 within the tasks: 2 · 2 / 16 + 2 · 32 / 16 = 0.25 + 4 over instances, and 4
    # of the seed. Degrees of freedom: 8.25² / (0.25² + 4² + 4² / 5) = 3.5331.
    half = 2.92966 * math.sqrt(8.25)
    assert found.freedom == pytest.approx(3.5331, rel=1e-4)
    assert found.high - found.estimate == pytest.approx(half, rel=1e-3)


def test_sizes_are_compared_on_the_seeds_that_all_sides_have(tmp_path: Path) -> None:
    def order(name: str, *values: float) -> list[Run]:
        folds = [{("a1", "p"): value, ("b1", "q"): value} for value in values]
        return [run(tmp_path, name, fold, seed) for seed, fold in enumerate(folds)]

    # On seeds 0 and 1 the second effect is -0.2, on all three seeds together +0.2.
    base, one = order("tma_rt", 0, 0, 0), order("tma_max_rt", 0.3, 0.3)
    two = order("random", -0.2, -0.2, 1)
    found = outweighs([(1, one), (-1, base[:2])], [(1, two), (-1, base)], "final")
    assert found.estimate == pytest.approx(0.1)


def test_each_seed_is_read_along_its_own_whole_way(tmp_path: Path) -> None:
    """An order that holds an instance twice ends a step before others, in some seeds alone."""

    def ramp(name: str, height: float, steps: tuple[int, ...], seed: int) -> Run:
        # It stays at `height` up to step 4, and is at 0 at step 8.
        course = [height if step <= 4 else height * (8 - step) / 4 for step in steps]
        losses = {("a", "a1"): course, ("a", "a2"): course}
        return stored(tmp_path / f"{name}{seed}", name, losses, seed, steps=steps)

    whole, short = (0, 4, 8), (0, 4, 7)
    nft = [ramp("tma_nft", 1, whole, 0), ramp("tma_nft", 1, short, 1)]
    rt = [ramp("tma_rt", 0, whole, 0), ramp("tma_rt", 0, short, 1)]
    # (4 + 2) / 8 = 0.75 of the one; of the other 4 and (1 + 1/4) / 2 · 3 over 7.
    second = (4 + 1.875) / 7
    assert effect(nft, rt).estimate == pytest.approx((0.75 + second) / 2)
    # A longer run beside a shorter one is read up to the end of that one, between its steps.
    longer = [ramp("random", 0, whole, 0), ramp("random", 0, whole, 1)]
    assert effect(nft, longer).estimate == pytest.approx((0.75 + second) / 2)
    # After a step only what all seeds evaluated is compared; ends stand at the last one.
    assert {step: gap.estimate for step, gap in course(nft, rt).items()} == {0: 1, 4: 1, 8: 0.125}


def test_a_task_is_the_mean_of_its_instances(tmp_path: Path) -> None:
    near, far = (
        [stored(tmp_path / f"{name}{s}", name, losses, s) for s in (0, 1)]
        for name, losses in (("nearest", NEAR), ("farthest", FAR))
    )
    rows = by_task(near, [*far], "final")
    assert rows.to_dict("index") == {t: {"gap": -0.5, "tokens": 2, "n": 2} for t in "ab"}
    with pytest.raises(ParameterError, match="measure='best'"):
        by_task(near, far, "best")


def test_orders_are_told_by_the_tasks_of_their_first_steps(tmp_path: Path) -> None:
    runs = {
        name: [stored(tmp_path / name, name, losses)]
        for name, losses in (("cluster", FAR), ("random", NEAR))
    }
    for name, tasks in (("cluster", 1.5), ("random", 8.0)):
        rows = {"step": [1, 2, 3, 4], "effective_tasks": [tasks, tasks + 1, 99.0, 99.0]}
        pd.DataFrame(rows).to_parquet(tmp_path / name / "training.parquet")
    found = variety(runs, "random", steps=2)
    assert [*found] == ["random", "cluster"]
    assert [(tasks, gap.estimate) for tasks, gap in found.values()] == [(8.5, 0), (2, 1)]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_named(tmp_path: Path, value: float) -> None:
    broken = NEAR | {("b", "b1"): [4, value, 2]}
    one = [stored(tmp_path / "nft", "tma_nft", broken)]
    other = [stored(tmp_path / "rt", "tma_rt", NEAR)]
    words = f"run nft has loss={value} at step 2 of test instance 'b1'; expected a finite number"
    with pytest.raises(DataError, match=words):
        effect(one, other, "final")
