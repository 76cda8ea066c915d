from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

from tests.stored_runs import FAR, NEAR, stored
from tma.study import claims, effects, report
from tma.study.effects import Effect
from tma.study.settings import StudyConfig
from tma.study.statistics import Interval

GAP = Interval(-0.2, -0.3, -0.1, 18, 3)


@pytest.fixture
def study(tmp_path: Path) -> StudyConfig:
    return StudyConfig("llama", "pocket", "pocket", 3, 8, str(tmp_path / "out"))


def test_equal_figures_are_equal_files(study: StudyConfig) -> None:
    def drawn() -> Figure:
        figure = Figure()
        figure.subplots().plot([0, 1], [2, 3], marker="o")
        return figure

    shown = [report.saved(study, name, drawn()) for name in ("one", "two")]
    for kind in ("svg", "png"):
        one, two = ((study.out / f"{name}.{kind}").read_bytes() for name in ("one", "two"))
        assert one == two
    svg = (study.out / "two.svg").read_text("utf-8")
    assert shown[0].forms["image/svg+xml"] == svg
    forms = {"image/svg+xml": svg, "text/plain": "two.svg"}
    assert shown[1]._repr_mimebundle_() == forms
    assert replace(shown[1], alt="A line.")._repr_mimebundle_() == (forms, {"alt": "A line."})


def test_a_stored_table_is_whole_and_the_shown_one_rounded(study: StudyConfig) -> None:
    rows = pd.DataFrame({"loss": [1.23456]}, index=["a"])
    assert report.saved_table(study, "rows", rows)["loss"].tolist() == [1.235]
    assert pd.read_csv(study.out / "rows.csv", index_col=0)["loss"].tolist() == [1.23456]
    assert (study.out / "rows.txt").read_text() == "   loss\na 1.235\n"
    effect = Effect(GAP, GAP, (0, 0), 0, 0, 0, None)
    shown = report.saved_effects(study, "gaps", {"NFT − RT": effect})
    assert shown.loc["NFT − RT", "difference (these tasks)"] == "−0.200 (−0.300 to −0.100)"
    stored_row = pd.read_csv(study.out / "gaps.csv", index_col=0).loc["NFT − RT"]
    assert stored_row[["low", "datasets_high", "n"]].tolist() == [-0.3, -0.1, 18]


def test_verdicts_are_stored_and_shown_whole(study: StudyConfig, tmp_path: Path) -> None:
    effect = Effect(GAP, GAP, (0, 0), 0, 0, 0, None)
    later = "NFT − RT, " + "long " * 20
    made = [claims.earlier_rounds(study, {later: effect}, [later]), claims.untested("C6", "why")]
    orders = {"x": "tma_rounds[0:2]", "y": "tma_rt"}
    counts = {"x": {"instances": 16}, "y": {"instances": 64}}
    runs = {name: [stored(tmp_path / name, orders[name], NEAR, **counts[name])] for name in orders}
    shown = report.saved_verdicts(study, made, runs)
    of = claims.made_from(["x", "y"])
    told = {"runs": of, "scale": "pocket", "model": "smollm2-135m-instruct", "steps": 4}
    kept = [replace(one, **told, instances=n) for one, n in zip(made, (16, 64), strict=True)]
    assert claims.read(study.out / "claims.json") == kept
    assert set(shown.forms) == {"text/html", "text/plain"}
    for form in shown.forms.values():
        assert f"Made from {of}." in form and "long " * 19 in form
        assert "−0.200" in form and "–" in form and "<NA>" not in form and "NaN" not in form


def test_a_reader_sees_what_is_trained(tmp_path: Path) -> None:
    runs = [stored(tmp_path / f"s{s}", "tma_nft", NEAR, s, instances=60 + s) for s in (0, 1)]
    [row] = report.runs_table({"tma_nft, shuffled": runs}).reset_index().to_dict("records")
    of_runs = {"runs": 2, "seeds": "0 to 1", "training instances": "60 to 61", "steps": "4"}
    assert row == {"index": "NFT, shuffled in rounds", **of_runs}
    labels = ("random, sample", "tma_rounds[0:3]", "tma_nft, without labels", "tma_nft_x")
    names = ["random, sample", "rounds 1 to 3", "NFT, nearest first, without labels", "tma_nft_x"]
    assert [report.named(label) for label in labels] == names


