"""What each claim is judged by, and on which side it lies."""

from __future__ import annotations

from dataclasses import replace

import pytest

import tma
from tma import claims, verdicts
from tma.association import Association
from tma.bootstrap import Interval

STUDY = tma.study_settings({"model": "llama", "scale": "pocket", "output_dir": "out"})
BELOW, ABOVE = Interval(-0.2, -0.3, -0.1, 18, 3), Interval(0.2, 0.1, 0.3, 18, 3)
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
    found = verdicts.survives(STUDY, gains)
    assert (found.verdict, found.low) == ("inconclusive", -0.1)
    assert found.measure.startswith("NFT − RT, similarity below 0.8: mean loss along the way")
    assert verdicts.survives(STUDY, {0.9: BELOW, 0.43: ABOVE}).verdict == "supported"
    none = verdicts.survives(STUDY, {0.43: BELOW})
    assert (none.verdict, none.estimate) == ("not tested at this scale", None)


def test_the_larger_effect_has_to_be_there() -> None:
    around = interval(-0.3, 0.1)

    def judged(larger: Interval, chosen: Interval, ordered: Interval, pool: int = 920) -> str:
        effects = {"area": larger}, {"area": chosen}, {"area": ordered}
        found = verdicts.selection(STUDY, *effects, pool)
        assert found.claim == "order against selection"
        return found.verdict

    assert judged(ABOVE, BELOW, around) == "supported"
    assert judged(ABOVE, around, around) == "inconclusive"
    assert judged(BELOW, around, ABOVE) == "not supported"
    assert judged(BELOW, BELOW, around) == "inconclusive"
    # 8 steps of 4 instances take all of 32: MIN and MAX are the same.
    assert judged(ABOVE, BELOW, around, pool=32) == "not tested at this scale"
    assert judged(ABOVE, BELOW, around, pool=33) == "supported"


def test_one_seed_decides_nothing() -> None:
    study = replace(STUDY, seeds=1)
    effect = {"area": BELOW}
    for found in (
        verdicts.fine(study, BELOW),
        verdicts.fine(study, ABOVE),
        verdicts.rules(study, {"each": BELOW}),
        verdicts.selection(study, {"area": ABOVE}, effect, effect, 920),
    ):
        assert found.verdict == "inconclusive"
        assert found.measure.endswith("; one seed decides nothing")
    assert verdicts.steady(study, {}).verdict == "not tested at this scale"


def test_a_claim_belongs_to_one_notebook() -> None:
    assert set(claims.NOTEBOOKS) == set(claims.CLAIMS)
    assert verdicts.similar_first(STUDY, BELOW, ABOVE).notebook == "02_similarity"
    assert verdicts.survives(STUDY, {}).notebook == "04_tma"
