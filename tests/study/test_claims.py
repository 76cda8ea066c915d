from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.study.test_settings import parameters
from tma.errors import DataError, ParameterError
from tma.study import arms, claims
from tma.study.claims import CLAIMS, Side, Verdict, collect, judge_all, untested, write
from tma.study.effects import Effect
from tma.study.exposure import Association
from tma.study.statistics import Interval

SEQUENCE = [f"C{number}" for number in range(1, 9)]
SEQUENCE += ["order against selection", "near-duplicates", "rule within a round"]


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
    ends: tuple[float, float], claimed: Side, expected: str
) -> None:
    judged = judge_all({"gap": (interval(*ends), claimed)})
    assert (judged.verdict, judged.name, judged.interval) == (expected, "gap", interval(*ends))


def test_the_interval_that_decides_is_shown() -> None:
    clear, wide = interval(-0.3, -0.2), interval(-0.3, 0.1)
    contrary, nothing = interval(0.1, 0.2), interval(-math.inf, math.inf)
    names = {"clear": clear, "wide": wide, "contrary": contrary, "nothing": nothing}

    def decides(*chosen: str) -> tuple[str, str]:
        found = judge_all({name: (names[name], "negative") for name in chosen})
        assert found.interval == names[found.name]
        return found.verdict, found.name

    assert decides("clear") == ("supported", "clear")
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


def test_a_record_has_just_the_agreed_keys(tmp_path: Path) -> None:
    first = claims.fine_beats_coarse(STUDY, {COARSE: effect(-0.3, -0.1, (-math.inf, math.nan))})
    write(tmp_path / "claims.json", [first, untested("C1", "too few steps")])
    told, other = json.loads((tmp_path / "claims.json").read_text())
    assert told == {
        "claim": "C5",
        "notebook": "03_granularity",
        "measure": "nearest − coarse nearest: final loss, nats a token",
        **{"estimate": -0.2, "low": -0.3, "high": -0.1, "n": 18, "seeds": 3},
        **{"verdict": "supported", "others_low": None, "others_high": None},
        **{"generalizes": False, "runs": None, "side": "negative"},
        **{"scale": None, "model": None, "steps": None, "instances": None},
    }
    assert list(other) == list(told)
    assert [value for value in other.values() if value] == [
        *("C1", "01_early_generalization", "too few steps", "not tested at this scale")
    ]


def test_unknown_claims_and_verdicts_are_refused() -> None:
    with pytest.raises(ParameterError, match="claim='C0'"):
        untested("C0", "")
    with pytest.raises(ParameterError, match="verdict='true'"):
        Verdict("C1", "01", "", 0, 0, 0, 1, 1, "true")


MADE = claims.made_from(["y", "x", "x"])


def leave(folder: Path, names: list[str]) -> Path:
    made = [replace(untested(name, "why"), notebook=folder.name, runs=MADE) for name in names]
    write(folder / "claims.json", made)
    return folder


def test_the_verdicts_of_all_notebooks_come_in_one_sequence(tmp_path: Path) -> None:
    folders = [leave(tmp_path / "b", SEQUENCE[::2]), leave(tmp_path / "a", SEQUENCE[1::2])]
    found = collect(folders)
    assert claims.made_from(["x", "y"]) == MADE and MADE.startswith("2 runs, ")
    assert [verdict.claim for verdict in found] == SEQUENCE == list(CLAIMS)
    assert [verdict.notebook for verdict in found[:3]] == ["b", "a", "b"]
    assert set(claims.NOTEBOOKS) == set(CLAIMS)
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
    (tmp_path / "a.2.ipynb").touch()  # of a folder a.2
    assert len(collect(folders)) == len(SEQUENCE)
    (tmp_path / "a.ipynb").write_text(f"Made from {claims.made_from(['x', 'z'])}.")
    with pytest.raises(DataError, match=r"of 2 runs, \w+, which .*a\.ipynb does not show"):
        collect(folders)
    write(tmp_path / "a" / "claims.json", [untested("C1", "why")])
    with pytest.raises(DataError, match="of unknown runs"):
        collect(folders)


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


def test_older_records_are_read(tmp_path: Path) -> None:
    old = {"claim": "C5", "notebook": "03_granularity", "measure": "m", "verdict": "inconclusive"}
    (tmp_path / "claims.json").write_text(json.dumps([old]))
    [found] = claims.read(tmp_path / "claims.json")
    assert (found.verdict, found.model, found.steps) == ("inconclusive", None, None)


