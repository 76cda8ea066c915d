"""The claims, the verdict on each from its intervals, and all notebooks' verdicts in one list.

Where a difference lacks runs, its claim is not decided yet; one seed decides nothing, since its
intervals say nothing about other seeds. `python -m tma.study.claims out` gathers
`out/*/claims.json` into `out/claims.json`; `… beside LIVE PUBLISHED` sets two such files side by
side.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple

import pandas as pd

from tma.errors import DataError, check_choice
from tma.runs.store import portable
from tma.store import digest, write_json
from tma.study import arms
from tma.study.effects import Effect
from tma.study.exposure import Association
from tma.study.paper import REPORTED
from tma.study.settings import StudyConfig
from tma.study.statistics import Interval, Runs, format_estimate, format_interval, format_range

Side = Literal["negative", "positive"]
Effects = Mapping[str, Effect]
ALONG = "mean loss along the way, nats a token"
FINAL = "final loss, nats a token"

CLAIMS = {
    "C1": "Zero-shot generalization happens very early in instruction tuning: most of the fall of "
    "the loss on unseen tasks comes in the first twentieth of the steps.",
    "C2": "Loss is the stable measure of it; ROUGE, exact match and reward jump from one "
    "evaluation to the next.",
    "C3": "The order of the training data changes it: the loss of a test task drops when similar "
    "training data arrives, as the distance between the data seen and the task does.",
    "C4": "Seeing similar data early helps: nearest-first ends below random, and random below "
    "farthest-first.",
    "C5": "Fine beats coarse: ordering single instances gives a lower loss than ordering whole "
    "tasks.",
    "C6": "Test-centric Multi-turn Arrangement gives a lower loss nearest-first than at random, "
    "and a higher one farthest-first, with and without task labels.",
    "C7": "Rounds that are selected earlier are worth more: training on them alone gives a lower "
    "loss.",
    "C8": "Zero-shot generalization is by similarity between single training and test instances: "
    "a test instance's loss falls most where the data just seen is most similar to it.",
    "order against selection": "Open question, put as a claim: what is selected changes the loss "
    "more than the order in which one fixed set of instances is seen.",
    "near-duplicates": "Open question, put as a claim: nearest-first gains more, against random, "
    "the more test instances have a near-duplicate in the training pool.",
    "rule within a round": "Open question, put as a claim: whether a round is kept in the order in "
    "which the data is stored, task by task, or shuffled changes the loss.",
}
"""Each claim of the paper, and each question that it leaves open, in one sentence of ours."""
NOTEBOOKS = {
    **dict.fromkeys(("C1", "C2"), "01_early_generalization"),
    **dict.fromkeys(("C3", "C4", "C8"), "02_similarity"),
    "C5": "03_granularity",
    **dict.fromkeys(("C6", "C7"), "04_tma"),
    "order against selection": "05_order_or_selection",
    "near-duplicates": "05_order_or_selection",
    "rule within a round": "05_order_or_selection",
}
"""The notebook that tests each of them."""
ARMS = {
    "C1": "1,2",
    "C2": "1,2",
    "C3": "2",
    "C4": "1,1b,2",
    "C5": "1,1b,2",
    "C6": "1,1b,6b",
    "C7": "1,1b,6",
    "C8": "1,2",
    "order against selection": "1,1b,6",
    "near-duplicates": "1,1b,7a,7b",
    "rule within a round": "1,1b",
}
"""The arms of the plan whose runs decide each; 1 with 1b tells how far seeds differ."""
SHORT = {
    "C1": "early",
    "C2": "loss is steady",
    "C3": "falls with similarity",
    "C4": "similar first",
    "C5": "fine beats coarse",
    "C6": "TMA",
    "C7": "earlier rounds",
    "C8": "by instance",
    "order against selection": "selection over order",
    "near-duplicates": "near-duplicates",
    "rule within a round": "rule within a round",
}
"""Each in a few words."""
ONE_SEED = "one seed decides nothing"
DIFFERENCE = """One seed and few test instances decide nothing. Where the two differ, model, scale
and chance differ too: this run speaks neither for nor against the published one."""
UNDECIDED, UNTESTED = "not decided yet", "not tested at this scale"
REPEATS = "repeated folds (arm 1b), which say how far seeds differ"
VERDICTS = ("supported", "not supported", "inconclusive", UNDECIDED, UNTESTED)


@dataclass(frozen=True)
class Verdict:
    """What one notebook says about one claim."""

    claim: str
    notebook: str
    measure: str
    """What was measured, with its unit; of a claim that was not tested, why not."""
    estimate: float | None = None
    """Of the number that decides; None: not tested, or not finite."""
    low: float | None = None
    high: float | None = None
    n: int | None = None
    seeds: int | None = None
    verdict: str = UNDECIDED
    others_low: float | None = None
    """Of the same number, the 95% interval for tasks of other datasets."""
    others_high: float | None = None
    generalizes: bool = False
    runs: str | None = None
    """The runs it was made from, by `made_from`."""
    side: Side | None = None
    """Where the claim puts the number; None: on either side of zero."""
    scale: str | None = None
    """Of its runs, as the next three; None: there are none, or an older version wrote it."""
    model: str | None = None
    steps: int | None = None
    instances: int | None = None
    """Training instances of a run, at most."""

    def __post_init__(self) -> None:
        check_choice("claim", self.claim, tuple(CLAIMS))
        check_choice("verdict", self.verdict, VERDICTS)
        for name in ("estimate", "low", "high", "others_low", "others_high"):
            # JSON has no infinity
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                object.__setattr__(self, name, None)


class Decision(NamedTuple):
    """What intervals say of a claim: a verdict, and the interval that decides."""

    verdict: str
    interval: Interval
    name: str
    side: Side | None = None


def judge_all(parts: Mapping[str, tuple[Interval, Side]]) -> Decision:
    """Return what intervals say about a claim that needs them all, such as NFT < RT < FFT.

    Supported where all lie on their claimed side; not supported where one lies wholly on the other,
    even if widened for being one of several. The one that reaches farthest there decides.
    """
    positive = {
        name: interval if side == "positive" else interval.mirrored()
        for name, (interval, side) in parts.items()
    }
    verdict = "inconclusive"
    if all(interval.low > 0 for interval in positive.values()):
        verdict = "supported"
    elif any(interval.among(len(parts)).high < 0 for interval in positive.values()):
        verdict = "not supported"
    decides = min(positive, key=lambda name: _clearness(positive[name]))
    return Decision(verdict, parts[decides][0], decides, parts[decides][1])


def _clearness(interval: Interval) -> float:
    """Return how far an interval lies above zero, in widths: above 0 clear, below -1 contrary."""
    width = interval.high - interval.low
    if not math.isfinite(width) or interval.low == interval.high == 0:
        return -0.5  # it says nothing, or that there is no difference
    return interval.low / width if width > 0 else math.copysign(math.inf, interval.low)


def untested(claim: str, why: str) -> Verdict:
    """Return the verdict on a claim that this scale cannot test."""
    return Verdict(claim, NOTEBOOKS.get(claim, ""), why, verdict=UNTESTED)


def _undecided(claim: str, *missing: str) -> Verdict:
    return Verdict(claim, NOTEBOOKS[claim], f"not made yet: {', '.join(missing)}")


def _so_far(
    claim: str, measure: str, decision: Decision, others: Decision, missing: str
) -> Verdict:
    """Return an undecided verdict with the number that its runs give so far."""
    found, apart = decision.interval, others.interval
    return Verdict(
        claim,
        NOTEBOOKS[claim],
        f"so far {decision.name}: {measure}; not made yet: {missing}",
        *(found.estimate, found.low, found.high, found.n, found.seeds),
        others_low=apart.low,
        others_high=apart.high,
        side=decision.side,
    )


def early_fall(study: StudyConfig, share: Interval, steps: int) -> Verdict:
    """Return the verdict on C1: more than half of the fall comes in a twentieth of the steps."""
    if 0.05 * steps < 1:
        return untested("C1", f"5% of {steps} steps are less than one step")
    parts = {"after 5% of the steps": share.minus(0.5)}
    return _by_datasets("C1", study, "share of the fall of the loss, minus 1/2", parts)


def steady_loss(study: StudyConfig, rougher: Mapping[str, Interval]) -> Verdict:
    """Return the verdict on C2: every metric is rougher than the loss (`statistics.roughness`)."""
    if not rougher and study.is_published:
        return _undecided("C2", "random order with answers (arm 2)")
    if not rougher:
        return untested("C2", "no metric but the loss moves")
    measure = "share of its movement that no single turn makes, minus that of the loss"
    named = {name.replace("_", " "): gap for name, gap in rougher.items()}
    return _by_datasets("C2", study, measure, named)


def falls_with_distance(study: StudyConfig, match: Association) -> Verdict:
    """Return the verdict on C3: in cluster order loss and distance fall together, beyond chance."""
    measure = "correlation of the falls of loss and distance over test tasks (n), cluster order"
    return _by_datasets("C3", study, measure, match.parts)


def similar_first(study: StudyConfig, final: Effects) -> Verdict:
    """Return the verdict on C4: nearest-first ends below random order, farthest-first above."""
    sides: dict[str, Side] = {"nearest − random": "negative", "farthest − random": "positive"}
    return _all("C4", study, FINAL, final, sides)


def fine_beats_coarse(study: StudyConfig, final: Effects) -> Verdict:
    """Return the verdict on C5: single instances nearest first end below whole tasks."""
    return _all("C5", study, FINAL, final, {"nearest − coarse nearest": "negative"})


def order_of_rounds(study: StudyConfig, along: Effects, kinds: Iterable[str]) -> Verdict:
    """Return the verdict on C6: along the way NFT lies below RT and FFT above, on all `kinds`."""
    sides: dict[str, Side] = {
        arms.tagged(name, kind): "negative" if name.startswith("NFT") else "positive"
        for kind in kinds
        for name in arms.ORDER
    }
    return _all("C6", study, ALONG, along, sides)


def earlier_rounds(study: StudyConfig, final: Effects, later: Iterable[str]) -> Verdict:
    """Return the verdict on C7: the earliest rounds alone end below each later block."""
    return _all("C7", study, FINAL, final, dict.fromkeys(later, "positive"))


def by_instance(
    study: StudyConfig, found: Association, runs: Runs, inside: Association | None = None
) -> Verdict:
    """Return the verdict on C8: an instance's loss falls most after what is most similar to it.

    `inside` is the correlation within test tasks, told beside it.
    """
    missing = [label for label in arms.MAIN if label not in runs]
    if missing and study.is_published:
        return _undecided("C8", *missing)
    measure = "correlation of the fall of loss with the similarity just seen, all orders"
    if inside is not None and math.isfinite(inside.estimate):
        measure += f"; within test tasks {format_interval(inside)}"
    return _by_datasets("C8", study, measure, found.parts)


def selection_over_order(
    study: StudyConfig, larger: Effects, selected: Effects, ordered: Effects, pool: int
) -> Verdict:
    """Return the verdict on order against selection: what is selected changes the loss more.

    `larger` is the size of the effect of selection minus that of order, by reading. Chance makes
    what varies more look larger: an effect is the larger one only if it is there at all.
    """
    claim = "order against selection"
    if study.limit >= pool:
        return untested(claim, f"an order takes all {pool} instances that there are")
    if not larger:
        return _undecided(claim, "MIN and MAX shuffled, NFT and FFT shuffled in rounds")
    decision, others = _judge(larger, dict.fromkeys(larger, "positive"))
    if decision.verdict == "supported":
        clear = all(effect.tasks.clear for effect in selected.values())
    else:
        wide = {name: effect.tasks.among(len(larger)) for name, effect in larger.items()}
        clear = any(ordered[name].tasks.clear for name, gap in wide.items() if gap.high < 0)
    if not clear:
        decision = decision._replace(verdict="inconclusive")
    return _verdict(claim, study, "|MAX − MIN| − |FFT − NFT|, nats a token", decision, others)


def near_duplicates(study: StudyConfig, along: Effects) -> Verdict:
    """Return the verdict on near-duplicates: nearest-first gains with the share of twins."""
    claim = "near-duplicates"
    if not study.suits({"twins": 1.0}):
        return untested(claim, "only the built-in suite has the same row under two templates")
    return _all(claim, study, ALONG, along, {arms.TWINS: "negative"})


def rule_within_round(study: StudyConfig, along: Effects) -> Verdict:
    """Return the verdict on the rule within a round: it changes the loss."""
    claim, name = "rule within a round", arms.RULE
    if name not in along:
        return _undecided(claim, name)
    own, others = (
        Decision("supported" if part.clear else "inconclusive", part, name)
        for part in (along[name].tasks, along[name].datasets)
    )
    return _verdict(claim, study, ALONG, own, others)


def _all(
    claim: str, study: StudyConfig, measure: str, found: Effects, sides: Mapping[str, Side]
) -> Verdict:
    """Return the verdict on a claim that puts differences on these sides of zero."""
    missing = [name for name in sides if name not in found]
    if len(missing) == len(sides):
        return _undecided(claim, *missing)
    decision, others = _judge(found, {n: side for n, side in sides.items() if n in found})
    if missing:
        if study.is_published and not math.isfinite(decision.interval.low):
            missing.append(REPEATS)
        return _so_far(claim, measure, decision, others, ", ".join(missing))
    return _verdict(claim, study, measure, decision, others)


def _judge(found: Effects, sides: Mapping[str, Side]) -> tuple[Decision, Decision]:
    """Return the decision for these tasks, and of the same number that for other datasets."""
    decision = judge_all({name: (found[name].tasks, side) for name, side in sides.items()})
    others = judge_all({name: (found[name].datasets, side) for name, side in sides.items()})
    if not math.isfinite(decision.interval.low):
        decision = Decision("inconclusive", found[others.name].tasks, others.name, others.side)
    return decision, others._replace(interval=found[decision.name].datasets)


def _by_datasets(
    claim: str, study: StudyConfig, measure: str, parts: Mapping[str, Interval]
) -> Verdict:
    """Return the verdict on positive numbers whose interval is for tasks of other datasets."""
    decision = judge_all({name: (interval, "positive") for name, interval in parts.items()})
    others = decision
    if any(part.over != "source" for part in parts.values()):
        others = decision._replace(verdict="inconclusive")  # of other tasks at most
    return _verdict(claim, study, measure, decision, others)


def _verdict(
    claim: str, study: StudyConfig, measure: str, decision: Decision, others: Decision
) -> Verdict:
    """Return the verdict; an undecided one where nothing says how far seeds differ."""
    found = decision.interval
    if not math.isfinite(found.estimate):
        return untested(claim, f"{decision.name}: {measure}: no value")
    if study.is_published and not math.isfinite(found.low):
        return _so_far(claim, measure, decision, others, REPEATS)
    measure = f"{decision.name}: {measure}"
    verdict = decision.verdict
    if study.seeds < 2:
        verdict, measure = "inconclusive", f"{measure}; {ONE_SEED}"
    return Verdict(
        claim,
        NOTEBOOKS[claim],
        measure,
        *(found.estimate, found.low, found.high, found.n, found.seeds),
        verdict,
        *(others.interval.low, others.interval.high),
        generalizes=verdict == others.verdict == "supported",
        side=decision.side,
    )


def commands(claim: str) -> tuple[str, str]:
    """Return the commands that make a claim's runs of scale `study`, and that read them."""
    notebook = f"notebooks/{NOTEBOOKS[claim]}.ipynb"
    return f"tma study --arms {ARMS[claim]}", f"papermill {notebook} out.ipynb -p scale study"


