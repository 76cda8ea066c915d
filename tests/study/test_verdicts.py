"""What each claim is judged by, and on which side it lies."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from tma.study.intervals import Interval

import tma
from tma.study import claims, verdicts
from tma.study.effects import Effect
from tma.study.exposure import Association

STUDY = tma.study_settings({"model": "llama", "scale": "pocket", "output_dir": "out"})
PUBLISHED = tma.study_settings({"model": None, "scale": "study", "output_dir": "out"})


def effect(low: float, high: float, others: tuple[float, float] = (-1, 1)) -> Effect:
    own = Interval((low + high) / 2, low, high, 18, 3)
    return Effect(own, replace(own, low=others[0], high=others[1]), (0, 0), 0, 0, 0, None)


BELOW, ABOVE, AROUND = effect(-0.3, -0.1, (-0.4, -0.05)), effect(0.1, 0.3), effect(-0.3, 0.1)
Pair = tuple[Effect, Effect]
KINDS = ("with labels", "without labels")


def turned(nft: Effect, fft: Effect) -> dict[str, Effect]:
    """Differences by the paper's rule and shuffled, with labels and without."""
    sides = {"NFT": nft, "FFT": fft}
    return {name: sides[order] for name, (order, *_) in verdicts.turn_pairs(KINDS).items()}


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
    assert found.measure.startswith("rougeL: share of its movement that no single turn makes")
    still = verdicts.steady(STUDY, {})
    assert (still.verdict, still.measure) == (
        "not tested at this scale",
        "no metric but the loss moves",
    )


def test_a_twentieth_of_the_steps_has_to_be_a_step() -> None:
    share = Interval(0.7, 0.6, 0.8, 18, 3)
    found = verdicts.early(STUDY, share, 20)
    assert (found.estimate, found.low, found.verdict) == (
        pytest.approx(0.2),
        pytest.approx(0.1),
        "supported",
    )
    late = verdicts.early(STUDY, share, 19)
    assert (late.verdict, late.estimate) == ("not tested at this scale", None)
    assert late.measure == "5 % of 19 steps are less than one step"


NEAREST, FARTHEST = "nearest − random", "farthest − random"
COARSE, BLOCK = "nearest − coarse nearest", "tma_rounds[5:10] − tma_rounds[0:5]"
RULE = "NFT − NFT shuffled in rounds"


