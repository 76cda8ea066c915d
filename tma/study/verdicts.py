"""One verdict a claim: what is compared, by what number, and on which side the claim puts it.

Each takes the parameters of the notebook, and what the other modules of `tma.study` found;
`tma.study.claims` decides. Differences are found by name: one that is not there has runs that have
not been made yet, and its claim is not decided. A study of one seed decides nothing: its intervals
say nothing about others, whose choice may matter more than what is compared. (Orders without chance
of all the data, as at scale `paper`, are the same for every seed, and run once.)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

from tma.study.claims import Judged, Verdict, judge_all, judge_any, tested, undecided, untested
from tma.study.effects import Effect
from tma.study.exposure import Association
from tma.study.intervals import Interval
from tma.study.settings import StudyConfig

ALONG = "mean loss along the way, nats a token"
FINAL = "final loss, nats a token"
Effects = Mapping[str, Effect]


def early(study: StudyConfig, share: Interval, steps: int) -> Verdict:
    """Return the verdict on C1, tested as: more than half of the fall in a twentieth of the steps.

    Args:
        study: parameters of the notebook.
        share: share of the fall reached by then.
        steps: steps trained; a twentieth of fewer than 20 is no step, and is not tested.
    """
    if 0.05 * steps < 1:
        return untested("C1", f"5 % of {steps} steps are less than one step")
    half = {"after 5 % of the steps": share.minus(0.5)}
    return _by_datasets("C1", study, "share of the fall of the loss, minus 1/2", half, "positive")


def steady(study: StudyConfig, rougher: Mapping[str, Interval]) -> Verdict:
    """Return the verdict on C2: every metric that moves does so less steadily than the loss.

    Args:
        study: parameters of the notebook.
        rougher: metric → its roughness minus that of the loss, from `scores.roughness`.
    """
    if not rougher:
        return untested("C2", "no metric but the loss moves")
    measure = "share of its movement that no single turn makes, minus that of the loss"
    return _by_datasets("C2", study, measure, rougher, "positive")


def together(study: StudyConfig, match: Association) -> Verdict:
    """Return the verdict on C3: under cluster order loss and distance fall together.

    Args:
        study: parameters of the notebook.
        match: from `exposure.step_match`, of runs in cluster order. It has to be larger than
            permuted tasks give it, too.
    """
    measure = "correlation of the falls of loss and distance over test tasks (n), cluster order"
    return _by_datasets("C3", study, measure, match.parts, "positive")


def similar_first(study: StudyConfig, final: Effects) -> Verdict:
    """Return the verdict on C4: nearest-first ends below random order, farthest-first above.

    Args:
        study: parameters of the notebook.
        final: differences of final loss, "nearest − random" and "farthest − random" among them.
    """
    sides = {"nearest − random": "negative", "farthest − random": "positive"}
    return _all("C4", study, FINAL, final, sides)


def fine(study: StudyConfig, final: Effects) -> Verdict:
    """Return the verdict on C5: single instances nearest first end below whole tasks.

    Args:
        study: parameters of the notebook.
        final: differences of final loss, "nearest − coarse nearest" among them.
    """
    return _all("C5", study, FINAL, final, {"nearest − coarse nearest": "negative"})


def turns(study: StudyConfig, along: Effects, kinds: Iterable[str]) -> Verdict:
    """Return the verdict on C6: along the way NFT lies below RT and FFT above.

    By the paper's rule within a round and shuffled, with task labels and without.

    Args:
        study: parameters of the notebook.
        along: differences of the mean loss along the way, named as `turn_pairs` does.
        kinds: how data is split, in words: the keys of `StudyConfig.kinds`.
    """
    claimed = {"NFT": "negative", "FFT": "positive"}
    sides = {name: claimed[order] for name, (order, *_) in turn_pairs(kinds).items()}
    return _all("C6", study, ALONG, along, sides)


def turn_pairs(kinds: Iterable[str]) -> dict[str, tuple[str, str, str]]:
    """Return the differences that C6 needs: name → NFT or FFT, rule within a round, kind."""
    return {
        f"{order}{rule} − RT, {kind}": (order, rule, kind)
        for kind in kinds
        for rule in ("", " shuffled in rounds")
        for order in ("NFT", "FFT")
    }


def earlier_rounds(study: StudyConfig, final: Effects, later: Iterable[str]) -> Verdict:
    """Return the verdict on C7: the earliest rounds alone end below each later block.

    Args:
        study: parameters of the notebook.
        final: differences of final loss, later block minus earliest.
        later: the names that are needed among them.
    """
    return _all("C7", study, FINAL, final, dict.fromkeys(later, "positive"))


def by_instance(study: StudyConfig, found: Association) -> Verdict:
    """Return the verdict on C8: an instance's loss falls most after what is most similar to it.

    Args:
        study: parameters of the notebook.
        found: from `exposure.of_runs`. It has to be larger than permuted instances give it, too.
    """
    measure = "correlation of the fall of loss with the similarity just seen, all orders"
    return _by_datasets("C8", study, measure, found.parts, "positive")


def selection(
    study: StudyConfig, larger: Effects, chosen: Effects, ordered: Effects, pool: int
) -> Verdict:
    """Return the verdict on order against selection: what is selected changes the loss more.

    Chance makes the effect that varies more look larger: an effect is the larger one only if it is
    there at all.

    Args:
        study: parameters of the notebook.
        larger: final and area → the size of the effect of selection minus that of order, from
            `effects.outweighs`.
        chosen: the same → the effect of selection, MAX minus MIN, both shuffled.
        ordered: the same → the effect of order, FFT minus NFT, shuffled within rounds.
        pool: instances to select from; where an order takes them all, nothing is selected.
    """
    claim = "order against selection"
    if study.limit >= pool:
        return untested(claim, f"an order takes all {pool} instances that there are")
    if not larger:
        return _missing(claim, ["MIN and MAX shuffled, NFT and FFT shuffled in rounds"])
    judged = judge_all({name: (found.tasks, "positive") for name, found in larger.items()})
    if judged.verdict == "supported":
        there = all(found.tasks.clear for found in chosen.values())
    else:
        wide = {name: found.tasks.among(len(larger)) for name, found in larger.items()}
        there = any(ordered[name].tasks.clear for name, gap in wide.items() if gap.high < 0)
    judged = judged if there else replace(judged, verdict="inconclusive")
    others = judge_all({name: (found.datasets, "positive") for name, found in larger.items()})
    others = replace(others, interval=larger[judged.label].datasets)
    return _said(claim, study, "|MAX − MIN| − |FFT − NFT|, nats a token", judged, others)


def contamination(study: StudyConfig, along: Effects) -> Verdict:
    """Return the verdict on near-duplicates: nearest-first gains with the share of twins.

    Args:
        study: parameters of the notebook.
        along: differences of the mean loss along the way; "NFT − RT: with all twins minus without"
            among them.
    """
    claim = "near-duplicates"
    if not study.suits({"twins": 1.0}):
        return untested(claim, "only the built-in suite has the same row under two templates")
    return _all(claim, study, ALONG, along, {TWINS: "negative"})


TWINS = "NFT − RT: with all twins minus without"
"""Name of the difference that near-duplicates are judged by."""


def rule(study: StudyConfig, along: Effects) -> Verdict:
    """Return the verdict on the rule within a round: it changes the loss.

    Args:
        study: parameters of the notebook.
        along: differences of the mean loss along the way; "NFT − NFT shuffled in rounds" is judged.
    """
    claim, name = "rule within a round", "NFT − NFT shuffled in rounds"
    if name not in along:
        return _missing(claim, [name])
    judged, others = (judge_any({name: i}) for i in (along[name].tasks, along[name].datasets))
    return _said(claim, study, ALONG, judged, others)


def _all(
    claim: str, study: StudyConfig, measure: str, found: Effects, sides: Mapping[str, str]
) -> Verdict:
    """Return the verdict on a claim that puts these differences on these sides of zero."""
    missing = [name for name in sides if name not in found]
    if missing:
        return _missing(claim, missing)
    judged = judge_all({name: (found[name].tasks, side) for name, side in sides.items()})
    others = judge_all({name: (found[name].datasets, side) for name, side in sides.items()})
    others = replace(others, interval=found[judged.label].datasets)
    return _said(claim, study, measure, judged, others)


def _by_datasets(
    claim: str, study: StudyConfig, measure: str, parts: Mapping[str, Interval], side: str
) -> Verdict:
    """Return the verdict on numbers whose interval is for tasks of other datasets."""
    judged = judge_all({name: (interval, side) for name, interval in parts.items()})
    return _said(claim, study, measure, judged, judged)


def _missing(claim: str, names: Iterable[str]) -> Verdict:
    return undecided(claim, f"not made yet: {', '.join(names)}")


def _said(claim: str, study: StudyConfig, measure: str, judged: Judged, others: Judged) -> Verdict:
    """Return the verdict; an undecided one where one seed was asked for, or nothing tells how far
    seeds differ.
    """
    found = judged.interval
    if study.is_published and math.isfinite(found.estimate) and not math.isfinite(found.low):
        return undecided(claim, f"not made yet: repeated folds (arm 1b), for {judged.label}")
    if study.seeds < 2 and math.isfinite(found.estimate):
        judged = replace(judged, verdict="inconclusive")
        measure += "; one seed decides nothing"
    generalizes = others.verdict == "supported"
    return tested(claim, measure, judged, others.interval, generalizes=generalizes)
