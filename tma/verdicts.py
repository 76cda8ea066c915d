"""One verdict a claim: what is compared, by what number, and on which side the claim puts it.

Each takes the parameters of the notebook, and intervals of `tma.statistics`, `tma.scores` or
`tma.association`; `tma.claims` decides. A study of one seed decides nothing: its intervals say
nothing about others, whose choice may matter more than what is compared. (Orders without chance of
all the data, as at scale `paper`, are the same for every seed, and run once.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from tma.association import Association
from tma.claims import Judged, Verdict, judge_all, judge_any, tested, untested
from tma.intervals import Interval
from tma.study import StudyConfig

ALONG = "mean loss along the way, nats a token"
FINAL = "final loss, nats a token"


def early(study: StudyConfig, shares: Mapping[float, Interval], steps: int) -> Verdict:
    """Return the verdict on C1, tested as: more than half of the fall in a twentieth of the steps.

    Args:
        study: parameters of the notebook.
        shares: share of the steps → share of the fall reached by then, 0.05 among them.
        steps: steps trained; a twentieth of fewer than 20 is no step, and is not tested.
    """
    if 0.05 * steps < 1:
        return untested("C1", f"5 % of {steps} steps are less than one step")
    half = {"after 5 % of the steps": shares[0.05].minus(0.5)}
    return _all("C1", study, "share of the fall of the loss, minus 1/2", half, "positive")


def steady(study: StudyConfig, rougher: Mapping[str, Interval]) -> Verdict:
    """Return the verdict on C2: every metric that moves does so less steadily than the loss.

    Args:
        study: parameters of the notebook.
        rougher: metric → its roughness minus that of the loss, from `scores.roughness`.
    """
    if not rougher:
        return untested("C2", "no metric but the loss moves")
    measure = "backward share of its movement, minus that of the loss"
    return _all("C2", study, measure, rougher, "positive")


def together(study: StudyConfig, match: Association) -> Verdict:
    """Return the verdict on C3: under cluster order loss and distance fall together.

    Args:
        study: parameters of the notebook.
        match: from `association.step_match`, of runs in cluster order. It has to be larger than
            permuted tasks give it, too.
    """
    measure = "correlation of the falls of loss and distance over test tasks (n), cluster order"
    return _all("C3", study, measure, match.parts, "positive")


def similar_first(study: StudyConfig, nearest: Interval, farthest: Interval) -> Verdict:
    """Return the verdict on C4: nearest-first ends below random order, farthest-first above.

    Args:
        study: parameters of the notebook.
        nearest: final loss of nearest-first minus that of random order.
        farthest: the same of farthest-first.
    """
    sides = {"nearest first": (nearest, "negative"), "farthest first": (farthest, "positive")}
    return _said("C4", study, "final loss minus random, nats a token", judge_all(sides))


def fine(study: StudyConfig, gap: Interval) -> Verdict:
    """Return the verdict on C5: single instances nearest first end below whole tasks.

    Args:
        study: parameters of the notebook.
        gap: final loss of the fine order minus that of the coarse one.
    """
    measure = "final loss, fine minus coarse, nats a token"
    return _all("C5", study, measure, {"nearest first": gap}, "negative")


def turns(study: StudyConfig, gaps: Mapping[str, Interval]) -> Verdict:
    """Return the verdict on C6: along the way NFT lies below RT and FFT above.

    Args:
        study: parameters of the notebook.
        gaps: name that begins with NFT or FFT → area of its curve minus that of RT.
    """
    claimed = {"NFT": "negative", "FFT": "positive"}
    sides = {name: (gap, claimed[name[:3]]) for name, gap in gaps.items()}
    return _said("C6", study, ALONG, judge_all(sides))


def earlier_rounds(study: StudyConfig, gaps: Mapping[str, Interval]) -> Verdict:
    """Return the verdict on C7: the earliest rounds alone end below each later block.

    Args:
        study: parameters of the notebook.
        gaps: name of a later block → its final loss minus that of the earliest.
    """
    return _all("C7", study, FINAL, gaps, "positive")


def by_instance(study: StudyConfig, found: Association) -> Verdict:
    """Return the verdict on C8: an instance's loss falls most after what is most similar to it.

    Args:
        study: parameters of the notebook.
        found: from `association.association`. It has to be larger than permuted instances give it,
            too.
    """
    measure = "correlation of the fall of loss with the similarity just seen, all orders"
    return _all("C8", study, measure, found.parts, "positive")


def selection(
    study: StudyConfig,
    larger: Mapping[str, Interval],
    chosen: Mapping[str, Interval],
    ordered: Mapping[str, Interval],
    pool: int,
) -> Verdict:
    """Return the verdict on order against selection: what is selected changes the loss more.

    Chance makes the effect that varies more look larger: an effect is the larger one only if it is
    there at all.

    Args:
        study: parameters of the notebook.
        larger: reading → the size of the effect of selection minus that of order.
        chosen: reading → the effect of selection, MAX minus MIN.
        ordered: reading → the effect of order, FFT minus NFT.
        pool: instances to select from; where an order takes them all, nothing is selected.
    """
    claim = "order against selection"
    if study.limit >= pool:
        return untested(claim, f"an order takes all {pool} instances that there are")
    judged = judge_all({name: (interval, "positive") for name, interval in larger.items()})
    if judged.verdict == "supported":
        there = all(effect.clear for effect in chosen.values())
    else:
        smaller = [name for name, gap in larger.items() if gap.among(len(larger)).high < 0]
        there = any(ordered[name].clear for name in smaller)
    judged = judged if there else replace(judged, verdict="inconclusive")
    return _said(claim, study, "|MAX − MIN| − |FFT − NFT|, nats a token", judged)


def survives(study: StudyConfig, gains: Mapping[float, Interval], copies: int) -> Verdict:
    """Return the verdict on near-duplicates: nearest-first stays ahead when none is trained on.

    Args:
        study: parameters of the notebook.
        gains: similarity from which training instances are left out → area of the curve of NFT
            minus that of RT. Of those at which an instance is nearly a copy the lowest decides;
            what else is left out does not answer the question.
        copies: training instances that are nearly a copy of a test instance.
    """
    near = [threshold for threshold in gains if threshold in study.base.near_duplicates]
    if not near:
        half = "more than half of the training instances are nearly copies of test instances"
        none = "no training instance is nearly a copy of a test instance"
        return untested("near-duplicates", half if copies else none)
    least = {f"NFT − RT, similarity below {min(near)}": gains[min(near)]}
    return _all("near-duplicates", study, ALONG, least, "negative")


def rules(study: StudyConfig, gaps: Mapping[str, Interval]) -> Verdict:
    """Return the verdict on the rules for collisions and within a round: one changes the loss.

    Args:
        study: parameters of the notebook.
        gaps: name of a rule → area of the curve of NFT under it minus that of NFT.
    """
    return _said("collision and within-round rules", study, ALONG, judge_any(gaps))


def _all(
    claim: str, study: StudyConfig, measure: str, parts: Mapping[str, Interval], side: str
) -> Verdict:
    """Return the verdict on a claim that puts all of these on one side of zero."""
    judged = judge_all({name: (interval, side) for name, interval in parts.items()})
    return _said(claim, study, measure, judged)


def _said(claim: str, study: StudyConfig, measure: str, judged: Judged) -> Verdict:
    """Return the verdict; an undecided one where one seed was asked for."""
    if study.seeds < 2 and math.isfinite(judged.interval.estimate):
        judged = replace(judged, verdict="inconclusive")
        measure += "; one seed decides nothing"
    return tested(claim, measure, judged)
