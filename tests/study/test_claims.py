from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
from tma.study.intervals import Interval, written

from tma.errors import DataError, ParameterError
from tma.study import claims
from tma.study.claims import CLAIMS, Verdict, collect, judge_all, judge_any, untested, write

GAP = Interval(-0.2, -0.3, -0.1, 72, 3)
SEQUENCE = [
    *(f"C{number}" for number in range(1, 9)),
    "order against selection",
    "near-duplicates",
    "rule within a round",
]


def interval(low: float, high: float) -> Interval:
    return Interval((low + high) / 2, low, high, 10, 1)


@pytest.mark.parametrize(
    ("ends", "claimed", "expected"),
    [
        ((-0.3, -0.1), "negative", "supported"),
        ((-0.3, -0.1), "positive", "not supported"),
        ((0.1, 0.3), "positive", "supported"),
        ((0.1, 0.3), "negative", "not supported"),
        ((-0.1, 0.1), "negative", "inconclusive"),
        ((-0.1, 0.0), "negative", "inconclusive"),
        ((-math.inf, 9.0), "positive", "inconclusive"),
    ],
)
def test_a_claim_holds_where_the_interval_is_on_its_side(
    ends: tuple[float, float], claimed: str, expected: str
) -> None:
    judged = judge_all({"gap": (interval(*ends), claimed)})
    assert (judged.verdict, judged.label, judged.interval) == (expected, "gap", interval(*ends))


@pytest.mark.parametrize(
    ("lower", "higher", "expected"),
    [
        ((-0.3, -0.1), (0.1, 0.2), "supported"),
        ((-0.3, 0.1), (0.1, 0.2), "inconclusive"),
        ((-0.3, -0.1), (-0.1, 0.2), "inconclusive"),
        ((0.1, 0.3), (0.1, 0.2), "not supported"),
        ((-0.3, -0.1), (-0.2, -0.1), "not supported"),
        ((-0.3, 0.1), (-0.2, -0.1), "not supported"),
    ],
)
def test_a_claim_of_two_differences_needs_both(
    lower: tuple[float, float], higher: tuple[float, float], expected: str
) -> None:
    parts = {"lower": (interval(*lower), "negative"), "higher": (interval(*higher), "positive")}
    assert judge_all(parts).verdict == expected


def test_the_interval_that_decides_is_shown() -> None:
    clear, wide = interval(-0.3, -0.2), interval(-0.3, 0.1)
    contrary, nothing = interval(0.1, 0.2), interval(-math.inf, math.inf)
    names = {"clear": clear, "wide": wide, "contrary": contrary, "nothing": nothing}

    def decides(*chosen: str) -> tuple[str, str]:
        found = judge_all({name: (names[name], "negative") for name in chosen})
        assert found.interval == names[found.label]
        return found.verdict, found.label

    assert decides("clear", "wide") == ("inconclusive", "wide")
    assert decides("contrary", "wide") == ("not supported", "contrary")
    assert decides("clear", "nothing", "contrary") == ("not supported", "contrary")
    assert decides("clear", "nothing") == ("inconclusive", "nothing")
    # One of two lies on the other side, but not if widened for being one of two.
    names["slightly"] = interval(0.002, 0.102)
    assert decides("slightly") == ("not supported", "slightly")
    assert decides("clear", "slightly") == ("inconclusive", "slightly")
    # No difference at all, as of two equal runs.
    names["none"] = interval(0.0, 0.0)
    assert decides("clear", "none") == ("inconclusive", "none")


def test_a_claim_of_any_difference_needs_one() -> None:
    around, above, below = interval(-0.1, 0.1), interval(0.1, 0.3), interval(-0.3, -0.1)
    assert judge_any({"a": around, "b": above}).verdict == "supported"
    assert judge_any({"a": around, "b": above}).label == "b"
    assert judge_any({"a": below}) == claims.Judged("supported", below, "a")
    assert judge_any({"a": around, "b": around}).verdict == "inconclusive"
    assert judge_any({"a": interval(0, 0), "b": above}).verdict == "supported"
    with pytest.raises(ParameterError, match="one interval at least"):
        judge_any({})


