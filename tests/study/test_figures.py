from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes

from tests.stored_runs import FAR, NEAR, stored
from tma.arrange.spec import ORDERS
from tma.errors import ParameterError
from tma.runs.store import Run
from tma.study import figures, paper
from tma.study.effects import Effect, course
from tma.study.exposure import Association
from tma.study.statistics import Interval


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, list[Run]]:
    return {
        "tma_nft": [stored(tmp_path / "near", "tma_nft", NEAR)],
        "tma_fft": [stored(tmp_path / "far", "tma_fft", FAR)],
    }


def legend(axes: Axes) -> list[str]:
    found = axes.get_legend()
    return [text.get_text() for text in found.get_texts()] if found else []


def test_every_order_has_a_colour_a_dash_and_a_name_of_its_own() -> None:
    looks = figures.styles(figures.STYLES)
    for field in ("label", "colour", "dashes"):
        assert len({getattr(look, field) for look in looks.values()}) == len(looks)


def test_an_order_without_a_style_of_its_own_is_drawn_under_its_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(ORDERS, "mine", ORDERS["random"])
    assert figures.styles(["mine"])["mine"] == figures.Style("mine", "#000000")


def test_rounds_are_steps_of_one_scale() -> None:
    looks = figures.styles(["tma_rounds[10:]", "tma_rounds[0:5]", "tma_rounds[5:10]"])
    labels = ["rounds from 11", "rounds 1 to 5", "rounds 6 to 10"]
    assert [look.label for look in looks.values()] == labels
    assert looks["tma_rounds[0:5]"].colour == "#440154"  # the dark end of viridis
    assert len({look.colour for look in looks.values()}) == 3
    with pytest.raises(ParameterError, match=r"order='tma_ntf' .*did you mean tma_nft"):
        figures.styles(["tma_nft", "tma_ntf"])


def test_a_comparison_names_its_axes_and_orders(runs: dict[str, list[Run]]) -> None:
    gaps = {"tma_nft": course(runs["tma_nft"], runs["tma_fft"])}
    figure = figures.comparison_figure(runs, gaps, "tma_fft")
    below, top = figure.axes
    assert top.get_xlabel() == below.get_xlabel() == "training step"
    assert top.get_ylabel() == "test loss (nats a token)"
    assert legend(top) == ["NFT, nearest first", "FFT, farthest first"]
    assert below.get_title() == "NFT, nearest first"
    assert below.get_ylabel() == "minus FFT (nats)"
    assert not below.collections  # one seed has no interval and no spread
    assert list(below.get_lines()[0].get_ydata()) == [0, -1, -0.5]
    assert [tick.get_text() for tick in top.get_xticklabels()] == ["0", "1", "2", "4"]


def test_what_the_paper_shows_stands_at_its_share_of_the_steps(runs: dict[str, list[Run]]) -> None:
    gaps = {"tma_nft": course(runs["tma_nft"], runs["tma_fft"])}
    shown = {"tma_nft": {0.5: -0.34}}
    below, _ = figures.comparison_figure(runs, gaps, "tma_fft", paper=shown).axes
    [mark] = [line for line in below.get_lines() if line.get_marker() == "D"]
    assert (mark.get_xdata()[0], mark.get_ydata()[0]) == (2, -0.34)
    assert paper.gaps(paper.ROUNDS, "tma_fft")["tma_nft"] == {0.5: pytest.approx(-0.34)}


def test_what_the_paper_shows_is_told_in_words() -> None:
    told = {claim: paper.REPORTED[claim] for claim in ("C4", "C5", "C6")}
    assert told == {
        "C4": ("final loss: nearest 0.62, random 0.66, farthest 0.70", -0.04),
        "C5": ("final loss: single instances 0.94, whole tasks 1.06", -0.12),
        "C6": ("loss halfway: NFT 0.50, RT 0.63, FFT 0.84", -0.13),
    }


def test_both_intervals_are_drawn_where_they_are_known(runs: dict[str, list[Run]]) -> None:
    gaps = course(runs["tma_nft"], runs["tma_fft"])
    wide = {step: replace(one, datasets=Interval(-1, -2, 0, 4, 1)) for step, one in gaps.items()}
    below, _ = figures.comparison_figure(runs, {"tma_nft": wide}, "tma_fft").axes
    assert len(below.collections) == 1  # of one seed that for these tasks is not known
    both = {
        step: replace(one, tasks=Interval(-1, -1.5 * step, -0.5 * step, 4, 1))
        for step, one in wide.items()
    }
    below, _ = figures.comparison_figure(runs, {"tma_nft": both}, "tma_fft").axes
    assert len(below.collections) == 1
    steps, lines = [*both], below.get_lines()[2:]  # after the difference and the line at zero
    drawn = [[float(at) for at in line.get_ydata()] for line in lines]
    assert drawn == [[factor * step for step in steps] for factor in (-1.5, -0.5)]
    axes = figures.intervals_figure({"a": next(iter(wide.values()))}).axes[0]
    assert list(axes.get_lines()[1].get_xdata()) == [-2, 0]