def test_a_claim_names_the_commands_for_its_numbers() -> None:
    assert claims.commands("C7") == (
        "tma study --arms 1,1b,6",
        "papermill notebooks/04_tma.ipynb out.ipynb -p scale study",
    )
    assert list(claims.ARMS) == SEQUENCE
    for named in claims.ARMS.values():
        assert ",".join(arm.name for arm in arms.chosen(named)) in (named, "1,2,1b")


def test_a_run_of_ones_own_stands_beside_the_published_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = claims.order_of_rounds(parameters(), turned(BELOW, ABOVE), KINDS)
    live = replace(one, scale="pocket", model="smollm2-135m-instruct", steps=8, instances=32)
    write(tmp_path / "live.json", [untested("C7", "why"), live])
    write(tmp_path / "old.json", [untested("C6", "why")])
    paths = [str(tmp_path / name) for name in ("live.json", "old.json")]
    assert claims.main(["beside", *paths]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "TMA (C6), mean loss along the way, nats a token, with a 95% interval:",
        "this run   NFT − RT, with labels: −0.200 (−0.300 to −0.100): inconclusive",
        "           scale pocket, smollm2-135m-instruct, 32 training instances a run, "
        "18 test instances, seeds: 3",
        "published  why: not tested at this scale",
        "",
        "One seed and few test instances decide nothing. Where the two differ, model, scale",
        "and chance differ too: this run speaks neither for nor against the published one.",
    ]
    write(tmp_path / "old.json", [untested("C7", "why")])
    assert claims.main(["beside", *paths]) == 1
    assert "old.json has no verdict on C6" in capsys.readouterr().err


def test_the_table_gives_the_other_interval_where_it_is_another() -> None:
    share = Interval(0.7, 0.6, 0.8, 18, 3, over="source")
    fine = claims.fine_beats_coarse(STUDY, {COARSE: BELOW})
    shown = claims.table([fine, claims.early_fall(STUDY, share, 20), untested("C7", "why")])
    assert shown.index.tolist() == ["C5", "C1", "C7"]
    told = "−0.200 (−0.300 to −0.100); other datasets −0.400 to −0.050"
    assert shown.loc["C5"].tolist()[1:] == [told, "18 · 3", "supported, generalizes"]
    told = "+0.200 (+0.100 to +0.300)"
    assert shown.loc["C1"].tolist()[1:] == [told, "18 · 3", "supported, generalizes"]
    assert shown.loc["C7"].tolist() == ["why", "–", "–", "not tested at this scale"]


STUDY = parameters(seeds=None)
PUBLISHED = parameters(scale="study", model=None, seeds=None)


def effect(low: float, high: float, others: tuple[float, float] = (-1, 1)) -> Effect:
    own = Interval((low + high) / 2, low, high, 18, 3)
    return Effect(own, replace(own, low=others[0], high=others[1]), (0, 0), 0, 0, 0, None)


BELOW, ABOVE, AROUND = effect(-0.3, -0.1, (-0.4, -0.05)), effect(0.1, 0.3), effect(-0.3, 0.1)
Pair = tuple[Effect, Effect]
KINDS = ("with labels", "without labels")


def turned(nft: Effect, fft: Effect) -> dict[str, Effect]:
    """Differences by the paper's rule and shuffled, with labels and without."""
    return {name: nft if name.startswith("NFT") else fft for name in arms.order_pairs(KINDS)}


def correlation(estimate: float, baseline: tuple[float, float]) -> Association:
    """With an interval of 0.1 on either side."""
    ends = (estimate - 0.1, estimate + 0.1, 18, 3)
    low, high = baseline
    return Association(estimate, *ends, baseline_low=low, baseline_high=high, p=0.5)


def test_metrics_that_move_are_all_less_steady_than_the_loss() -> None:
    found = claims.steady_loss(STUDY, {"rouge1": interval(0.1, 0.3), "rougeL": interval(0.05, 0.3)})
    assert (found.claim, found.verdict, found.low) == ("C2", "supported", 0.05)
    assert found.measure.startswith("rougeL: share of its movement that no single turn makes")
    still = claims.steady_loss(STUDY, {})
    assert still.verdict == "not tested at this scale"
    assert still.measure == "no metric but the loss moves"


def test_a_twentieth_of_the_steps_has_to_be_a_step() -> None:
    share = Interval(0.7, 0.6, 0.8, 18, 3)
    found = claims.early_fall(STUDY, share, 20)
    assert (found.estimate, found.low) == pytest.approx((0.2, 0.1))
    assert found.verdict == "supported"
    late = claims.early_fall(STUDY, share, 19)
    assert (late.verdict, late.estimate) == ("not tested at this scale", None)
    assert late.measure == "5% of 19 steps are less than one step"


NEAREST, FARTHEST = "nearest − random", "farthest − random"
COARSE, BLOCK = "nearest − coarse nearest", "tma_rounds[5:10] − tma_rounds[0:5]"
RULE = "NFT − NFT shuffled in rounds"