def test_one_of_several_intervals_has_to_be_clearer_than_one_alone() -> None:
    # Widened by 2.2414/1.9600, the normal quantiles at 0.9875 and at 0.975.
    near = Interval(1.0, 0.05, 1.95, 10, 3)
    assert judge_any({"a": near}).verdict == "supported"
    found = judge_any({"a": near, "b": interval(-0.5, 0.6)})
    assert (found.verdict, found.label) == ("inconclusive", "a")
    assert found.interval.low == pytest.approx(1 - 0.95 * 2.2414 / 1.9600, abs=1e-4)
    assert found.interval.high == pytest.approx(1 + 0.95 * 2.2414 / 1.9600, abs=1e-4)
    assert found.interval.estimate == 1


def test_judging_needs_a_side_and_an_interval() -> None:
    with pytest.raises(ParameterError, match="claimed='lower'"):
        judge_all({"gap": (GAP, "lower")})
    with pytest.raises(ParameterError, match="one interval at least"):
        judge_all({})


def test_a_record_has_just_the_agreed_keys(tmp_path: Path) -> None:
    judged = judge_all({"NFT minus RT": (GAP, "negative")})
    first = claims.tested("C6", "final loss, nats a token", judged)
    write(tmp_path / "claims.json", [first, untested("C1", "too few steps")])
    assert json.loads((tmp_path / "claims.json").read_text()) == [
        {
            "claim": "C6",
            "notebook": "04_tma",
            "measure": "NFT minus RT: final loss, nats a token",
            "estimate": -0.2,
            "low": -0.3,
            "high": -0.1,
            "n": 72,
            "seeds": 3,
            "verdict": "supported",
            "others_low": None,
            "others_high": None,
            "generalizes": False,
            "runs": None,
        },
        {
            "claim": "C1",
            "notebook": "01_early_generalization",
            "measure": "too few steps",
            "estimate": None,
            "low": None,
            "high": None,
            "n": None,
            "seeds": None,
            "verdict": "not tested at this scale",
            "others_low": None,
            "others_high": None,
            "generalizes": False,
            "runs": None,
        },
    ]


def test_a_number_that_is_none_is_left_out() -> None:
    endless = Interval(0.5, -math.inf, math.nan, 4, 1)
    found = claims.tested("C1", "share", claims.Judged("inconclusive", endless, "a"))
    assert (found.estimate, found.low, found.high) == (0.5, None, None)


def test_a_claim_without_a_value_was_not_tested() -> None:
    nothing = Interval(math.nan, -math.inf, math.inf, 4, 1)
    found = claims.tested("C3", "correlation", claims.Judged("inconclusive", nothing, "a"))
    assert (found.verdict, found.estimate) == ("not tested at this scale", None)
    assert found.measure == "a: correlation: no value"


def test_unknown_claims_and_verdicts_are_refused() -> None:
    with pytest.raises(ParameterError, match="claim='C9'"):
        untested("C9", "")
    with pytest.raises(ParameterError, match="verdict='true'"):
        Verdict("C1", "01", "", 0, 0, 0, 1, 1, "true")


MADE = claims.made_from(["x", "y"])


def leave(folder: Path, names: list[str]) -> Path:
    made = [replace(untested(name, "why"), notebook=folder.name, runs=MADE) for name in names]
    write(folder / "claims.json", made)
    return folder


def test_the_verdicts_of_all_notebooks_come_in_one_sequence(tmp_path: Path) -> None:
    folders = [leave(tmp_path / "b", SEQUENCE[::2]), leave(tmp_path / "a", SEQUENCE[1::2])]
    found = collect(folders)
    assert [verdict.claim for verdict in found] == SEQUENCE == list(CLAIMS)
    assert [verdict.notebook for verdict in found[:3]] == ["b", "a", "b"]
    assert claims.main([str(tmp_path)]) == 0
    assert claims.read(tmp_path / "claims.json") == found


