"""The plan of the study's runs: arms, in the sequence in which they are made.

One table, from which `tma study --list`, the protocol and the chapters take what is run. An arm is
a question, its model and seeds, and named settings; a run that two arms name is made once.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tma.config import SCALES
from tma.errors import AssetError, DataError, check_choice
from tma.runs import published
from tma.runs.config import RunConfig
from tma.runs.store import Run, stored
from tma.store import canonical_json
from tma.study.effects import (
    READINGS,
    Effect,
    Runs,
    Spread,
    combined,
    contrasts,
    largest_spread,
    outweighs,
)
from tma.study.settings import StudyConfig
from tma.study.verdicts import TWINS, turn_pairs

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

Settings = Mapping[str, Any]

SHUFFLED: Settings = {"within": "shuffled"}
"""Rounds in a random sequence inside: by the paper's rule a round is in the order of storage, which
is task by task."""
MAIN: dict[str, Settings] = {
    "tma_nft": {},
    "tma_rt": {},
    "tma_fft": {},
    "tma_nft, shuffled": SHUFFLED,
    "tma_fft, shuffled": SHUFFLED,
    "tma_min_rt": {},
    "random": {},
}
"""What tells order, storage and selection apart: NFT and FFT against RT, the same instances; by the
paper's rule and shuffled within rounds; the nearest alone and random instances, both shuffled."""
DRAWN = ("tma_nft, shuffled", "tma_rt", "tma_fft, shuffled", "tma_min_rt", "random")
"""Those that are drawn beside each other."""
SAMPLED = ("round_robin", "random", "cluster", "nearest", "farthest")
"""Orders of one random sample."""


@dataclass(frozen=True)
class Arm:
    """Runs that answer one question."""

    name: str
    """Number of the arm, by which it is asked for."""
    question: str
    """What it is for."""
    model: str
    """Preset."""
    seeds: str
    """all: those of the study; fewer: the first ones; repeat: as many more, which test the same
    folds again."""
    pooled: Mapping[str, Settings] = field(default_factory=dict)
    """Label → settings of orders that select from a pool. The label begins with the order."""
    sampled: tuple[str, ...] = ()
    """Orders of one random sample."""
    blocks: bool = False
    """Whether blocks of rounds are among them."""
    changes: Settings = field(default_factory=dict)
    """Settings of all its runs."""
    tag: str = ""
    """What its labels end with, where they are not those of the main arm."""

    def configs(self, study: StudyConfig) -> dict[str, list[RunConfig]]:
        """Return the settings of the arm's runs by label, one a seed."""
        common = {**self.changes, "seeds": self.seeds_of(study)}
        found = {f"{order}, sample": study.sampled(order, **common) for order in self.sampled}
        pooled = dict(self.pooled)
        if self.blocks:
            size, names = study.blocks()
            pooled |= {name: {"limit": size} for name in names}
        for label, settings in pooled.items():
            found[label] = study.pooled(order_of(label), **(common | dict(settings)))
        return {f"{label}, {self.tag}" if self.tag else label: c for label, c in found.items()}

    def seeds_of(self, study: StudyConfig) -> range:
        """Return the arm's seeds in a study."""
        if self.seeds == "all":
            return range(study.seeds)
        if self.seeds == "fewer":
            return study.fewer
        # Whole, or not at all: with fewer seeds no fold is repeated by all of them.
        whole = study.seeds >= study.folds > 0
        return range(study.seeds, 2 * study.folds) if whole else range(0)

    def of(self, scale: str, p3: str = "p3") -> StudyConfig:
        """Return the parameters of the study that makes the arm's runs.

        Args:
            scale: pocket, study, or paper.
            p3: the dataset P3, such as `p3:FILE` for a local copy.
        """
        base = SCALES[scale]
        dataset = p3 if self.tag == P3 else base.dataset
        return StudyConfig(self.model, scale, dataset, base.seeds, base.steps, "out", answers=True)