def traced(verdict: Verdict, study: StudyConfig, runs: Runs) -> Verdict:
    """Return a chapter's verdict with the runs that it read, and the settings of the claim's own.

    C7 is about the blocks of rounds, which are shorter than what other claims compare.
    """
    every, blocks = [*chain.from_iterable(runs.values())], verdict.claim == "C7"
    verdict = dataclasses.replace(verdict, runs=made_from(run.key for run in every))
    own = [run.manifest for run in every if run.config.order.startswith("tma_rounds[") == blocks]
    if not own:
        return verdict
    return dataclasses.replace(
        verdict,
        scale=study.scale,
        model=portable(own[0]["config"])["model"],
        steps=max(manifest["steps"] for manifest in own),
        instances=max(manifest["instances"] for manifest in own),
    )


def made_from(keys: Iterable[str]) -> str:
    """Return the number of runs and a digest of their keys."""
    known = sorted(set(keys))
    return f"{len(known)} runs, {digest(*known)[:12]}"


def write(path: Path, verdicts: Sequence[Verdict]) -> None:
    """Write verdicts as a JSON list of objects, atomically."""
    write_json(path, [dataclasses.asdict(verdict) for verdict in verdicts])


def read(path: Path) -> list[Verdict]:
    """Return the verdicts of a file that `write` wrote."""
    try:
        return [Verdict(**row) for row in json.loads(path.read_text("utf-8"))]
    except OSError as error:
        raise DataError(f"{path} cannot be read. Run the notebook that writes it.") from error
    except (TypeError, ValueError) as error:
        raise DataError(f"{path} holds no verdicts: {error} Run its notebook again.") from error