def test_each_claim_needs_one_verdict(tmp_path: Path) -> None:
    most = leave(tmp_path / "most", [name for name in SEQUENCE if name != "C5"])
    with pytest.raises(DataError, match=r"'C5' has 0 verdicts \(none\) in 1 folders"):
        collect([most])
    with pytest.raises(DataError, match="no folder has a claims"):
        collect([])
    more = leave(tmp_path / "more", ["C5", "C6"])
    with pytest.raises(DataError, match=r"'C6' has 2 verdicts \(most, more\)"):
        collect([most, more])


def test_verdicts_of_other_runs_than_the_notebook_shows_are_not_gathered(tmp_path: Path) -> None:
    folders = [leave(tmp_path / "b", SEQUENCE[::2]), leave(tmp_path / "a", SEQUENCE[1::2])]
    (tmp_path / "a.ipynb").write_text(f"Made from {MADE}.")
    os.utime(tmp_path / "a.ipynb", (0, 0))  # as a checkout or a copy leaves it
    assert len(collect(folders)) == len(SEQUENCE)
    (tmp_path / "a.ipynb").write_text(f"Made from {claims.made_from(['x', 'z'])}.")
    with pytest.raises(DataError, match=r"of 2 runs, \w+, which .*a\.ipynb does not show"):
        collect(folders)
    write(tmp_path / "a" / "claims.json", [untested("C1", "why")])
    with pytest.raises(DataError, match="of unknown runs"):
        collect(folders)


def test_runs_are_named_by_their_keys_in_any_sequence() -> None:
    assert claims.made_from(["y", "x", "x"]) == claims.made_from(["x", "y"]) == MADE
    assert MADE.startswith("2 runs, ")


def test_the_notebook_beside_a_folder_has_its_whole_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = leave(tmp_path / "llama-3.2", SEQUENCE)
    for name in ("llama-3.ipynb", "llama-3.2.ipynb"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=r"which .*llama-3\.2\.ipynb does not show"):
        collect([folder])
    (tmp_path / "llama-3.2.ipynb").unlink()
    monkeypatch.chdir(folder)
    assert len(collect([Path()])) == len(SEQUENCE)


def test_a_file_of_something_else_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        collect([tmp_path])
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "claims.json").write_text('[{"claim": "C1"}]')
    with pytest.raises(DataError, match="holds no verdicts"):
        collect([folder])
    assert claims.main([str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("DataError")
    assert claims.main([]) == 1


def test_the_table_leaves_empty_what_was_not_tested() -> None:
    shown = claims.table(
        [
            claims.tested("C6", "gap", judge_all({"a": (GAP, "negative")})),
            untested("C1", "why"),
        ]
    )
    told = ["a: gap", "-0.200 (-0.300 to -0.100)", "72 · 3", "supported"]
    assert shown.loc["C6"].tolist() == told
    assert shown.loc["C1"].tolist() == ["why", "–", "–", "not tested at this scale"]
    assert shown.index.tolist() == ["C6", "C1"]


def test_the_other_interval_is_told_where_it_is_another() -> None:
    verdict = claims.tested(
        "C6", "gap", judge_all({"a": (GAP, "negative")}), GAP.among(3), generalizes=True
    )
    assert claims.cells(verdict)["estimate (95 % interval)"] == (
        "-0.200 (-0.300 to -0.100); other datasets -0.322 to -0.078"
    )
    assert claims.cells(verdict)["verdict"] == "supported, generalizes"
    same = claims.tested("C1", "share", judge_all({"a": (GAP, "negative")}), GAP)
    assert claims.cells(same)["estimate (95 % interval)"] == "-0.200 (-0.300 to -0.100)"


def test_an_interval_is_written_with_signs_and_as_many_decimals_as_it_bears() -> None:
    assert written(-0.0125, -0.5, 12.34) == "-0.013 (-0.500 to +12.3)"
    assert written(10, None, None) == "+10.0"
    assert written(0.25, None, 0.5) == "+0.250"
