"""The plan of the study's runs: arms, in the sequence in which they are made.

One table, from which `tma study --list`, the protocol and the chapters take what is run. An arm is
a question, its model and seeds, and named settings; a run that two arms name is made once.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tma import published
from tma.config import RunConfig
from tma.errors import AssetError, DataError, check_choice
from tma.runs import Run, stored
from tma.scales import SCALES
from tma.store import canonical_json
from tma.study import StudyConfig

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
    seeds: tuple[int, ...]
    """Seeds; at scale `study` the fold is the seed modulo the number of folds."""
    pooled: Mapping[str, Settings] = field(default_factory=dict)
    """Label → settings of orders that select from a pool. The label begins with the order."""
    sampled: tuple[str, ...] = ()
    """Orders of one random sample."""
    changes: Settings = field(default_factory=dict)
    """Settings of all its runs."""

    def configs(self, scale: str, p3: str = "p3") -> dict[str, list[RunConfig]]:
        """Return the settings of the arm's runs by label, one a seed.

        Args:
            scale: pocket, study, or paper.
            p3: the dataset P3, such as `p3:FILE` for a local copy.
        """
        base = SCALES[scale]
        dataset = p3 if self.changes.get("dataset") == "p3" else base.dataset
        study = StudyConfig(
            self.model, scale, dataset, len(self.seeds), base.steps, output_dir="out", answers=True
        )
        common = {k: v for k, v in self.changes.items() if k != "dataset"} | {"seeds": self.seeds}
        found = {f"{order}, sample": study.sampled(order, **common) for order in self.sampled}
        for label, settings in self.pooled.items():
            found[label] = study.pooled(order_of(label), **(common | dict(settings)))
        return found


def order_of(label: str) -> str:
    """Return the order that a label begins with."""
    return label.partition(",")[0]


def _plain(*labels: str) -> dict[str, Settings]:
    return {label: {} for label in labels}


FIVE, THREE, MORE = tuple(range(5)), tuple(range(3)), tuple(range(5, 10))
_RATE = SCALES["study"].learning_rates["gemma"]
_WIDTH, _HELD = SCALES["study"].block_rounds, SCALES["study"].block_limit
BLOCKS = tuple(f"tma_rounds[{at}:{at + _WIDTH}]" for at in range(0, 4 * _WIDTH, _WIDTH))
"""Four blocks of rounds of equal width."""
ARMS: tuple[Arm, ...] = (
    Arm("1", "order, storage, selection and all of them together", "gemma", FIVE, MAIN),
    Arm(
        "2",
        "orders of one random sample; ROUGE and exact match in random order",
        "gemma",
        THREE,
        sampled=(*SAMPLED, "coarse_nearest", "coarse_farthest"),
    ),
    Arm(
        "1b",
        "how far seeds differ on the same test tasks",
        "gemma",
        MORE,
        {label: MAIN[label] for label in [*MAIN][:5]},
    ),
    Arm(
        "3",
        "a constant learning rate: decay may cancel what an order gains",
        "gemma",
        THREE,
        _plain("tma_nft", "tma_rt", "tma_fft"),
        changes={"schedule": "constant"},
    ),
    Arm("4", "another model, tuned on instructions before", "llama", THREE, MAIN, SAMPLED),
    Arm(
        "5",
        "other data: P3",
        "gemma",
        THREE,
        _plain("tma_nft", "tma_rt", "tma_fft", "tma_min_rt", "random"),
        changes={"dataset": "p3"},
    ),
    Arm(
        "6",
        "the nearest and the farthest alone; earlier and later rounds",
        "gemma",
        THREE,
        _plain("tma_min", "tma_max", "tma_max_rt") | {block: {"limit": _HELD} for block in BLOCKS},
    ),
    Arm(
        "6b",
        "without task labels: single instances are held out",
        "gemma",
        THREE,
        {label: MAIN[label] for label in [*MAIN][:5]},
        changes={"by": "instance"},
    ),
    *(
        Arm(
            f"7{letter}",
            f"near-duplicates by design: {share:.0%} of the test instances have a twin in the pool",
            "gemma",
            THREE,
            _plain("tma_nft", "tma_rt"),
            changes={"twins": share},
        )
        for letter, share in (("a", 0.5), ("b", 1.0))
    ),
    *(
        Arm(
            f"8{letter}",
            f"robustness of NFT - RT: {what}",
            "gemma",
            THREE,
            _plain("tma_nft", "tma_rt"),
            changes=changes,
        )
        for letter, what, changes in (
            ("a", "half the learning rate", {"learning_rate": _RATE / 2}),
            ("b", "twice the learning rate", {"learning_rate": _RATE * 2}),
            ("c", "a pool of 2,000", {"pool": 2_000}),
        )
    ),
)
"""All arms, the first one first."""


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
        configs = arm.configs(scale, p3)
        for seed in arm.seeds:
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
        TmaError: as `jobs.make`; runs that are finished stay, and the same call goes on.
    """
    from tqdm import tqdm

    from tma.jobs import make as make_all

    rows, unavailable = _found(scale, arms, p3)
    runs = [(config, run) for arm, config, run in rows if arm.name not in unavailable]
    done = [run for _, run in runs if run is not None]
    _export([run.key for run in done if not run.published], export)
    missing = [config for config, run in runs if run is None]
    bar = tqdm(total=len(runs), initial=len(done), unit="run", desc="study", mininterval=1)
    with bar:
        for config in make_all(missing, jobs):
            run = stored(config)
            assert run is not None
            _export([run.key], export)
            bar.set_postfix_str(f"last: {config.order}, seed {config.seed}", refresh=False)
            bar.update()
    return len(missing)


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
        published.export(keys, folder)


def listing(scale: str, arms: Sequence[Arm], p3: str) -> pd.DataFrame:
    """Return one row an arm: arm, question, model, seeds, runs, done, hours_left.

    Hours are those of one run after the other, by the median of what is finished of the same model;
    NaN while nothing is.
    """
    import pandas as pd

    rows, _ = _found(scale, arms, p3)
    seconds = pd.Series(dtype=float)
    if any(run for *_, run in rows):
        made = [(c.model, run.manifest["seconds"]) for _, c, run in rows if run is not None]
        seconds = pd.DataFrame(made, columns=["model", "seconds"]).groupby("model").median().seconds
    table = []
    for arm in arms:
        own = [(config, run) for each, config, run in rows if each is arm]
        left = [config for config, run in own if run is None]
        hours = sum(seconds.get(config.model, math.nan) for config in left) / 3600
        row = (arm.name, arm.question, arm.model, len(arm.seeds), len(own), len(own) - len(left))
        table.append((*row, round(hours, 1)))
    columns = ["arm", "question", "model", "seeds", "runs", "done", "hours_left"]
    return pd.DataFrame(table, columns=columns)