def test_the_range_of_seeds_is_left_out_where_they_test_different_folds(
    study: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = (NEAR, FAR)
    random = [stored(tmp_path / f"s{s}", "tma_rt", losses[s], s) for s in (0, 1)]
    runs = {"tma_rt": random, "tma_nft": [stored(tmp_path / "near", "tma_nft", NEAR)]}
    assert report.seed_band(study, random) == (-0.25, 0.25)
    grey = 'style="fill: #444444; fill-opacity: 0.2"'
    assert grey in report.comparison(study, "one", runs, "tma_rt").forms["image/svg+xml"]
    monkeypatch.setattr(StudyConfig, "folds", 5)
    assert report.seed_band(study, random) is None
    assert grey not in report.comparison(study, "two", runs, "tma_rt").forms["image/svg+xml"]
    absent = report.comparison(study, "three", {}, "tma_rt")
    assert absent.alt == "Not made yet: the runs of RT, random."
    assert (study.out / "three.svg").is_file()


def test_a_picture_is_told_with_its_result(study: StudyConfig, tmp_path: Path) -> None:
    runs = {
        "tma_rt": [stored(tmp_path / "rt", "tma_rt", FAR)],
        "tma_nft": [stored(tmp_path / "nft", "tma_nft", NEAR)],
    }
    shown = report.comparison(study, "one", runs, "tma_rt")
    told = "NFT, nearest first: at most −1.000 nats a token, at step 2, and −0.500 at the end."
    assert shown.alt.endswith(told)
    effect = Effect(GAP, GAP, (0, 0), 0, 0, 0, None)
    found = report.saved_intervals(study, "two", {"NFT − RT": effect}, "difference")
    assert found.alt == "Difference. NFT − RT: −0.200 (−0.300 to −0.100)."


def test_tables_are_shown_in_words(study: StudyConfig, tmp_path: Path) -> None:
    runs = {"tma_nft": [stored(tmp_path / "nft", "tma_nft", NEAR)]}
    [row] = report.summary_table(study, runs).reset_index().to_dict("records")
    assert row == {
        "index": "NFT, nearest first", "runs": 1, "training instances": "64", "loss before": 4,
        "along the way": 2.625, "at the end": 1.5, "fall": "62%",
    }  # fmt: skip
    share = Interval(0.5, 0.25, 1, 4, 1, without_one=(0.4, 0.75))
    shares = report.saved_shares(study, "early", {"step 1": share}, "share")
    assert shares.to_dict("index") == {
        "step 1": {
            "share (95% interval)": "50% (25% to 100%)",
            "without one dataset": "40% to 75%",
        }
    }
    told = "Together they are tested on **4** instances of 2 tasks, over 1 seed."
    assert report.tested(runs | {"b": runs["tma_nft"]}).forms["text/markdown"] == told
    course = effects.course(runs["tma_nft"], [stored(tmp_path / "rt", "tma_rt", FAR)])
    steps = report.courses_table({"NFT − RT": course})["NFT − RT"]
    assert steps.index.tolist() == ["2", "4"]
    assert steps["2"].startswith("−1.000")
    none = report.saved_effects(study, "none", {})
    assert none.forms["text/markdown"] == "*None of these runs has been made yet.*"


def test_an_interval_is_glued_with_its_ends_and_a_verdict_by_its_word() -> None:
    verdict = claims.untested("C7", "no data")
    interval = {"gap": -0.2, "gap_low": -0.3, "gap_high": -0.1}
    word = "not tested at this scale"
    plain = report._plain({"gap": GAP, "c7": verdict, "steps": 8})
    assert plain == {**interval, "c7": word, "steps": 8}


def test_the_metric_nearest_to_the_loss_is_named_in_words() -> None:
    rougher = {"rouge1": Interval(0.3, 0.2, 0.4, 4, 1), "exact_match": Interval(0.1, 0, 0.2, 4, 1)}
    found = {"closest": "exact match", "closest_gap": rougher["exact_match"]}
    assert report.closest_to_loss(rougher) == found
    assert report.closest_to_loss({}) == {}
