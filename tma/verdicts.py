"""One verdict a claim: what is compared, by what number, and on which side the claim puts it.

Each takes the name of the notebook, such as 04_tma, and intervals of `tma.statistics`,
`tma.scores` or `tma.association`; `tma.claims` decides.
"""

from __future__ import annotations

from collections.abc import Mapping

from tma.association import Association
from tma.bootstrap import Interval
from tma.claims import Verdict, judge_all, judge_any, tested, untested

ALONG = "mean loss along the way, nats a token"
FINAL = "final loss, nats a token"


def early(notebook: str, shares: Mapping[float, Interval], steps: int) -> Verdict:
    """Return the verdict on C1, tested as: more than half of the fall in a twentieth of the steps.

    Args:
        notebook: name of the notebook.
        shares: share of the steps → share of the fall reached by then, 0.05 among them.
        steps: steps trained; a twentieth of fewer than 20 is no step, and is not tested.
    """
    if 0.05 * steps < 1:
        return untested("C1", notebook, f"5 % of {steps} steps are less than one step")
    half = {"after 5 % of the steps": shares[0.05].minus(0.5)}
    return _all("C1", notebook, "share of the fall of the loss, minus 1/2", half, "positive")


def steady(notebook: str, rougher: Mapping[str, Interval]) -> Verdict:
    """Return the verdict on C2: every metric that moves does so less steadily than the loss.

    Args:
        notebook: name of the notebook.
        rougher: metric → its roughness minus that of the loss, from `scores.roughness`.
    """
    if not rougher:
        return untested("C2", notebook, "no metric but the loss moves")
    measure = "backward share of its movement, minus that of the loss"
    return _all("C2", notebook, measure, rougher, "positive")


def together(notebook: str, match: Association) -> Verdict:
    """Return the verdict on C3: under cluster order loss and distance fall together.

    Args:
        notebook: name of the notebook.
        match: from `association.step_match`, of runs in cluster order. It has to be larger than
            permuted tasks give it, too.
    """
    measure = "correlation of the falls of loss and distance over test tasks (n), cluster order"
    return _all("C3", notebook, measure, match.parts, "positive")


def similar_first(notebook: str, nearest: Interval, farthest: Interval) -> Verdict:
    """Return the verdict on C4: nearest-first ends below random order, farthest-first above.

    Args:
        notebook: name of the notebook.
        nearest: final loss of nearest-first minus that of random order.
        farthest: the same of farthest-first.
    """
    sides = {"nearest first": (nearest, "negative"), "farthest first": (farthest, "positive")}
    return tested("C4", notebook, "final loss minus random, nats a token", judge_all(sides))


def fine(notebook: str, gap: Interval) -> Verdict:
    """Return the verdict on C5: single instances nearest first end below whole tasks.

    Args:
        notebook: name of the notebook.
        gap: final loss of the fine order minus that of the coarse one.
    """
    measure = "final loss, fine minus coarse, nats a token"
    return _all("C5", notebook, measure, {"nearest first": gap}, "negative")


def turns(notebook: str, gaps: Mapping[str, Interval]) -> Verdict:
    """Return the verdict on C6: along the way NFT lies below RT and FFT above.

    Args:
        notebook: name of the notebook.
        gaps: name that begins with NFT or FFT → area of its curve minus that of RT.
    """
    claimed = {"NFT": "negative", "FFT": "positive"}
    sides = {name: (gap, claimed[name[:3]]) for name, gap in gaps.items()}
    return tested("C6", notebook, ALONG, judge_all(sides))


def earlier_rounds(notebook: str, gaps: Mapping[str, Interval]) -> Verdict:
    """Return the verdict on C7: the earliest rounds alone end below each later block.

    Args:
        notebook: name of the notebook.
        gaps: name of a later block → its final loss minus that of the earliest.
    """
    return _all("C7", notebook, FINAL, gaps, "positive")


def by_instance(notebook: str, found: Association) -> Verdict:
    """Return the verdict on C8: an instance's loss falls most after what is most similar to it.

    Args:
        notebook: name of the notebook.
        found: from `association.association`. It has to be larger than permuted instances give it,
            too.
    """
    measure = "correlation of the fall of loss with the similarity just seen, all orders"
    return _all("C8", notebook, measure, found.parts, "positive")


def selection(notebook: str, larger: Mapping[str, Interval]) -> Verdict:
    """Return the verdict on order against selection: what is selected changes the loss more.

    Args:
        notebook: name of the notebook.
        larger: reading → the size of the effect of selection minus that of order.
    """
    measure = "|MAX − MIN| − |FFT − NFT|, nats a token"
    return _all("order against selection", notebook, measure, larger, "positive")


def survives(notebook: str, gains: Mapping[float, Interval], copies: int) -> Verdict:
    """Return the verdict on near-duplicates: nearest-first stays ahead when none is trained on.

    Args:
        notebook: name of the notebook.
        gains: similarity from which training instances are left out → area of the curve of NFT
            minus that of RT; the lowest decides.
        copies: training instances that are nearly a copy of a test instance. Without one there is
            none to leave out, and what else is left out does not answer the question.
    """
    if not copies:
        why = "no training instance is nearly a copy of a test instance"
        return untested("near-duplicates", notebook, why)
    strictest = min(gains)
    least = {f"NFT − RT, similarity below {strictest}": gains[strictest]}
    return _all("near-duplicates", notebook, ALONG, least, "negative")


def rules(notebook: str, gaps: Mapping[str, Interval]) -> Verdict:
    """Return the verdict on the rules for collisions and within a round: one changes the loss.

    Args:
        notebook: name of the notebook.
        gaps: name of a rule → area of the curve of NFT under it minus that of NFT.
    """
    return tested("collision and within-round rules", notebook, ALONG, judge_any(gaps))


def _all(
    claim: str, notebook: str, measure: str, parts: Mapping[str, Interval], side: str
) -> Verdict:
    """Return the verdict on a claim that puts all of these on one side of zero."""
    judged = judge_all({name: (interval, side) for name, interval in parts.items()})
    return tested(claim, notebook, measure, judged)
