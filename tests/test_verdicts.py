"""What each claim is judged by, and on which side it lies."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

import tma
from tma import claims, verdicts
from tma.association import Association
from tma.intervals import Interval

STUDY = tma.study_settings({"model": "llama", "scale": "pocket", "output_dir": "out"})
BELOW, ABOVE = Interval(-0.2, -0.3, -0.1, 18, 3), Interval(0.2, 0.1, 0.3, 18, 3)
Pair = tuple[Interval, Interval]
NFT, FFT = "NFT − RT, with labels", "FFT − RT, with labels"


def interval(low: float, high: float) -> Interval:
    return Interval((low + high) / 2, low, high, 10, 1)


def correlation(estimate: float, baseline: tuple[float, float]) -> Association:
    """With an interval of 0.1 on either side."""
    return Association(
        estimate=estimate,
        low=estimate - 0.1,
        high=estimate + 0.1,
        n=18,
        seeds=3,
        baseline_low=baseline[0],
        baseline_high=baseline[1],
        p=0.5,
    )


def test_metrics_that_move_are_all_less_steady_than_the_loss() -> None:
    found = verdicts.steady(STUDY, {"rouge1": interval(0.1, 0.3), "rougeL": interval(0.05, 0.3)})
    assert (found.claim, found.verdict, found.low) == ("C2", "supported", 0.05)
    assert found.measure.startswith("rougeL: backward share of its movement")
    still = verdicts.steady(STUDY, {})
    assert (still.verdict, still.measure) == (
        "not tested at this scale",
        "no metric but the loss moves",
    )


def test_a_twentieth_of_the_steps_has_to_be_a_step() -> None:
    shares = {0.05: Interval(0.7, 0.6, 0.8, 18, 3), 0.1: Interval(0.8, 0.7, 0.9, 18, 3)}
    found = verdicts.early(STUDY, shares, 20)
    assert (found.estimate, found.low, found.verdict) == (
        pytest.approx(0.2),
        pytest.approx(0.1),
        "supported",
    )
    late = verdicts.early(STUDY, shares, 19)
    assert (late.verdict, late.estimate) == ("not tested at this scale", None)
    assert late.measure == "5 % of 19 steps are less than one step"


@pytest.mark.parametrize(
    ("found", "claim", "verdict"),
    [
        (verdicts.similar_first(STUDY, BELOW, ABOVE), "C4", "supported"),
        (verdicts.similar_first(STUDY, ABOVE, ABOVE), "C4", "not supported"),
        (verdicts.fine(STUDY, BELOW), "C5", "supported"),
        (verdicts.fine(STUDY, ABOVE), "C5", "not supported"),
        (verdicts.turns(STUDY, {NFT: BELOW, FFT: ABOVE}), "C6", "supported"),
        (verdicts.turns(STUDY, {NFT: BELOW, FFT: BELOW}), "C6", "not supported"),
        (verdicts.earlier_rounds(STUDY, {"rounds[5:10]": ABOVE}), "C7", "supported"),
        (verdicts.earlier_rounds(STUDY, {"rounds[5:10]": BELOW}), "C7", "not supported"),
        (
            verdicts.rules(STUDY, {"each": BELOW, "sorted": interval(-1, 1)}),
            "collision and within-round rules",
            "supported",
        ),
    ],
)
def test_the_side_of_zero_that_a_claim_means(
    found: claims.Verdict, claim: str, verdict: str
) -> None:
    assert (found.claim, found.verdict) == (claim, verdict)


def test_a_correlation_has_to_exceed_what_chance_gives_it() -> None:
    shown = verdicts.by_instance(STUDY, correlation(0.5, (-0.2, 0.2)))
    assert (shown.claim, shown.verdict, shown.low) == ("C8", "supported", 0.3)
    chance = verdicts.by_instance(STUDY, correlation(0.5, (-0.1, 0.6)))
    assert (chance.verdict, chance.measure[:15]) == ("inconclusive", "minus permuted:")
    # 0.5 lies 0.1 below the upper and 0.6 above the lower end of what chance gives.
    assert (chance.estimate, chance.low, chance.high) == pytest.approx((0.25, -0.1, 0.6))
    steps = verdicts.together(STUDY, correlation(-0.5, (-0.2, 0.2)))
    assert (steps.claim, steps.verdict) == ("C3", "not supported")
    wide = verdicts.together(STUDY, correlation(0.05, (-0.01, 0.01)))
    assert (wide.verdict, wide.measure[:12]) == ("inconclusive", "as measured:")


def test_near_duplicates_are_tested_where_there_are_some() -> None:
    gains = {0.95: BELOW, 0.8: interval(-0.1, 0.1), 0.43: ABOVE}  # the last is no near-duplicate
    found = verdicts.survives(STUDY, gains, 5)
    assert (found.verdict, found.low) == ("inconclusive", -0.1)
    assert found.measure.startswith("NFT − RT, similarity below 0.8: mean loss along the way")
    assert verdicts.survives(STUDY, {0.9: BELOW, 0.43: ABOVE}, 5).verdict == "supported"
    none = verdicts.survives(STUDY, {0.43: BELOW}, 0)
    assert (none.verdict, none.estimate) == ("not tested at this scale", None)
    assert none.measure == "no training instance is nearly a copy of a test instance"
    most = verdicts.survives(STUDY, {0.97: BELOW}, 600)
    assert most.verdict == "not tested at this scale"
    assert most.measure.startswith("more than half of the training instances are nearly copies")


AROUND = interval(-0.3, 0.1)


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
    found = verdicts.selection(STUDY, one, two, three, 920)
    assert (found.claim, found.verdict) == ("order against selection", verdict)
    # 8 steps of 4 instances take all of 32: MIN and MAX are the same.
    for pool, said in ((32, "not tested at this scale"), (33, verdict)):
        assert verdicts.selection(STUDY, one, two, three, pool).verdict == said


def test_a_study_of_one_seed_decides_nothing() -> None:
    study, effect = replace(STUDY, seeds=1), {"area": BELOW}
    shares = {0.05: Interval(0.7, 0.6, 0.8, 18, 1)}
    for found in (
        verdicts.early(study, shares, 20),
        verdicts.steady(study, {"rouge1": ABOVE}),
        verdicts.together(study, correlation(0.5, (-0.2, 0.2))),
        verdicts.similar_first(study, BELOW, ABOVE),
        verdicts.fine(study, ABOVE),
        verdicts.turns(study, {NFT: BELOW, FFT: ABOVE}),
        verdicts.earlier_rounds(study, {"rounds[5:10]": ABOVE}),
        verdicts.by_instance(study, correlation(0.5, (-0.2, 0.2))),
        verdicts.selection(study, {"area": ABOVE}, effect, effect, 920),
        verdicts.survives(study, {0.9: BELOW}, 5),
        verdicts.rules(study, {"each": BELOW}),
    ):
        assert found.verdict == "inconclusive"
        assert found.measure.endswith("; one seed decides nothing")
    assert verdicts.steady(study, {}).measure == "no metric but the loss moves"
    without = Interval(math.nan, -math.inf, math.inf, 18, 1)
    assert verdicts.fine(study, without).measure.endswith("nats a token: no value")
    # Orders without chance of all the data have one run for all seeds of a study.
    assert verdicts.fine(STUDY, replace(BELOW, seeds=1)).verdict == "supported"


def test_a_claim_belongs_to_one_notebook() -> None:
    assert set(claims.NOTEBOOKS) == set(claims.CLAIMS)
    assert verdicts.similar_first(STUDY, BELOW, ABOVE).notebook == "02_similarity"
    assert verdicts.survives(STUDY, {}, 0).notebook == "04_tma"
