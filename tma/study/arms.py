"""The plan of the study's runs: arms, in the sequence in which they are made, and reading them.

`tma study --list`, the protocol and the chapters share it. An arm is a question, its model and
seeds, and labelled settings; a run that two arms share is made once.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from tma.config import SCALES
from tma.errors import AssetError, DataError, ParameterError, check_choice
from tma.runs import published
from tma.runs.config import RunConfig
from tma.runs.store import Run, stored
from tma.store import canonical_json
from tma.study.effects import Effect, Spread, combined, contrasts, outweighs
from tma.study.exposure import Embeddings
from tma.study.settings import StudyConfig
from tma.study.statistics import READINGS, Runs

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

Pairs = Mapping[str, tuple[str, str]]
"""Name of a difference → labels of its two orders."""


SAME_INSTANCES = ("tma_nft", "tma_rt", "tma_fft", "tma_nft, shuffled", "tma_fft, shuffled")
"""Orders of the same instances: by the paper's rule a round is in the order of storage, task by
task; shuffled within rounds it is not."""
MAIN = (*SAME_INSTANCES, "tma_min_rt", "random")
"""Orders that tell order, storage and selection apart."""
DRAWN = ("tma_nft, shuffled", "tma_rt", "tma_fft, shuffled", "tma_min_rt", "random")
"""Those that are drawn beside each other."""
SAMPLED = ("round_robin", "random", "cluster", "nearest", "farthest")
P3, UNLABELLED = "P3", "without labels"
HALF_TWINS, ALL_TWINS = "50% twins", "100% twins"

NFT, FFT = "NFT shuffled in rounds − RT", "FFT shuffled in rounds − RT"
ORDER: Pairs = {
    "NFT − RT": ("tma_nft", "tma_rt"),
    "FFT − RT": ("tma_fft", "tma_rt"),
    NFT: ("tma_nft, shuffled", "tma_rt"),
    FFT: ("tma_fft, shuffled", "tma_rt"),
}
SELECTED, ORDERED = "MAX − MIN, both shuffled", "FFT − NFT, both shuffled in rounds"
RULE = "NFT − NFT shuffled in rounds"
SELECTION: Pairs = {
    SELECTED: ("tma_max_rt", "tma_min_rt"),
    ORDERED: ("tma_fft, shuffled", "tma_nft, shuffled"),
    "FFT − NFT": ("tma_fft", "tma_nft"),
    RULE: ("tma_nft", "tma_nft, shuffled"),
    "MIN shuffled − random": ("tma_min_rt", "random"),
    "RT − random": ("tma_rt", "random"),
    "MIN in round order − MIN shuffled": ("tma_min", "tma_min_rt"),
}
TWINS = "NFT − RT: with all twins minus without"


@dataclass(frozen=True)
class Arm:
    """Runs that answer one question: orders of a pool, orders of one random sample, or blocks."""

    name: str
    question: str
    pooled: tuple[str, ...] = ()
    sampled: tuple[str, ...] = ()
    model: str = "gemma"
    seeds: str = "fewer"
    """all, fewer (the first ones), or repeat (as many more, which test the same folds again)."""
    blocks: bool = False
    changes: Mapping[str, Any] = field(default_factory=dict)
    tag: str = ""
    """What its labels end with, to tell them from those of arm 1."""

    def configs(self, study: StudyConfig) -> dict[str, list[RunConfig]]:
        """Return the settings of its runs by label, one a seed."""
        common = {**self.changes, "seeds": self.seeds_of(study)}
        found = {f"{order}, sample": study.sampled(order, **common) for order in self.sampled}
        for label in self.pooled:
            order, _, within = label.partition(", ")
            rule = {"within": within} if within else {}
            found[label] = study.pooled(order, **common, **rule)
        if self.blocks:
            size, names = blocks(study)
            found |= {name: study.pooled(name, **common, limit=size) for name in names}
        return {tagged(label, self.tag): configs for label, configs in found.items()}

    def seeds_of(self, study: StudyConfig) -> range:
        """Return the arm's seeds in a study."""
        if self.seeds == "all":
            return range(study.seeds)
        if self.seeds == "fewer":
            return range(min(study.seeds, study.base.fewer_seeds))
        # All folds, or none: with fewer seeds not every fold is repeated.
        repeats = study.seeds >= study.folds > 0
        return range(study.seeds, 2 * study.folds) if repeats else range(0)

    def of(self, scale: str, p3: str = "p3") -> StudyConfig:
        """Return the study that makes the arm's runs; p3 may be `p3:FILE`."""
        base = SCALES[scale]
        dataset = p3 if self.tag == P3 else base.dataset
        return StudyConfig(self.model, scale, dataset, base.seeds, base.steps, "out", answers=True)