def collect(folders: Sequence[Path]) -> list[Verdict]:
    """Return the verdicts in each folder's `claims.json`, in the sequence of `CLAIMS`."""
    if not folders:
        raise DataError("no folder has a claims.json. Run the notebooks first.")
    for folder in folders:
        check_same_run(folder)
    found = [verdict for folder in folders for verdict in read(folder / "claims.json")]
    for claim in CLAIMS:
        by = [verdict.notebook for verdict in found if verdict.claim == claim]
        if len(by) != 1:
            names = ", ".join(by) or "none"
            raise DataError(
                f"{claim!r} has {len(by)} verdicts ({names}) in {len(folders)} folders; expected "
                "one. Run all notebooks, each with a folder of its own."
            )
    return sorted(found, key=lambda verdict: list(CLAIMS).index(verdict.claim))


def check_same_run(folder: Path) -> None:
    """Refuse verdicts of other runs than the notebook beside their folder shows."""
    folder = folder.absolute()
    notebook, verdicts = folder.parent / f"{folder.name}.ipynb", folder / "claims.json"
    if not (notebook.is_file() and verdicts.is_file()):
        return
    shown = notebook.read_text("utf-8")
    for made in {verdict.runs for verdict in read(verdicts)}:
        if made is None or made not in shown:
            raise DataError(
                f"{verdicts} is of {made or 'unknown runs'}, which {notebook} does not show: "
                "somebody ran it with other parameters. Remove the notebook, run `make "
                "notebooks`, and give runs of your own another output_dir."
            )