@pytest.mark.parametrize(
    ("found", "claim", "verdict"),
    [
        (claims.similar_first(STUDY, {NEAREST: BELOW, FARTHEST: ABOVE}), "C4", "supported"),
        (claims.similar_first(STUDY, {NEAREST: ABOVE, FARTHEST: ABOVE}), "C4", "not supported"),
        (claims.fine_beats_coarse(STUDY, {COARSE: BELOW}), "C5", "supported"),
        (claims.fine_beats_coarse(STUDY, {COARSE: ABOVE}), "C5", "not supported"),
        (claims.fine_beats_coarse(STUDY, {}), "C5", "not decided yet"),
        (claims.order_of_rounds(STUDY, turned(BELOW, ABOVE), KINDS), "C6", "supported"),
        (claims.order_of_rounds(STUDY, turned(BELOW, BELOW), KINDS), "C6", "not supported"),
        (claims.earlier_rounds(STUDY, {BLOCK: ABOVE}, [BLOCK]), "C7", "supported"),
        (claims.earlier_rounds(STUDY, {BLOCK: BELOW}, [BLOCK]), "C7", "not supported"),
        (claims.rule_within_round(STUDY, {RULE: BELOW}), "rule within a round", "supported"),
        (claims.rule_within_round(STUDY, {RULE: AROUND}), "rule within a round", "inconclusive"),
        (claims.rule_within_round(STUDY, {}), "rule within a round", "not decided yet"),
        (claims.near_duplicates(STUDY, {arms.TWINS: BELOW}), "near-duplicates", "supported"),
    ],
)
def test_the_side_of_zero_that_a_claim_means(
    found: claims.Verdict, claim: str, verdict: str
) -> None:
    assert (found.claim, found.verdict) == (claim, verdict)


def test_a_correlation_has_to_exceed_what_chance_gives_it() -> None:
    shown = claims.by_instance(STUDY, correlation(0.5, (-0.2, 0.2)), {})
    assert (shown.claim, shown.verdict, shown.low) == ("C8", "supported", 0.3)
    chance = claims.by_instance(STUDY, correlation(0.5, (-0.1, 0.6)), {})
    assert (chance.verdict, chance.measure[:15]) == ("inconclusive", "minus permuted:")
    # 0.5 lies 0.1 below the upper and 0.6 above the lower end of what chance gives.
    assert (chance.estimate, chance.low, chance.high) == pytest.approx((0.25, -0.1, 0.6))
    steps = claims.falls_with_distance(STUDY, correlation(-0.5, (-0.2, 0.2)))
    assert (steps.claim, steps.verdict) == ("C3", "not supported")
    wide = claims.falls_with_distance(STUDY, correlation(0.05, (-0.01, 0.01)))
    assert (wide.verdict, wide.measure[:12]) == ("inconclusive", "as measured:")


def test_what_has_not_been_made_is_named() -> None:
    along = turned(BELOW, ABOVE)
    del along["NFT shuffled in rounds − RT, without labels"]
    found = claims.order_of_rounds(STUDY, along, KINDS)
    assert (found.verdict, found.estimate, found.side) == ("not decided yet", -0.2, "negative")
    so_far, _, waited = found.measure.partition("; ")
    assert so_far.startswith("so far NFT − RT, with labels: mean loss along the way")
    assert waited == "not made yet: NFT shuffled in rounds − RT, without labels"
    none = claims.order_of_rounds(STUDY, {}, KINDS[:1])
    assert (none.verdict, none.estimate) == ("not decided yet", None)
    # Of data without labels, none is missing.
    assert claims.order_of_rounds(STUDY, along, KINDS[:1]).verdict == "supported"
    larger = claims.selection_over_order(STUDY, {}, {}, {}, 920)
    assert (larger.claim, larger.verdict) == ("order against selection", "not decided yet")
    waits = claims.steady_loss(PUBLISHED, {})
    assert waits.verdict == "not decided yet"
    assert waits.measure == "not made yet: random order with answers (arm 2)"
    match, main = correlation(0.5, (-0.2, 0.2)), dict.fromkeys(arms.MAIN, ())
    part = {label: runs for label, runs in main.items() if label != "tma_rt"}
    missing = claims.by_instance(PUBLISHED, match, part)
    assert (missing.verdict, missing.measure) == ("not decided yet", "not made yet: tma_rt")
    assert claims.by_instance(PUBLISHED, match, main).verdict == "supported"


