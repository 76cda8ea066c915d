from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from tma import figures, statistics, store
from tma.config import RunConfig
from tma.runs import Run
from tma.statistics import Difference, verdict

# Mean loss over the two instances of each of two tasks, at steps 0, 2 and 4.
NEAR: dict[tuple[str, str], list[float]] = {
    ("a", "a1"): [4, 2, 1],
    ("a", "a2"): [4, 2, 1],
    ("b", "b1"): [4, 3, 2],
    ("b", "b2"): [4, 3, 2],
}
FAR = {key: [first, second + 1, third + 0.5] for key, (first, second, third) in NEAR.items()}


def stored(
    folder: Path, order: str, losses: dict[tuple[str, str], list[float]], seed: int = 0
) -> Run:
    """A run as `tma.run` stores it, with known losses."""
    folder.mkdir()
    config = RunConfig.at("pocket", order=order, seed=seed)
    store.write_json(
        folder / "manifest.json", {"config": config.to_json(), "instances": 64, "steps": 4}
    )
    rows = [
        {"step": step, "id": name, "task": task, "loss_sum": 2.0 * value, "tokens": 2}
        for (task, name), values in losses.items()
        for step, value in zip((0, 2, 4), values, strict=True)
    ]
    pd.DataFrame(rows).to_parquet(folder / "losses.parquet")
    return Run(folder)


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, list[Run]]:
    return {
        "tma_nft": [stored(tmp_path / "near", "tma_nft", NEAR)],
        "tma_fft": [stored(tmp_path / "far", "tma_fft", FAR)],
    }


def test_curves_are_means_over_test_instances(runs: dict[str, list[Run]]) -> None:
    table = statistics.curves(runs)
    assert table[table["order"] == "tma_nft"]["loss"].tolist() == [4, 2.5, 1.5]
    assert table[table["order"] == "tma_fft"]["loss"].tolist() == [4, 3.5, 2.0]


def test_the_summary_has_fall_and_area(runs: dict[str, list[Run]]) -> None:
    row = statistics.summary(runs).loc["tma_nft"]
    assert (row["first"], row["final"], row["fall_percent"]) == (4, 1.5, 62.5)
    # Trapezoids (4 + 2.5)/2 · 2 and (2.5 + 1.5)/2 · 2 over 4 steps.
    assert row["area"] == 2.625
    assert (row["instances"], row["steps"], row["seeds"]) == (64, 4, 1)


def test_a_difference_that_is_the_same_everywhere_has_no_width(runs: dict[str, list[Run]]) -> None:
    found = statistics.differences(runs["tma_nft"], runs["tma_fft"])
    assert [(d.step, d.estimate, d.low, d.high) for d in found] == [
        (0, 0, 0, 0),
        (2, -1, -1, -1),
        (4, -0.5, -0.5, -0.5),
    ]
    assert [d.clear for d in found] == [False, True, True]


def test_the_interval_covers_the_choice_of_tasks(tmp_path: Path) -> None:
    # Task a gains 1, task b loses 1: half of the resamples hold both, a quarter each one alone.
    uneven = {key: [4, 2, value[2] + (1 if key[0] == "b" else -1)] for key, value in NEAR.items()}
    near = [stored(tmp_path / "near", "tma_nft", NEAR)]
    other = [stored(tmp_path / "other", "tma_rt", uneven)]
    last = statistics.differences(near, other)[-1]
    assert (last.estimate, last.low, last.high) == (0, -1, 1)
    assert not last.clear


def test_one_task_is_not_a_certainty(tmp_path: Path) -> None:
    # One instance gains 1, the other loses 1: both of one task.
    single: dict[tuple[str, str], list[float]] = {("a", "a1"): [4, 2, 1], ("a", "a2"): [4, 2, 1]}
    other: dict[tuple[str, str], list[float]] = {("a", "a1"): [4, 2, 2], ("a", "a2"): [4, 2, 0]}
    near = [stored(tmp_path / "near", "tma_nft", single)]
    last = statistics.differences(near, [stored(tmp_path / "other", "tma_rt", other)])[-1]
    assert (last.estimate, last.low, last.high) == (0, -1, 1)


def test_seeds_are_averaged_before_the_pairs_are_compared(tmp_path: Path) -> None:
    shifted = {key: [v + 0.2 for v in values] for key, values in NEAR.items()}
    both = [
        stored(tmp_path / "one", "tma_rt", NEAR),
        stored(tmp_path / "two", "tma_rt", shifted, seed=1),
    ]
    near = [stored(tmp_path / "near", "tma_nft", NEAR)]
    assert statistics.differences(near, both)[-1].estimate == pytest.approx(-0.1)
    assert statistics.summary({"tma_rt": both})["final"].iloc[0] == pytest.approx(1.6)


def test_runs_on_other_test_instances_are_not_compared(
    tmp_path: Path, runs: dict[str, list[Run]]
) -> None:
    fewer = {key: value for key, value in NEAR.items() if key != ("b", "b2")}
    with pytest.raises(ValueError, match="different test instances"):
        statistics.differences(runs["tma_nft"], [stored(tmp_path / "fewer", "tma_rt", fewer)])


@pytest.mark.parametrize(
    ("lower", "higher", "expected"),
    [
        ((-0.3, -0.1), (0.1, 0.2), "supported"),
        ((-0.3, 0.1), (0.1, 0.2), "inconclusive"),
        ((-0.3, -0.1), (-0.1, 0.2), "inconclusive"),
        ((0.1, 0.3), (0.1, 0.2), "not supported"),
        ((-0.3, -0.1), (-0.2, -0.1), "not supported"),
    ],
)
def test_a_claim_holds_only_where_both_intervals_exclude_zero(
    lower: tuple[float, float], higher: tuple[float, float], expected: str
) -> None:
    assert verdict(Difference(4, 0, *lower), Difference(4, 0, *higher)) == expected


def test_the_figure_names_its_axes_and_orders(runs: dict[str, list[Run]]) -> None:
    gaps = {"tma_nft": statistics.differences(runs["tma_nft"], runs["tma_fft"])}
    figure = figures.arrangement_figure(statistics.curves(runs), gaps)
    left, right = figure.axes
    assert left.get_xlabel() == right.get_xlabel() == "training step"
    assert left.get_ylabel() == "test loss (nats a token)"
    legend = left.get_legend()
    assert legend is not None
    assert [t.get_text() for t in legend.get_texts()] == [
        "NFT, nearest first",
        "FFT, farthest first",
    ]
    drawn = [line.get_ydata() for line in right.get_lines()][-1]
    assert list(drawn) == [0, -1, -0.5]


def test_every_order_has_a_colour_a_dash_and_a_name_of_its_own() -> None:
    from tma.method import ORDERS

    # Single rounds are no order to tell from others, but steps of one scale.
    named = set(ORDERS) - {"tma_rounds[i:j]"}
    for table in (figures.PALETTE, figures.LABELS, figures.DASHES):
        assert set(table) == named
        assert len({str(value) for value in table.values()}) == len(named)