def cells(verdict: Verdict) -> dict[str, str]:
    """Return a verdict as cells of a table; a dash where there is no number."""
    number, size = "–", "–"
    if verdict.estimate is not None:
        number = format_estimate(verdict.estimate, verdict.low, verdict.high)
        size = f"{verdict.n} · {verdict.seeds}"
    low, high = verdict.others_low, verdict.others_high
    if low is not None and high is not None and (low, high) != (verdict.low, verdict.high):
        number += f"; other datasets {format_range(low, high)}"
    return {
        "measured here": verdict.measure,
        "estimate (95% interval)": number,
        "n · seeds": size,
        "verdict": verdict.verdict + (", generalizes" if verdict.generalizes else ""),
    }


def counts(verdicts: Sequence[Verdict]) -> str:
    """Return how many of the paper's claims have which verdict, in words."""
    by = Counter(verdict.verdict for verdict in verdicts if verdict.claim in REPORTED)
    first, *others = (f"{by[verdict]}|{verdict}" for verdict in VERDICTS if by[verdict])
    first = first.replace("|", " is " if first.startswith("1|") else " are ")
    return ", ".join([first, *(other.replace("|", " ") for other in others)])


def beside(live: Path, published: Path) -> str:
    """Return one's own verdict on C6 above the published one, and what a difference means."""
    told = [f"{SHORT['C6']} (C6), {ALONG}, with a 95% interval:"]
    for name, path in (("this run", live), ("published", published)):
        one = next((verdict for verdict in read(path) if verdict.claim == "C6"), None)
        if one is None:
            raise DataError(f"{path} has no verdict on C6. Run notebooks/04_tma.ipynb for one.")
        measure = one.measure.removesuffix(f"; {ONE_SEED}").removesuffix(f": {ALONG}")
        if one.estimate is not None:
            measure += f": {format_estimate(one.estimate, one.low, one.high)}"
        told += [f"{name:<10} {measure}: {one.verdict}", f"{'':<10} {_size(one)}".rstrip()]
    return "\n".join([*told, DIFFERENCE])


def _size(verdict: Verdict) -> str:
    """Return what a verdict was made of, in words."""
    told = {
        "scale {}": verdict.scale,
        "{}": verdict.model,
        "{:,} training instances a run": verdict.instances,
        "{:,} test instances": verdict.n,
        "seeds: {}": verdict.seeds,
    }
    return ", ".join(form.format(value) for form, value in told.items() if value is not None)


def table(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """Return verdicts as rows for display, by claim."""
    rows = {verdict.claim: cells(verdict) for verdict in verdicts}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("claim")


def main(arguments: Sequence[str]) -> int:
    """Gather the verdicts below a folder, or set two files side by side; return the exit status."""
    try:
        match arguments:
            case ["beside", live, published]:
                sys.stdout.write(f"{beside(Path(live), Path(published))}\n")
            case _:
                out = Path(arguments[0])
                folders = sorted(file.parent for file in out.glob("*/claims.json"))
                write(out / "claims.json", collect(folders))
    except DataError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