def order_of(label: str) -> str:
    """Return the order that a label begins with."""
    return label.partition(",")[0]


def _plain(*labels: str) -> dict[str, Settings]:
    return {label: {} for label in labels}


P3, UNLABELLED = "P3", "without labels"
"""Tags of the arms on other data, and where single instances are held out."""
_FIVE = [*MAIN][:5]
_RATE = SCALES["study"].learning_rates["gemma"]
NFT, FFT = "NFT shuffled in rounds − RT, {kind}", "FFT shuffled in rounds − RT, {kind}"
"""Names of the differences that tell the effect of order."""
SELECTED, ORDERED = "MAX − MIN, both shuffled", "FFT − NFT, both shuffled in rounds"
"""Names of the effect of selection, and of that of order which it is compared with."""
SELECTION = {
    SELECTED: ("tma_max_rt", "tma_min_rt"),
    ORDERED: ("tma_fft, shuffled", "tma_nft, shuffled"),
    "FFT − NFT": ("tma_fft", "tma_nft"),
    "NFT − NFT shuffled in rounds": ("tma_nft", "tma_nft, shuffled"),
    "MIN shuffled − random": ("tma_min_rt", "random"),
    "RT − random": ("tma_rt", "random"),
    "MIN in round order − MIN shuffled": ("tma_min", "tma_min_rt"),
}
"""The same order on different instances, and different orders of the same: name → labels."""
ARMS: tuple[Arm, ...] = (
    Arm("1", "order, storage, selection and all of them together", "gemma", "all", MAIN),
    Arm(
        "2",
        "orders of one random sample; ROUGE and exact match in random order",
        "gemma",
        "fewer",
        sampled=(*SAMPLED, "coarse_nearest", "coarse_farthest"),
    ),
    Arm(
        "1b",
        "how far seeds differ on the same test tasks",
        "gemma",
        "repeat",
        {label: MAIN[label] for label in _FIVE},
    ),
    Arm(
        "3",
        "a constant learning rate: decay may cancel what an order gains",
        "gemma",
        "fewer",
        _plain("tma_nft", "tma_rt", "tma_fft"),
        changes={"schedule": "constant"},
        tag="constant rate",
    ),
    Arm("4", "another model, tuned on instructions before", "llama", "fewer", MAIN, SAMPLED),
    Arm(
        "5",
        "other data: P3",
        "gemma",
        "fewer",
        _plain("tma_nft", "tma_rt", "tma_fft", "tma_min_rt", "random"),
        tag=P3,
    ),
    Arm(
        "6",
        "the nearest and the farthest alone; earlier and later rounds",
        "gemma",
        "fewer",
        _plain("tma_min", "tma_max", "tma_max_rt"),
        blocks=True,
    ),
    Arm(
        "6b",
        "without task labels: single instances are held out",
        "gemma",
        "fewer",
        {label: MAIN[label] for label in _FIVE},
        changes={"by": "instance"},
        tag=UNLABELLED,
    ),
    *(
        Arm(
            f"7{letter}",
            f"near-duplicates by design: {share:.0%} of the test instances have a twin in the pool",
            "gemma",
            "fewer",
            _plain("tma_nft", "tma_rt"),
            changes={"twins": share},
            tag=f"{share:.0%} twins",
        )
        for letter, share in (("a", 0.5), ("b", 1.0))
    ),
    *(
        Arm(
            f"8{letter}",
            f"robustness of NFT - RT: {what}",
            "gemma",
            "fewer",
            _plain("tma_nft", "tma_rt"),
            changes=changes,
            tag=what,
        )
        for letter, what, changes in (
            ("a", "half the learning rate", {"learning_rate": _RATE / 2}),
            ("b", "twice the learning rate", {"learning_rate": _RATE * 2}),
            ("c", "a pool of 2,000", {"pool": 2_000}),
        )
    ),
)
"""All arms, the first one first."""


