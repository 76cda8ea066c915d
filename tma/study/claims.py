"""The claims, how an interval decides one, and the verdicts of all notebooks in one list.

`python -m tma.study.claims out` gathers `out/*/claims.json` into `out/claims.json`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tma.errors import DataError, ParameterError, check_choice, wrong
from tma.store import digest, write_json
from tma.study.intervals import written

if TYPE_CHECKING:
    import pandas as pd

    from tma.study.intervals import Interval

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
    "order against selection": "04_tma",
    "near-duplicates": "04_tma",
    "rule within a round": "04_tma",
}
"""The notebook that tests each of them."""
CLAIMED = ("negative", "positive")
"""The side of zero on which a claim puts a number."""
VERDICTS = (
    "supported",
    "not supported",
    "inconclusive",
    "not decided yet",
    "not tested at this scale",
)
"""What can be said of a claim."""


@dataclass(frozen=True)
class Verdict:
    """What one notebook says about one claim.

    Raises:
        ParameterError: an unknown claim or verdict.
    """

    claim: str
    """One of `CLAIMS`."""
    notebook: str
    """Name of the notebook, such as 04_tma."""
    measure: str
    """What was measured, in words, with its unit; of a claim that was not tested, why not."""
    estimate: float | None
    """Its value; None: not tested, or without a finite value."""
    low: float | None
    """Lower end of its 95 % interval."""
    high: float | None
    """Upper end of it."""
    n: int | None
    """Test instances."""
    seeds: int | None
    """Seeds."""
    verdict: str
    """One of `VERDICTS`."""
    others_low: float | None = None
    """Lower end of the 95 % interval for tasks of other datasets."""
    others_high: float | None = None
    """Upper end of it."""
    generalizes: bool = False
    """Whether it is supported for tasks of other datasets too: each of its numbers."""
    runs: str | None = None
    """The runs it was made from, by `made_from`."""

    def __post_init__(self) -> None:
        check_choice("claim", self.claim, tuple(CLAIMS))
        check_choice("verdict", self.verdict, VERDICTS)
        for name in ("estimate", "low", "high", "others_low", "others_high"):
            # JSON has no infinity
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                object.__setattr__(self, name, None)


@dataclass(frozen=True)
class Judged:
    """What intervals say of a claim, and the one among them that decides it."""

    verdict: str
    """One of `VERDICTS`."""
    interval: Interval
    """The one that decides: of `judge_all` the least in favour of the claim, of `judge_any` the
    clearest."""
    label: str
    """Its name among the intervals."""


def judge_all(parts: Mapping[str, tuple[Interval, str]]) -> Judged:
    """Return what intervals say about a claim that needs them all, such as NFT < RT < FFT.

    Args:
        parts: name → interval, and the side of zero that is claimed of it: negative or positive.

    Returns:
        "supported" where all lie on their claimed side; "not supported" where one lies wholly on
        the other side, even if widened for being one of several (`Interval.among`); else
        "inconclusive". With the interval that reaches farthest to the other side, in widths of its
        own.

    Raises:
        ParameterError: there is no interval, or another word than negative or positive.
    """
    if not parts:
        raise wrong("parts", dict(parts), "one interval at least")
    turned = {name: _turned(*part) for name, part in parts.items()}
    wide = [_turned(interval.among(len(parts)), side) for interval, side in parts.values()]
    if all(low > 0 for low, _ in turned.values()):
        verdict = "supported"
    else:
        verdict = "not supported" if any(high < 0 for _, high in wide) else "inconclusive"
    decides = min(turned, key=lambda name: _clearness(*turned[name]))
    return Judged(verdict, parts[decides][0], decides)


def _turned(interval: Interval, claimed: str) -> tuple[float, float]:
    """Return the ends of an interval, mirrored where the claim is that it is negative."""
    check_choice("claimed", claimed, CLAIMED)
    ends = (interval.low, interval.high)
    return ends if claimed == "positive" else (-ends[1], -ends[0])


def judge_any(parts: Mapping[str, Interval]) -> Judged:
    """Return what intervals say about a claim that one of them differs from zero.

    Returns:
        "supported" where one excludes zero, else "inconclusive": an interval around zero does not
        show that there is no difference. Each interval is widened for being one of several
        (`Interval.among`); with it, the clearest of them.

    Raises:
        ParameterError: there is no interval.
    """
    if not parts:
        raise wrong("parts", dict(parts), "one interval at least")
    wide = {name: interval.among(len(parts)) for name, interval in parts.items()}
    clear = {
        n: max(_clearness(i.low, i.high), _clearness(-i.high, -i.low)) for n, i in wide.items()
    }
    decides = max(clear, key=lambda name: clear[name])
    verdict = "supported" if any(found.clear for found in wide.values()) else "inconclusive"
    return Judged(verdict, wide[decides], decides)


def _clearness(low: float, high: float) -> float:
    """Return how far an interval lies above zero, in widths: above 0 clear, below -1 contrary."""
    width = high - low
    if not math.isfinite(width):
        return -0.5  # it says nothing
    if width > 0:
        return low / width
    return math.copysign(math.inf, low) if low else -0.5  # zero and nothing else: no difference


def tested(
    claim: str,
    measure: str,
    judged: Judged,
    others: Interval | None = None,
    *,
    generalizes: bool = False,
) -> Verdict:
    """Return the record of a claim that was tested; without a value, it was not.

    Args:
        claim: one of `CLAIMS`.
        measure: what the intervals are of, in words, with its unit; the name of the one that
            decides is put before it.
        judged: from `judge_all` or `judge_any`.
        others: of the number that decides, the interval for tasks of other datasets.
        generalizes: whether each number lies on its side for them too.

    Raises:
        ParameterError: an unknown claim or verdict.
    """
    found = judged.interval
    if not math.isfinite(found.estimate):
        return untested(claim, f"{judged.label}: {measure}: no value")
    numbers = (found.estimate, found.low, found.high, found.n, found.seeds)
    ends = (None, None) if others is None else (others.low, others.high)
    said = (judged.verdict, *ends, generalizes and judged.verdict == "supported")
    return _record(claim, f"{judged.label}: {measure}", *numbers, *said)


def untested(claim: str, why: str) -> Verdict:
    """Return the record of a claim that this scale cannot test; `why` stands for the measure.

    Raises:
        ParameterError: an unknown claim.
    """
    return _record(claim, why, *[None] * 5, "not tested at this scale")


def undecided(claim: str, why: str) -> Verdict:
    """Return the record of a claim whose runs have not all been made; `why` names what is missing.

    Raises:
        ParameterError: an unknown claim.
    """
    return _record(claim, why, *[None] * 5, "not decided yet")


def _record(claim: str, *values: Any) -> Verdict:
    check_choice("claim", claim, tuple(CLAIMS))
    return Verdict(claim, NOTEBOOKS[claim], *values)


def made_from(keys: Iterable[str]) -> str:
    """Return how many runs there are, and a digest of their keys: what verdicts were made from."""
    known = sorted(set(keys))
    return f"{len(known)} runs, {digest(*known)[:12]}"


def write(path: Path, verdicts: Sequence[Verdict]) -> None:
    """Write verdicts as a JSON list of objects, atomically."""
    write_json(path, [dataclasses.asdict(verdict) for verdict in verdicts])


def read(path: Path) -> list[Verdict]:
    """Return the verdicts of a file that `write` wrote.

    Raises:
        DataError: the file is absent, or is none of `write`.
    """
    try:
        return [Verdict(**row) for row in json.loads(path.read_text("utf-8"))]
    except OSError as error:
        raise DataError(f"{path} cannot be read. Run the notebook that writes it.") from error
    except (TypeError, ValueError) as error:
        raise DataError(f"{path} holds no verdicts: {error} Run its notebook again.") from error


def collect(folders: Sequence[Path]) -> list[Verdict]:
    """Return the verdicts in the `claims.json` of each folder, in the sequence of `CLAIMS`.

    Raises:
        DataError: a file cannot be read, there is none, it is of other runs than the notebook
            beside its folder, or a claim has not just one verdict.
    """
    if not folders:
        raise DataError("no folder has a claims.json. Run the notebooks first.")
    for folder in folders:
        check_same_run(Path(folder))
    found = [verdict for folder in folders for verdict in read(Path(folder) / "claims.json")]
    for claim in CLAIMS:
        by = [verdict.notebook for verdict in found if verdict.claim == claim]
        if len(by) != 1:
            names = ", ".join(by) or "none"
            raise DataError(
                f"{claim!r} has {len(by)} verdicts ({names}) in {len(folders)} folders; expected "
                "one. Run all notebooks, each with a folder of its own."
            )
    sequence = list(CLAIMS)
    return sorted(found, key=lambda verdict: sequence.index(verdict.claim))


def check_same_run(folder: Path) -> None:
    """Refuse verdicts of other runs than the notebook beside their folder shows, if there is one.

    Raises:
        DataError: the notebook, executed with other parameters maybe, is not of these runs.
    """
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
    """Return what is told of a verdict, for display; a dash where there is no number."""
    number, size = "–", "–"
    if verdict.estimate is not None:
        number = written(verdict.estimate, verdict.low, verdict.high)
        size = f"{verdict.n} · {verdict.seeds}"
    others = (verdict.others_low, verdict.others_high)
    if None not in others and others != (verdict.low, verdict.high):
        number += "; other datasets {:+.3f} to {:+.3f}".format(*others)
    return {
        "measured here": verdict.measure,
        "estimate (95 % interval)": number,
        "n · seeds": size,
        "verdict": verdict.verdict + (", generalizes" if verdict.generalizes else ""),
    }


def table(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """Return verdicts as rows for display, by claim."""
    import pandas as pd

    rows = {verdict.claim: cells(verdict) for verdict in verdicts}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("claim")


def main(arguments: Sequence[str]) -> int:
    """Gather the verdicts below a folder into its claims.json; return the exit status."""
    try:
        if len(arguments) != 1:
            raise ParameterError("expected one argument: the folder of the notebooks' results.")
        out = Path(arguments[0])
        folders = sorted(file.parent for file in out.glob("*/claims.json"))
        write(out / "claims.json", collect(folders))
    except (DataError, ParameterError) as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