def tagged(label: str, tag: str) -> str:
    """Return a label with the tag of its arm, or the name of a difference with its kind of data."""
    return f"{label}, {tag}" if tag else label


_RATE = SCALES["study"].learning_rates["gemma"]
ARMS = (
    Arm("1", "order, storage, selection and all of them together", MAIN, seeds="all"),
    Arm(
        "2",
        "orders of one random sample; ROUGE and exact match in random order",
        sampled=(*SAMPLED, "coarse_nearest", "coarse_farthest"),
    ),
    Arm("1b", "how far seeds differ on the same test tasks", SAME_INSTANCES, seeds="repeat"),
    Arm(
        "3",
        "a constant learning rate: decay may cancel what an order gains",
        ("tma_nft", "tma_rt", "tma_fft"),
        changes={"schedule": "constant"},
        tag="constant rate",
    ),
    Arm("4", "another model, tuned on instructions before", MAIN, SAMPLED, model="llama"),
    Arm("5", "other data: P3", ("tma_nft", "tma_rt", "tma_fft", "tma_min_rt", "random"), tag=P3),
    Arm(
        "6",
        "the nearest and the farthest alone; earlier and later rounds",
        ("tma_min", "tma_max", "tma_max_rt"),
        blocks=True,
    ),
    Arm(
        "6b",
        "without task labels: single instances are held out",
        SAME_INSTANCES,
        changes={"by": "instance"},
        tag=UNLABELLED,
    ),
    *(
        Arm(
            name,
            f"near-duplicates by design: {share:.0%} of the test instances have a twin in the pool",
            ("tma_nft", "tma_rt"),
            changes={"twins": share},
            tag=tag,
        )
        for name, share, tag in (("7a", 0.5, HALF_TWINS), ("7b", 1.0, ALL_TWINS))
    ),
    *(
        Arm(name, f"robustness of NFT - RT: {tag}", ("tma_nft", "tma_rt"), changes=changes, tag=tag)
        for name, tag, changes in (
            ("8a", "half the learning rate", {"learning_rate": _RATE / 2}),
            ("8b", "twice the learning rate", {"learning_rate": _RATE * 2}),
            ("8c", "a pool of 2,000", {"pool": 2_000}),
        )
    ),
)


def chosen(names: str | None) -> tuple[Arm, ...]:
    """Return the arms of a list such as "1,2", in the sequence of the plan; None: all."""
    known = [arm.name for arm in ARMS]
    asked = known if names is None else [name.strip() for name in names.split(",")]
    for name in asked:
        check_choice("arms", name, known)
    return tuple(arm for arm in ARMS if arm.name in asked)


def plan(
    scale: str = "study", arms: Sequence[Arm] = ARMS, p3: str = "p3"
) -> Iterator[tuple[Arm, str, RunConfig]]:
    """Yield arm, label and settings of every run once, seed by seed, in the sequence of making."""
    yielded = set[str]()
    for arm in arms:
        configs = arm.configs(arm.of(scale, p3))
        runs = [(label, one) for label, own in configs.items() for one in own]
        for label, config in sorted(runs, key=lambda run: run[1].seed):
            if (text := _text(config)) not in yielded:
                yielded.add(text)
                yield arm, label, config