def read(
    study: StudyConfig, names: str, labels: Sequence[str] | None = None
) -> dict[str, list[Run]]:
    """Return the runs of arms by label, one a seed: from the store, or made now.

    The published study takes nights: its chapters read what `tma study` has made so far. An
    arm whose runs are not all there is left out with a warning.

    Args:
        study: parameters of the notebook; its model is that of all arms.
        names: of arms, such as "1,6".
        labels: those that are needed; None: whichever there are.

    Raises:
        DataError: an order that is needed, or every order, lacks runs.
        TmaError: what `tma.run` raises.
    """
    from tma.runs.parallel import run_all

    arms = [arm for arm in chosen(names) if study.suits(arm.changes)]
    configs = {(a.name, label): made for a in arms for label, made in a.configs(study).items()}
    configs = {
        both: made
        for both, made in configs.items()
        if made and (labels is None or both[1] in labels)
    }
    if study.is_published:
        found = _whole(configs)
    else:
        made = run_all({" ".join(both): own for both, own in configs.items()})
        found = {both: made[" ".join(both)] for both in configs}
    lacking = {*(labels or ())} - {label for _, label in found}
    if lacking or not found:
        raise DataError(
            f"runs of {', '.join(sorted(lacking)) or 'all orders'} have not all been made at scale "
            f"{study.scale!r}. Make them with `tma study --arms {names}`, or take a smaller scale "
            "with -p scale pocket."
        )
    runs = dict[str, list[Run]]()
    for (_, label), own in found.items():
        runs[label] = runs.get(label, []) + own
    return runs


def sample(study: StudyConfig, orders: Sequence[str]) -> dict[str, list[Run]]:
    """Return the runs of some orders of one random sample by order (arm 2), as `read` does."""
    labels = {f"{order}, sample": order for order in orders}
    found = read(study, "2", tuple(labels))
    return {labels[label]: runs for label, runs in found.items()}


def in_order(study: StudyConfig, sampled: Mapping[str, Sequence[Run]]) -> list[Run]:
    """Return the runs that C8 is measured on: all of arms 1 and 2 where they are read.

    Elsewhere those of the sample: chapters 3 and 4 make the others, which no chapter waits for.
    """
    runs = read(study, "2") | read(study, "1") if study.is_published else sampled
    return [run for made in runs.values() for run in made]


def spreads(
    study: StudyConfig, runs: Mapping[str, Sequence[Run]] | None = None
) -> dict[str, Spread]:
    """Return how far seeds differ on the same test tasks, by reading: the largest of arms 1 and 1b.

    Args:
        study: parameters of the notebook.
        runs: those of arms 1 and 1b, where they have been read.

    Returns:
        Nothing where folds have not been repeated, or each seed tests the same instances.
    """
    if not study.folds:
        return {}
    runs = runs or read(study, "1,1b")
    pairs = [(label, "tma_rt") for label in _FIVE if label != "tma_rt"]
    pairs += [pair for pair in SELECTION.values() if {*pair} <= {*_FIVE}]
    found = {measure: largest_spread(runs, pairs, measure) for measure in READINGS}
    return {measure: spread for measure, spread in found.items() if spread is not None}