def test_a_task_is_a_dot_over_its_responses_and_an_order_a_row_of_two() -> None:
    rows = pd.DataFrame({"gap": [0.5, -1.0], "tokens": [2.0, 8.0], "n": [4, 16]}, index=["a", "b"])
    [axes] = figures.tasks_figure({"NFT − RT": rows}).axes
    [dots] = axes.collections
    assert dots.get_offsets().tolist() == [[2, 0.5], [8, -1]]
    assert dots.get_sizes().tolist() == [16, 64]
    one = Effect(Interval(1, 0.5, 1.5, 4, 1), Interval(1, 0, 2, 4, 1), (0, 2), 0, 0, 0, None)
    left, right = figures.variety_figure({"cluster": (1.5, one)}, "loss").axes
    assert [bar.get_width() for bar in left.patches] == [1.5]
    assert [label.get_text() for label in left.get_yticklabels()] == ["cluster"]
    assert right.get_xlabel() == "loss"


def test_a_comparison_has_a_panel_for_each_difference(runs: dict[str, list[Run]]) -> None:
    gap = course(runs["tma_nft"], runs["tma_fft"])
    every = {"tma_nft": gap, "random": gap, "tma_min": gap}
    both = {**runs, "random": runs["tma_nft"], "tma_min": runs["tma_nft"]}
    *panels, _ = figures.comparison_figure(both, every, "tma_fft").axes
    names = ["NFT, nearest first", "random", "MIN, nearest only"]
    assert [panel.get_title() for panel in panels] == names
    assert len({panel.get_ylim() for panel in panels}) == 1


def test_a_baseline_of_several_seeds_shows_how_far_they_lie_apart(
    tmp_path: Path, runs: dict[str, list[Run]]
) -> None:
    random = [stored(tmp_path / f"{s}", "tma_rt", (NEAR, FAR)[s], s) for s in (0, 1)]
    gaps = {"tma_nft": course(runs["tma_nft"], random)}
    both = {**runs, "tma_rt": random}
    below, _ = figures.comparison_figure(both, gaps, "tma_rt").axes
    band = below.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == -0.5
    assert band[:, 1].max() == 0.5
    below, _ = figures.comparison_figure(both, gaps, "tma_rt", ranges=False).axes
    assert not below.collections


def test_metrics_have_a_panel_each_with_its_unit() -> None:
    levels = [("loss", "rouge1", "rougeL", "exact_match"), (0, 1), (0, 2)]
    index = pd.MultiIndex.from_product(levels, names=["metric", "seed", "step"])
    table = index.to_frame(index=False).assign(value=lambda rows: rows["step"] + rows["seed"])
    axes = figures.metrics_figure(table).axes
    names = ["loss (nats a token)", "ROUGE-1 (F-measure)", "ROUGE-L (F-measure)"]
    assert [panel.get_ylabel() for panel in axes] == [*names, "exact match (share)"]
    assert list(axes[0].get_lines()[-1].get_ydata()) == [0.5, 2.5]


def test_intervals_stand_under_their_names_from_the_top() -> None:
    found = (Interval(-1, -2, -0.5, 4, 1), Interval(0, -1, 1, 4, 1))
    ready = [Effect(one, one, (0, 0), 0, 0, 0, None) for one in found]
    contrasts = dict(zip(("tma_nft", "no near-duplicates"), ready, strict=True))
    axes = figures.intervals_figure(contrasts, band=(-0.25, 0.5)).axes[0]
    [band] = axes.patches
    assert (band.get_x(), band.get_width()) == (-0.25, 0.75)
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["NFT, nearest first", "no near-duplicates"]
    assert axes.yaxis_inverted()
    faces = [line.get_markerfacecolor() for line in axes.get_lines() if line.get_marker() == "o"]
    assert faces == [figures.BLUE, "white"]  # only the first excludes zero
    assert not figures.intervals_figure(contrasts).axes[0].patches


def test_distances_and_loss_share_one_scale_in_each_task() -> None:
    orders, measures = ("cluster", "random"), ("cosine_avg", "euclidean_min", "bigram_kl")
    distances = pd.DataFrame(
        [(o, t, s, m, n + s) for n, o in enumerate(orders) for t in "ab" for s in (1, 2)
         for m in measures], columns=["order", "task", "step", "measure", "distance"],
    )  # fmt: skip
    losses = pd.DataFrame(
        [(o, t, s, 4 - s) for o in orders for t in "ab" for s in (0, 1, 2)],
        columns=["order", "task", "step", "loss"],
    )
    figure = figures.distances_figure(distances, losses)
    assert len(figure.axes) == 4
    assert [axes.get_title() for axes in figure.axes[:2]] == ["a", "b"]
    assert figure.axes[2].get_ylabel() == "random"
    # Distances 1, 2 of the one order and 2, 3 of the other; the loss comes first.
    drawn = [list(line.get_ydata()) for line in figure.axes[2].get_lines()]
    assert drawn == [[1, 0.5, 0], *[[0.5, 1]] * 3]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["test loss", "cosine avg", "euclidean min", "bigram KL"]


def test_an_association_is_drawn_beside_its_baseline() -> None:
    similarity = np.linspace(-1, 1, 101)
    pairs = pd.DataFrame({"similarity": similarity, "drop": 2 * similarity})
    found = Association(0.5, 0.4, 0.6, 9, 1, baseline_low=-0.1, baseline_high=0.1, p=0.01)
    axes = figures.association_figure(pairs, found).axes[0]
    line = axes.get_lines()[0]
    # A correlation of 0.5 between values of spreads 2 : 1 is a slope of 1.
    np.testing.assert_allclose(line.get_ydata(), line.get_xdata())
    assert axes.get_ylabel() == "loss drop, centred (nats a token)"
    assert len(legend(axes)) == 3