@pytest.mark.parametrize(
    ("found", "claim", "verdict"),
    [
        (
            verdicts.similar_first(STUDY, {NEAREST: BELOW, FARTHEST: ABOVE, "x": AROUND}),
            "C4",
            "supported",
        ),
        (verdicts.similar_first(STUDY, {NEAREST: ABOVE, FARTHEST: ABOVE}), "C4", "not supported"),
        (verdicts.fine(STUDY, {COARSE: BELOW}), "C5", "supported"),
        (verdicts.fine(STUDY, {COARSE: ABOVE}), "C5", "not supported"),
        (verdicts.turns(STUDY, turned(BELOW, ABOVE), KINDS), "C6", "supported"),
        (verdicts.turns(STUDY, turned(BELOW, BELOW), KINDS), "C6", "not supported"),
        (verdicts.earlier_rounds(STUDY, {BLOCK: ABOVE}, [BLOCK]), "C7", "supported"),
        (verdicts.earlier_rounds(STUDY, {BLOCK: BELOW}, [BLOCK]), "C7", "not supported"),
        (verdicts.rule(STUDY, {RULE: BELOW}), "rule within a round", "supported"),
        (verdicts.rule(STUDY, {RULE: AROUND}), "rule within a round", "inconclusive"),
        (verdicts.contamination(STUDY, {verdicts.TWINS: BELOW}), "near-duplicates", "supported"),
        (verdicts.fine(STUDY, {}), "C5", "not decided yet"),
        (verdicts.rule(STUDY, {}), "rule within a round", "not decided yet"),
        (verdicts.selection(STUDY, {}, {}, {}, 920), "order against selection", "not decided yet"),
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


def test_what_has_not_been_made_is_named() -> None:
    along = turned(BELOW, ABOVE)
    del along["NFT shuffled in rounds − RT, without labels"]
    found = verdicts.turns(STUDY, along, KINDS)
    assert (found.verdict, found.estimate) == ("not decided yet", None)
    assert found.measure == "not made yet: NFT shuffled in rounds − RT, without labels"
    # With labels alone, as where the data has none, all are there.
    assert verdicts.turns(STUDY, along, KINDS[:1]).verdict == "supported"


def test_the_published_study_waits_for_repeated_folds() -> None:
    endless = effect(-math.inf, math.inf)
    unknown = replace(endless, tasks=replace(endless.tasks, estimate=-0.2))
    found = verdicts.fine(PUBLISHED, {COARSE: unknown})
    assert (found.verdict, found.estimate) == ("not decided yet", None)
    assert found.measure == f"not made yet: repeated folds (arm 1b), for {COARSE}"
    assert verdicts.fine(STUDY, {COARSE: unknown}).verdict == "inconclusive"


def test_whether_it_generalizes_is_said_by_the_other_interval() -> None:
    found = verdicts.fine(STUDY, {COARSE: BELOW})
    assert (found.others_low, found.others_high, found.generalizes) == (-0.4, -0.05, True)
    assert not verdicts.fine(STUDY, {COARSE: ABOVE}).generalizes
    assert not verdicts.fine(STUDY, {COARSE: effect(-0.3, 0.1, (-0.4, -0.05))}).generalizes
    both = verdicts.similar_first(STUDY, {NEAREST: BELOW, FARTHEST: ABOVE})
    assert (both.verdict, both.generalizes) == ("supported", False)  # one of the two does not
    assert not verdicts.fine(STUDY, {}).generalizes


def test_only_the_suite_has_twins(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"prompt": "a", "response": "b"}\n')
    own = verdicts.contamination(replace(STUDY, dataset=str(path)), {})
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
    found = verdicts.selection(STUDY, one, two, three, 920)
    assert (found.claim, found.verdict) == ("order against selection", verdict)
    # 8 steps of 4 instances take all of 32: MIN and MAX are the same.
    for pool, said in ((32, "not tested at this scale"), (33, verdict)):
        assert verdicts.selection(STUDY, one, two, three, pool).verdict == said


def test_a_study_of_one_seed_decides_nothing() -> None:
    study, one = replace(STUDY, seeds=1), {"area": BELOW}
    for found in (
        verdicts.early(study, Interval(0.7, 0.6, 0.8, 18, 1), 20),
        verdicts.steady(study, {"rouge1": interval(0.1, 0.3)}),
        verdicts.together(study, correlation(0.5, (-0.2, 0.2))),
        verdicts.similar_first(study, {NEAREST: BELOW, FARTHEST: ABOVE}),
        verdicts.fine(study, {COARSE: ABOVE}),
        verdicts.turns(study, turned(BELOW, ABOVE), KINDS),
        verdicts.earlier_rounds(study, {BLOCK: ABOVE}, [BLOCK]),
        verdicts.by_instance(study, correlation(0.5, (-0.2, 0.2))),
        verdicts.selection(study, {"area": ABOVE}, one, one, 920),
        verdicts.contamination(study, {verdicts.TWINS: BELOW}),
        verdicts.rule(study, {RULE: BELOW}),
    ):
        assert found.verdict == "inconclusive"
        assert found.measure.endswith("; one seed decides nothing")
    assert verdicts.steady(study, {}).measure == "no metric but the loss moves"
    without = effect(math.nan, math.nan)
    assert verdicts.fine(study, {COARSE: without}).measure.endswith("nats a token: no value")


def test_a_claim_belongs_to_one_notebook() -> None:
    assert set(claims.NOTEBOOKS) == set(claims.CLAIMS)
    assert verdicts.fine(STUDY, {}).notebook == "03_granularity"
    assert verdicts.rule(STUDY, {}).notebook == "04_tma"