def order_pairs(kinds: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Return the differences that C6 needs: name → labels of the first order and the second.

    Args:
        kinds: how data is split, in words, from `StudyConfig.kinds`. Data that has no labels is
            split without them in arm 1 too.
    """
    kinds = tuple(kinds)
    found = dict[str, tuple[str, str]]()
    for name, (order, rule, kind) in turn_pairs(kinds).items():
        end = f", {UNLABELLED}" if kind == UNLABELLED and len(kinds) > 1 else ""
        first = f"tma_{order.lower()}" + (", shuffled" if rule else "")
        found[name] = (first + end, "tma_rt" + end)
    return found


def readings_of(name: str, found: Mapping[str, Mapping[str, Effect]]) -> dict[str, Effect]:
    """Return one of the differences by reading, so far as it is known."""
    return {measure: effects[name] for measure, effects in found.items() if name in effects}


def selection_against_order(runs: Runs, spreads: Mapping[str, Spread]) -> dict[str, Effect]:
    """Return by how much selection changes the loss more than order, by reading, if it is known."""
    pairs = SELECTION[SELECTED], SELECTION[ORDERED]
    if any(label not in runs for pair in pairs for label in pair):
        return {}
    one, other = ([(1, runs[first]), (-1, runs[second])] for first, second in pairs)
    return {m: outweighs(one, other, m, _twice(spreads.get(m))) for m in READINGS}


def twins(runs: Runs, spreads: Mapping[str, Spread]) -> dict[str, Effect]:
    """Return NFT − RT along the way by the share of twins, and what all of them change."""
    ends = {"no twins": "", "half with twins": ", 50% twins", "all with twins": ", 100% twins"}
    pairs = {f"NFT − RT, {name}": ("tma_nft" + e, "tma_rt" + e) for name, e in ends.items()}
    if any(label not in runs for pair in pairs.values() for label in pair):
        return {}
    # All shares on the same test instances: those of the seeds that have twins.
    seeds = {run.config.seed for run in runs["tma_nft, 100% twins"]}
    same = {label: [run for run in runs[label] if run.config.seed in seeds]
            for pair in pairs.values() for label in pair}  # fmt: skip
    found = contrasts(same, pairs, spreads)["area"]
    (first, second), _, (one, other) = pairs.values()
    sides = [(1, same[one]), (-1, same[other]), (-1, same[first]), (1, same[second])]
    return found | {TWINS: combined(sides, "area", _twice(spreads.get("area")))}


def _twice(spread: Spread | None) -> Spread | None:
    """Return how far seeds differ in a difference of two such differences: twice the variance."""
    return None if spread is None else Spread(math.sqrt(2) * spread.sd, spread.degrees)


def _whole(
    configs: Mapping[tuple[str, str], Sequence[RunConfig]],
) -> dict[tuple[str, str], list[Run]]:
    """Return the finished runs of those arms that have them all."""
    found = {both: [stored(config) for config in made] for both, made in configs.items()}
    total = sum(map(len, found.values()))
    missing = Counter(arm for (arm, _), runs in found.items() for run in runs if run is None)
    for arm, count in missing.items():
        log.warning(
            "arm %s: %d runs not made yet; `tma study --arms %s` makes them", arm, count, arm
        )
    if missing:
        log.warning("%d of %d runs are there", total - missing.total(), total)
    return {
        both: [run for run in runs if run is not None]
        for both, runs in found.items()
        if both[0] not in missing
    }


def chosen(names: str | None) -> tuple[Arm, ...]:
    """Return the arms of a list such as "1,2", in the sequence of the plan; None: all.

    Raises:
        ParameterError: there is no such arm.
    """
    known = {arm.name: arm for arm in ARMS}
    wanted = [*known] if names is None else [name.strip() for name in names.split(",")]
    for name in wanted:
        check_choice("arms", name, tuple(known))
    return tuple(arm for arm in ARMS if arm.name in wanted)


def plan(
    scale: str = "study", arms: Sequence[Arm] = ARMS, p3: str = "p3"
) -> Iterator[tuple[Arm, str, RunConfig]]:
    """Yield arm, label and settings of every run in the sequence in which they are made.

    Seed by seed, so that an arm that is half done has whole comparisons; each run once.

    Args:
        scale: pocket, study, or paper.
        arms: some of `ARMS`.
        p3: the dataset P3, such as `p3:FILE` for a local copy.
    """
    seen = set[str]()
    for arm in arms:
        study = arm.of(scale, p3)
        configs = arm.configs(study)
        for seed in arm.seeds_of(study):
            for label, made in configs.items():
                for config in (c for c in made if c.seed == seed):
                    text = canonical_json(config.to_json())
                    if text not in seen:
                        seen.add(text)
                        yield arm, label, config


def make(
    scale: str, arms: Sequence[Arm], p3: str, jobs: int, export: Path | str | None = None
) -> int:
    """Make the runs of arms that are missing; return their number.

    Arms whose data cannot be had, as P3 where there is no hub, are left out with a warning.

    Args:
        scale: pocket, study, or paper.
        arms: some of `ARMS`.
        p3: the dataset P3.
        jobs: runs at a time, each with a core of its own.
        export: folder into which finished runs are written as they come; None: none.

    Raises:
        TmaError: as `make_runs`; runs that are finished stay, and the same call goes on.
    """
    from tqdm import tqdm

    from tma.runs.parallel import make_runs

    rows, unavailable = _found(scale, arms, p3)
    runs = [(config, run) for arm, config, run in rows if arm.name not in unavailable]
    done = [run for _, run in runs if run is not None]
    _export([run.key for run in done if not run.published], export)
    missing = [config for config, run in runs if run is None]
    left = list(missing)
    bar_format = "{desc}: {n_fmt}/{total_fmt} runs [{elapsed}{postfix}]"
    with tqdm(total=len(runs), initial=len(done), desc="study", bar_format=bar_format) as bar:
        for config in make_runs(missing, jobs):
            run = stored(config)
            assert run is not None
            _export([run.key], export)
            done.append(run)
            left.remove(config)
            hours = _hours(left, done) / jobs
            remaining = "" if math.isnan(hours) else f", about {hours:.1f} h left"
            last = f"last: {config.order}, seed {config.seed}"
            bar.set_postfix_str(last + remaining, refresh=False)
            bar.update()
    return len(missing)


def _hours(left: Sequence[RunConfig], done: Sequence[Run]) -> float:
    """Return how long runs take one after the other, in hours.

    By the median of the finished ones of the same model; NaN where there is none.
    """
    seconds: dict[str, list[float]] = {}
    for run in done:
        seconds.setdefault(run.config.model, []).append(run.manifest["seconds"])
    median = {model: statistics.median(taken) for model, taken in seconds.items()}
    return sum(median.get(config.model, math.nan) for config in left) / 3600


def _found(
    scale: str, arms: Sequence[Arm], p3: str
) -> tuple[list[tuple[Arm, RunConfig, Run | None]], set[str]]:
    """Return arm, settings and finished run of all runs, and the arms whose data cannot be had.

    Of such an arm what is finished is found nevertheless; the others are not in its way.
    """
    rows, unavailable = list[tuple[Arm, RunConfig, Run | None]](), set[str]()
    for arm, _, config in plan(scale, arms, p3):
        run = None
        try:
            run = stored(config)
        except (AssetError, DataError) as error:
            if arm.name not in unavailable:
                log.warning("Arm %s cannot be made here. %s", arm.name, error)
            unavailable.add(arm.name)
        rows.append((arm, config, run))
    return rows, unavailable


def _export(keys: Sequence[str], folder: Path | str | None) -> None:
    if folder is not None and keys:
        from tma.study import exposure

        published.export(keys, folder, exposure.tables)


def listing(scale: str, arms: Sequence[Arm], p3: str) -> pd.DataFrame:
    """Return one row an arm: arm, question, model, seeds, runs, done, hours_left.

    Hours are those of one run after the other, by the median of what is finished of the same model;
    NaN while nothing is.
    """
    import pandas as pd

    rows, _ = _found(scale, arms, p3)
    done = [run for *_, run in rows if run is not None]
    table = []
    for arm in arms:
        own = [(config, run) for each, config, run in rows if each is arm]
        left = [config for config, run in own if run is None]
        seeds = len(arm.seeds_of(arm.of(scale, p3)))
        row = (arm.name, arm.question, arm.model, seeds, len(own), len(own) - len(left))
        table.append((*row, round(_hours(left, done), 1)))
    columns = ["arm", "question", "model", "seeds", "runs", "done", "hours_left"]
    return pd.DataFrame(table, columns=columns)