def embedded_pool(config: RunConfig) -> tuple[Embeddings, Embeddings, Dataset, Dataset]:
    """Return X and Y of the pool that a seed draws, with the pool and the test instances."""
    from tma.arrange.orders import pool_rows
    from tma.embed import embed_pair
    from tma.runs.config import load_both

    train, test = load_both(config)
    rows = pool_rows(config.method, len(train))
    X, Y = embed_pair(train, test, config.encoder, rows=rows)
    return X, Y, train if rows is None else train.select(rows), test


def blocks(study: StudyConfig) -> tuple[int, list[str]]:
    """Return how many instances are taken of each block of rounds, and the blocks' names.

    Unless the scale says how many instances are taken, they are as many as every block holds in
    every seed's pool, and N at most. Where rounds are few, blocks are narrower.
    """
    width, most, size = study.base.block_rounds, study.base.blocks, study.base.block_limit
    planned = study.dataset == study.base.dataset and study.test_dataset is None
    if size is None or not planned:
        from tma.arrange.rounds import test_centric_rounds

        held = list[list[int]]()
        for config in study.pooled("tma_nft"):
            X, Y, *_ = embedded_pool(config)
            # A round takes one instance a test instance at most: this is enough for all rounds.
            rounds = test_centric_rounds(X, Y, min(most * width * len(Y), len(X)))
            held.append([len(own) for own in rounds[: most * width]])
        count = min(map(len, held))
        width = min(width, count // 2)
        if not width:
            raise ParameterError(
                f"dataset={study.dataset!r} has too few training instances: its test instances "
                "take them in one round; expected two rounds at least for two blocks of rounds. "
                "Give more data, or fewer test instances."
            )
        most = min(count // width, most)
        sums = [sum(own[at * width : (at + 1) * width]) for own in held for at in range(most)]
        size = min(*sums, study.limit)
    return size, [f"tma_rounds[{at}:{at + width}]" for at in range(0, most * width, width)]


def read(
    study: StudyConfig, names: str, labels: Sequence[str] | None = None, needed: Sequence[str] = ()
) -> dict[str, list[Run]]:
    """Return the runs of arms by label, one a seed: from the store, or made now.

    Of the published study, whose runs take nights, none is made: an arm that is not complete is
    left out with a warning. `names` are of arms, such as "1,6"; `labels` those that are read (None:
    all), and `needed` those without which the chapter has nothing to show.

    Raises:
        DataError: a label that is needed lacks runs.
        TmaError: what `tma.run` raises.
    """
    from tma.runs.parallel import run_all

    asked = {
        arm.name: {
            label: configs
            for label, configs in arm.configs(study).items()
            if configs and (labels is None or label in labels)
        }
        for arm in chosen(names)
        if study.suits(arm.changes)
    }
    if study.is_published:
        runs = _finished(study.scale, asked)
    else:
        configs = dict[str, list[RunConfig]]()
        for label, own in chain.from_iterable(labelled.items() for labelled in asked.values()):
            configs[label] = configs.get(label, []) + own
        runs = run_all(configs)
    if lacking := [label for label in needed if label not in runs]:
        raise DataError(
            f"runs of {', '.join(lacking)} have not all been made at scale {study.scale!r} for "
            f"model={study.model!r}. Make them with `tma study`, if its plan has them (`tma study "
            "--list`), or take a smaller scale with -p scale pocket."
        )
    return runs


def _finished(
    scale: str, asked: Mapping[str, Mapping[str, Sequence[RunConfig]]]
) -> dict[str, list[Run]]:
    """Return the runs of complete arms by label; warn of the arms that make the others."""
    # Another model has its runs in an arm of its own. What no arm makes is left out.
    makers = {_text(config): arm.name for arm, _, config in plan(scale)}
    complete, missing = dict[str, list[Run]](), Counter[str]()
    for labelled in asked.values():
        found = [
            (label, makers[_text(config)], stored(config))
            for label, configs in labelled.items()
            if {*map(_text, configs)} <= {*makers}
            for config in configs
        ]
        lacking = [maker for _, maker, run in found if run is None]
        missing.update(lacking)
        for label, _, run in found:
            if run is not None and not lacking:
                complete.setdefault(label, []).append(run)
    for maker, count in missing.items():
        text = "arm %s: %d runs not made yet; `tma study --arms %s` makes them"
        log.warning(text, maker, count, maker)
    return complete


def _text(config: RunConfig) -> str:
    return canonical_json(config.to_json())


def sample(study: StudyConfig, orders: Sequence[str]) -> dict[str, list[Run]]:
    """Return the runs of some orders of one random sample by order (arm 2), as `read` does."""
    labels = [f"{order}, sample" for order in orders]
    runs = read(study, "2", labels, needed=labels)
    return {order: runs[label] for order, label in zip(orders, labels, strict=True)}


def in_order(study: StudyConfig, sampled: Mapping[str, list[Run]]) -> dict[str, list[Run]]:
    """Return the runs that C8 is measured on: of arms 1 and 2 if published, else of the sample."""
    return read(study, "2") | read(study, "1") if study.is_published else dict(sampled)


def spreads(study: StudyConfig, runs: Runs | None = None) -> dict[str, Spread]:
    """Return by reading how far seeds differ on the same test tasks, at most, in arms 1 and 1b.

    `runs` are theirs, if they have been read.
    """
    if not study.folds:
        return {}
    runs = runs or read(study, "1,1b")
    same = {label: runs[label] for label in SAME_INSTANCES if label in runs}
    found = contrasts(same, {**ORDER, **SELECTION}, {})
    own = {
        measure: [effect.own_spread for effect in effects.values() if effect.own_spread is not None]
        for measure, effects in found.items()
    }
    return {measure: max(spreads) for measure, spreads in own.items() if spreads}


def order_pairs(kinds: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return the differences that C6 needs, on data split in such ways (`StudyConfig.kinds`)."""
    # Data that has no labels is split without them in arm 1 too.
    tags = [UNLABELLED if kind == UNLABELLED and len(kinds) > 1 else "" for kind in kinds]
    ordered = (_ordered(kind, tag).items() for kind, tag in zip(kinds, tags, strict=True))
    return dict(chain.from_iterable(ordered))


def _ordered(kind: str, tag: str) -> dict[str, tuple[str, str]]:
    return {
        tagged(name, kind): (tagged(first, tag), tagged(second, tag))
        for name, (first, second) in ORDER.items()
    }


def robustness(study: StudyConfig, spreads: Mapping[str, Spread]) -> dict[str, Effect]:
    """Return the effect of order along the way in arms 3 to 5 and 8, as far as it is published."""
    found = dict[str, Effect]()
    for arm in chosen("3,4,5,8a,8b,8c") if study.is_published else ():
        try:
            runs = _finished(study.scale, {arm.name: arm.configs(arm.of(study.scale))})
        except (AssetError, DataError) as error:  # P3 cannot be had everywhere
            log.warning("arm %s cannot be read here: %s", arm.name, error)
            continue
        found |= contrasts(runs, _ordered(arm.tag or arm.model, arm.tag), spreads)["area"]
    return found


def readings_of(name: str, found: Mapping[str, Mapping[str, Effect]]) -> dict[str, Effect]:
    """Return one of the differences by reading, as far as it is known."""
    return {measure: effects[name] for measure, effects in found.items() if name in effects}


def selection_against_order(runs: Runs, spreads: Mapping[str, Spread]) -> dict[str, Effect]:
    """Return by how much selection changes the loss more than order, by reading, if it is known."""
    (top, bottom), (first, second) = SELECTION[SELECTED], SELECTION[ORDERED]
    if not {top, bottom, first, second} <= {*runs}:
        return {}
    selected = [(1, runs[top]), (-1, runs[bottom])]
    ordered = [(1, runs[first]), (-1, runs[second])]
    return {m: outweighs(selected, ordered, m, _twice(spreads.get(m))) for m in READINGS}


def twins(runs: Runs, spreads: Mapping[str, Spread]) -> dict[str, Effect]:
    """Return NFT − RT along the way by the share of twins, and what all of them change."""
    tags = {"no twins": "", "half with twins": HALF_TWINS, "all with twins": ALL_TWINS}
    pairs = {
        f"NFT − RT, {name}": (tagged("tma_nft", tag), tagged("tma_rt", tag))
        for name, tag in tags.items()
    }
    if not {*chain.from_iterable(pairs.values())} <= {*runs}:
        return {}
    (nft, rt), _, (twins_nft, twins_rt) = pairs.values()
    # All shares on the same test instances: those of the seeds that have twins.
    seeds = {run.config.seed for run in runs[twins_nft]}
    same = {label: [r for r in own if r.config.seed in seeds] for label, own in runs.items()}
    sides = [(1, same[twins_nft]), (-1, same[twins_rt]), (-1, same[nft]), (1, same[rt])]
    change = combined(sides, "area", _twice(spreads.get("area")))
    return contrasts(same, pairs, spreads)["area"] | {TWINS: change}


def _twice(spread: Spread | None) -> Spread | None:
    """Return the spread of a difference of two differences: twice the variance."""
    return None if spread is None else Spread(math.sqrt(2) * spread.sd, spread.degrees)


def look_up(
    scale: str, arms: Sequence[Arm], p3: str
) -> tuple[list[tuple[Arm, RunConfig, Run | None]], set[str]]:
    """Return arm, settings and finished run of all runs, and the arms whose data cannot be had."""
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


def make(
    scale: str,
    arms: Sequence[Arm],
    p3: str,
    jobs: int,
    export: Path | str | None = None,
    *,
    cluster: str | None = None,
) -> int:
    """Make the missing runs of arms whose data can be had, `jobs` at a time; return their number.

    Finished runs are written to the folder `export` as they come. `cluster` as of `tma.run_all`.
    """
    from tqdm import tqdm

    from tma.runs.parallel import make_runs, make_runs_on
    from tma.study import exposure

    def write(runs: Sequence[Run]) -> None:
        keys = [run.key for run in runs if not run.published]
        if export is not None and keys:
            published.export(keys, export, exposure.tables)

    rows, unavailable = look_up(scale, arms, p3)
    runs = [(config, run) for arm, config, run in rows if arm.name not in unavailable]
    done = [run for _, run in runs if run is not None]
    write(done)
    missing = [config for config, run in runs if run is None]
    bar_format = "{desc}: {n_fmt}/{total_fmt} runs [{elapsed}<{remaining}{postfix}]"
    with tqdm(total=len(runs), initial=len(done), desc="study", bar_format=bar_format) as bar:
        made = make_runs(missing, jobs) if cluster is None else make_runs_on(cluster, missing)
        for config in made:
            run = stored(config)
            assert run is not None
            write([run])
            bar.set_postfix_str(f"last: {config.order}, seed {config.seed}", refresh=False)
            bar.update()
    return len(missing)


def listing(scale: str, arms: Sequence[Arm], p3: str) -> pd.DataFrame:
    """Return arm, question, model, seeds, runs, done and hours_left, one run at a time, by arm."""
    if SCALES[scale].block_limit is None and any(arm.blocks for arm in arms):
        # To know it, every pool would be embedded.
        log.warning("Blocks of rounds are not listed: their size shows when they are made.")
        arms = [replace(arm, blocks=False) for arm in arms]
    rows, _ = look_up(scale, arms, p3)
    seconds = dict[str, list[float]]()
    for _, config, run in rows:
        if run is not None:
            seconds.setdefault(config.model, []).append(run.manifest["seconds"])
    hours = {model: statistics.median(own) / 3600 for model, own in seconds.items()}
    table = []
    for arm in arms:
        own = [(config, run) for each, config, run in rows if each is arm]
        left = [hours.get(config.model, math.nan) for config, run in own if run is None]
        line: dict[str, Any] = {"arm": arm.name, "question": arm.question, "model": arm.model}
        line |= {"seeds": len(arm.seeds_of(arm.of(scale, p3))), "runs": len(own)}
        table.append(line | {"done": len(own) - len(left), "hours_left": round(sum(left), 1)})
    return pd.DataFrame(table)
