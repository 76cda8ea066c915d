"""What each claim is judged by, and on which side it lies."""

from __future__ import annotations

import pytest

from tma import claims, verdicts
from tma.association import Association
from tma.bootstrap import Interval

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
    found = verdicts.steady("01", {"rouge1": interval(0.1, 0.3), "rougeL": interval(0.05, 0.3)})
    assert (found.claim, found.verdict, found.low) == ("C2", "supported", 0.05)
    assert found.measure.startswith("rougeL: backward share of its movement")
    still = verdicts.steady("01", {})
    assert (still.verdict, still.measure) == (
        "not tested at this scale",
        "no metric but the loss moves",
    )


def test_a_twentieth_of_the_steps_has_to_be_a_step() -> None:
    shares = {0.05: Interval(0.7, 0.6, 0.8, 18, 3), 0.1: Interval(0.8, 0.7, 0.9, 18, 3)}
    found = verdicts.early("01", shares, 20)
    assert (found.estimate, found.low, found.verdict) == (
        pytest.approx(0.2),
        pytest.approx(0.1),
        "supported",
    )
    late = verdicts.early("01", shares, 19)
    assert (late.verdict, late.estimate) == ("not tested at this scale", None)
    assert late.measure == "5 % of 19 steps are less than one step"


@pytest.mark.parametrize(
    ("found", "claim", "verdict"),
    [
        (verdicts.similar_first("02", BELOW, ABOVE), "C4", "supported"),
        (verdicts.similar_first("02", ABOVE, ABOVE), "C4", "not supported"),
        (verdicts.fine("03", BELOW), "C5", "supported"),
        (verdicts.fine("03", ABOVE), "C5", "not supported"),
        (verdicts.turns("04", {NFT: BELOW, FFT: ABOVE}), "C6", "supported"),
        (verdicts.turns("04", {NFT: BELOW, FFT: BELOW}), "C6", "not supported"),
        (verdicts.earlier_rounds("04", {"rounds[5:10]": ABOVE}), "C7", "supported"),
        (verdicts.earlier_rounds("04", {"rounds[5:10]": BELOW}), "C7", "not supported"),
        (verdicts.selection("04", {"final": ABOVE}), "order against selection", "supported"),
        (verdicts.selection("04", {"final": BELOW}), "order against selection", "not supported"),
        (
            verdicts.rules("04", {"each": BELOW, "sorted": interval(-1, 1)}),
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
    shown = verdicts.by_instance("02", correlation(0.5, (-0.2, 0.2)))
    assert (shown.claim, shown.verdict, shown.low) == ("C8", "supported", 0.3)
    chance = verdicts.by_instance("02", correlation(0.5, (-0.1, 0.6)))
    assert (chance.verdict, chance.measure[:15]) == ("inconclusive", "minus permuted:")
    # 0.5 lies 0.1 below the upper and 0.6 above the lower end of what chance gives.
    assert (chance.estimate, chance.low, chance.high) == pytest.approx((0.25, -0.1, 0.6))
    steps = verdicts.together("02", correlation(-0.5, (-0.2, 0.2)))
    assert (steps.claim, steps.verdict) == ("C3", "not supported")
    wide = verdicts.together("02", correlation(0.05, (-0.01, 0.01)))
    assert (wide.verdict, wide.measure[:12]) == ("inconclusive", "as measured:")


def test_near_duplicates_are_tested_where_there_are_some() -> None:
    gains = {0.95: BELOW, 0.8: interval(-0.1, 0.1)}
    found = verdicts.survives("04", gains, 2)
    assert (found.verdict, found.low) == ("inconclusive", -0.1)
    assert found.measure.startswith("NFT − RT, similarity below 0.8: mean loss along the way")
    assert verdicts.survives("04", {0.9: BELOW}, 1).verdict == "supported"
    none = verdicts.survives("04", gains, 0)
    assert (none.verdict, none.estimate) == ("not tested at this scale", None)