def test_the_published_study_waits_for_repeated_folds() -> None:
    unbounded = effect(-math.inf, math.inf)
    unknown = replace(unbounded, tasks=replace(unbounded.tasks, estimate=-0.2))
    found = claims.fine_beats_coarse(PUBLISHED, {COARSE: unknown})
    assert (found.verdict, found.estimate, found.low) == ("not decided yet", -0.2, None)
    assert (found.others_low, found.others_high) == (unknown.datasets.low, unknown.datasets.high)
    waiting = f"so far {COARSE}: final loss, nats a token; not made yet: {claims.REPEATS}"
    assert found.measure == waiting
    shown = claims.fine_beats_coarse(STUDY, {COARSE: unknown})
    assert (shown.verdict, shown.estimate, shown.low) == ("inconclusive", -0.2, None)


def test_whether_it_generalizes_is_said_by_the_other_interval() -> None:
    found = claims.fine_beats_coarse(STUDY, {COARSE: BELOW})
    assert (found.others_low, found.others_high, found.generalizes) == (-0.4, -0.05, True)
    both = claims.similar_first(STUDY, {NEAREST: BELOW, FARTHEST: ABOVE})
    assert (both.verdict, both.generalizes) == ("supported", False)  # one of the two does not
    for none in ({COARSE: ABOVE}, {COARSE: effect(-0.3, 0.1, (-0.4, -0.05))}, {}):
        assert not claims.fine_beats_coarse(STUDY, none).generalizes


def test_what_leaves_out_tasks_says_nothing_of_other_datasets() -> None:
    shares = [Interval(0.7, 0.6, 0.8, 18, 3, over=name) for name in ("source", "task", "id")]
    found = [claims.early_fall(STUDY, share, 20) for share in shares]
    assert [verdict.verdict for verdict in found] == ["supported"] * 3
    assert [verdict.generalizes for verdict in found] == [True, False, False]


def test_only_the_suite_has_twins() -> None:
    own = claims.near_duplicates(parameters(test_dataset="pocket", seeds=3), {})
    assert own.verdict == "not tested at this scale"


@pytest.mark.parametrize(
    ("larger", "chosen", "ordered", "verdict"),
    [
        ((ABOVE, ABOVE), (BELOW, BELOW), (AROUND, AROUND), "supported"),
        ((ABOVE, ABOVE), (BELOW, AROUND), (AROUND, AROUND), "inconclusive"),
        ((BELOW, AROUND), (AROUND, AROUND), (ABOVE, AROUND), "not supported"),
        ((BELOW, AROUND), (BELOW, BELOW), (AROUND, ABOVE), "inconclusive"),
        ((AROUND, ABOVE), (BELOW, BELOW), (BELOW, BELOW), "inconclusive"),
    ],
)
def test_the_larger_effect_has_to_be_there(
    larger: Pair, chosen: Pair, ordered: Pair, verdict: str
) -> None:
    readings = ("area", "final")
    one, two, three = (dict(zip(readings, pair, strict=True)) for pair in (larger, chosen, ordered))
    found = claims.selection_over_order(STUDY, one, two, three, 920)
    assert (found.claim, found.verdict) == ("order against selection", verdict)
    # 8 steps of 4 instances take all of 32: MIN and MAX are the same.
    for pool, said in ((32, "not tested at this scale"), (33, verdict)):
        assert claims.selection_over_order(STUDY, one, two, three, pool).verdict == said


def test_a_study_of_one_seed_decides_nothing() -> None:
    study, one = parameters(), {"area": BELOW}
    for found in (
        claims.early_fall(study, Interval(0.7, 0.6, 0.8, 18, 1), 20),
        claims.steady_loss(study, {"rouge1": interval(0.1, 0.3)}),
        claims.falls_with_distance(study, correlation(0.5, (-0.2, 0.2))),
        claims.similar_first(study, {NEAREST: BELOW, FARTHEST: ABOVE}),
        claims.fine_beats_coarse(study, {COARSE: ABOVE}),
        claims.order_of_rounds(study, turned(BELOW, ABOVE), KINDS),
        claims.earlier_rounds(study, {BLOCK: ABOVE}, [BLOCK]),
        claims.by_instance(study, correlation(0.5, (-0.2, 0.2)), {}),
        claims.selection_over_order(study, {"area": ABOVE}, one, one, 920),
        claims.near_duplicates(study, {arms.TWINS: BELOW}),
        claims.rule_within_round(study, {RULE: BELOW}),
    ):
        assert found.verdict == "inconclusive"
        assert found.measure.endswith("; one seed decides nothing")
    nothing = claims.fine_beats_coarse(study, {COARSE: effect(math.nan, math.nan)})
    assert (nothing.verdict, nothing.estimate) == ("not tested at this scale", None)
    assert nothing.measure.endswith("nats a token: no value")
