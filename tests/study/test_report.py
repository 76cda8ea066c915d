from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

from tma.runs.store import Run
from tma.study import claims, report
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
    assert shown[0]._repr_svg_().encode() == (study.out / "one.svg").read_bytes()
    assert shown[0]._repr_svg_() == shown[1]._repr_svg_()
    assert repr(shown[1]) == "two.svg"


def test_a_stored_table_is_whole_and_the_shown_one_rounded(study: StudyConfig) -> None:
    rows = pd.DataFrame({"loss": [1.23456]}, index=["a"])
    assert report.saved_table(study, "rows", rows)["loss"].tolist() == [1.235]
    assert pd.read_csv(study.out / "rows.csv", index_col=0)["loss"].tolist() == [1.23456]
    assert (study.out / "rows.txt").read_text() == "   loss\na 1.235\n"


def test_verdicts_are_stored_and_shown_whole(study: StudyConfig) -> None:
    judged = claims.judge_all({"NFT − RT, " + "long " * 20: (GAP, "negative")})
    made = [
        claims.tested("C6", "loss", judged),
        claims.untested("C7", "no data"),
    ]
    runs = {"a": [Run(Path("runs/x")), Run(Path("runs/y"))]}
    shown = report.saved_verdicts(study, made, runs)
    of = claims.made_from(["x", "y"])
    assert claims.read(study.out / "claims.json") == [replace(one, runs=of) for one in made]
    assert repr(shown) == shown.text
    assert f"Made from {of}." in shown.text and f"Made from {of}." in shown.html
    for form in (shown.text, shown._repr_html_()):
        assert "long " * 19 in form
        assert "-0.200" in form and "–" in form and "<NA>" not in form and "NaN" not in form


def test_an_interval_is_glued_with_its_ends_and_a_verdict_by_its_word() -> None:
    verdict = claims.untested("C7", "no data")
    assert report._plain({"gap": GAP, "c7": verdict, "steps": 8}) == {
        "gap": -0.2,
        "gap_low": -0.3,
        "gap_high": -0.1,
        "c7": "not tested at this scale",
        "steps": 8,
    }
