"""Which order for one's own data: runs of each over seeds, and one sentence on them.

Every seed draws a pool of the training rows, half of them: halves differ as much as two samples of
the whole size would. Orders of TMA select N rows of it; their rows shuffled (`tma_rt` for `tma_nft`
and `tma_fft`) tell order from selection, and are run beside them. Any other order arranges N rows
drawn at random, which `random` shuffles.

The rule, set before any run. What counts is the loss of the measured rows after the last step, in
nats a token. Each order but `random` is compared with its best shuffle: of `random` and its own
rows shuffled, the one with the lower mean loss. Differences are paired by seed and row, and have
the study's interval for these tasks (`tma.study.effects`), widened for the number of orders
compared (Bonferroni). "Use X": the interval lies wholly below zero; of several such orders X has
the lowest mean loss. Where there is none, the sentence says to shuffle, and which difference would
have been seen with 80% power.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
from scipy.stats import t as student

from tma.arrange.spec import ORDERS, find_order
from tma.config import SCALES, expanded
from tma.data.load import load
from tma.data.registry import check_dataset
from tma.data.save import save
from tma.errors import ParameterError, check_count, wrong
from tma.runs.config import RunConfig, load_aim, load_both
from tma.runs.parallel import run_all
from tma.runs.store import Run
from tma.store import cache_dir, digest, new_file, write_json
from tma.study.budget import LEAST_STEPS, seconds_of, steps_within
from tma.study.effects import Effect, course, effect, table
from tma.study.statistics import TAILS, Interval, summary

if TYPE_CHECKING:
    from datasets import Dataset
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

SHUFFLES = {"tma_nft": "tma_rt", "tma_fft": "tma_rt"}
SHUFFLES |= {"tma_min": "tma_min_rt", "tma_max": "tma_max_rt"}
"""Order → the same rows shuffled."""
BASE = SCALES["study"]
EVALUATIONS = 5
"""At step 0 and after each quarter."""


@dataclass(frozen=True)
class Comparison:
    """Finished runs, and what they say."""

    runs: Mapping[str, Sequence[Run]]
    """Order → its runs, one a seed."""
    notes: tuple[str, ...]
    """What was measured on what, and for how many steps."""

    @cached_property
    def losses(self) -> pd.DataFrame:
        """One row an order: seeds, instances, steps, mean loss at the first and the last step."""
        return summary(self.runs).drop(columns="area")

    @cached_property
    def effects(self) -> dict[tuple[str, str], Effect]:
        """(order, its own rows shuffled or `random`) → the difference of final losses."""
        pairs = [(order, shuffle) for order in self.runs for shuffle in _shuffles(order)]
        return {(o, s): effect(self.runs[o], self.runs[s], "final") for o, s in pairs}

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row a difference of final losses, in nats a token, as in `tma.study.effects.table`.

        `of` says what differs, order or selection; `detectable` is the smallest difference seen
        with 80% power. Intervals here are not widened.
        """
        rows = table({f"{order} - {shuffle}": e for (order, shuffle), e in self.effects.items()})
        rows.insert(0, "of", [_kind(*pair) for pair in self.effects])
        rows.insert(4, "detectable", [_detectable(e.tasks) for e in self.effects.values()])
        return rows

    @cached_property
    def _best(self) -> dict[str, tuple[str, Interval]]:
        """Order → its best shuffle, and the widened interval of the difference."""
        final = self.losses["final"].to_dict()
        pairs = {o: min(_shuffles(o), key=final.__getitem__) for o in self.runs if _shuffles(o)}
        return {o: (s, self.effects[o, s].tasks.among(len(pairs))) for o, s in pairs.items()}

    @cached_property
    def sentence(self) -> str:
        """What to do, by the rule of this module."""
        if better := [order for order, (_, gap) in self._best.items() if gap.high < 0]:
            order = min(better, key=self.losses["final"].to_dict().__getitem__)
            return f"Use {order}: {self._reason(order)}."
        order = min(self._best, key=lambda name: self._best[name][1].estimate)
        shuffle, gap = self._best[order]
        if gap.low > 0:
            return f"Shuffle, even the best order is worse: {self._reason(order)}."
        if not math.isfinite(gap.high):
            return "No difference shown: shuffle (an interval needs two seeds and two rows)."
        seen = _detectable(self.effects[order, shuffle].tasks, len(self._best))
        power = f"a difference of {seen:.3f} would have been seen with 80% power"
        return f"No difference shown: shuffle ({self._reason(order)}; {power})."

    def _reason(self, order: str) -> str:
        shuffle, gap = self._best[order]
        widened = f", widened for {count} comparisons" if (count := len(self._best)) > 1 else ""
        return (
            f"{order} - {shuffle} is {gap.estimate:+.3f} nats a token, 95% interval "
            f"{gap.low:+.3f} to {gap.high:+.3f}{widened}, {gap.seeds} seeds, {gap.n} rows"
        )

    def figure(self) -> Figure:
        """Return the losses along the way, and their differences from `random` with intervals."""
        from tma.study.figures import comparison_figure

        others = {order: own for order, own in self.runs.items() if order != "random"}
        gaps = {order: course(own, self.runs["random"]) for order, own in others.items()}
        return comparison_figure(self.runs, gaps, "random")

    def save(self, folder: Path | str) -> None:
        """Write comparison.json (sentence, notes, keys of runs), two tables as CSV, figure.png."""
        out = expanded(str(folder))
        for name, rows in (("table", self.table), ("losses", self.losses)):
            with new_file(out / f"{name}.csv") as draft:
                rows.to_csv(draft)
        with new_file(out / "figure.png") as draft:
            self.figure().savefig(draft, dpi=150)
        keys = {order: [run.key for run in own] for order, own in self.runs.items()}
        found = {"sentence": self.sentence, "notes": list(self.notes), "runs": keys}
        write_json(out / "comparison.json", found)


def _shuffles(order: str) -> list[str]:
    """Return what an order is compared with; nothing for `random`."""
    own = [SHUFFLES[order]] if order in SHUFFLES else []
    return [] if order == "random" else [*own, "random"]


def _kind(order: str, shuffle: str) -> str:
    if order in SHUFFLES.values():
        return "selection"
    return "order and selection" if order.startswith("tma_") and shuffle == "random" else "order"


def _detectable(gap: Interval, count: int = 1) -> float:
    """Return the smallest difference seen with 80% power (`book/protocol.md`), one of `count`."""
    at = [TAILS[1], 1 - TAILS[0] / count, 0.8]
    usual, wide, power = student.ppf(at, max(1, gap.freedom)).tolist()
    return float((gap.high - gap.low) / 2 / usual * (wide + power))


def compare(
    train: str | Path,
    test: str | Path,
    *,
    evaluate: str | Path | None = None,
    orders: Sequence[str] = ("tma_nft", "tma_rt", "random"),
    model: str = "llama",
    seeds: int = 3,
    steps: int | None = None,
    budget: str | None = None,
    processes: int | None = None,
    cluster: str | None = None,
    **settings: Any,
) -> Comparison:
    """Train in several orders of one's own data, and say which to use; notes are logged.

    Runs are those of `tma.run`: stored, and gone on with where they were stopped.

    Args:
        train: a dataset as `tma.load` names it; every row may train.
        test: what the data is arranged for; with `evaluate`, prompts are enough.
        evaluate: rows whose loss is measured. None: the prompts of each task in `test` are dealt
            into two halves, one to arrange for and one to measure: the loss on the very rows that
            one arranges for is too good.
        orders: names as of `tma.arrange`; what they are compared with is added.
        model: preset, hub id, or folder.
        seeds: how often each order is trained.
        steps: training steps of each run. None: 64, or what the budget and the data allow.
        budget: time for all runs, one at a time, such as "90s", "30m" or "2h". A training step and
            an evaluation are timed here once: the same call again finds its runs.
        processes: as of `tma.run_all`.
        cluster: as of `tma.run_all`; a budget is still timed here.
        settings: others of `tma.RunConfig`, such as `columns`, `batch_size`, `pool` or
            `test_limit`; those of some orders alone are passed to these.

    Raises:
        ParameterError: a value cannot be used, rows are too few, or the budget is too short.
        TmaError: what `tma.load` and `tma.run` raise.
    """
    for name, value in (("train", train), ("test", test), ("evaluate", evaluate or test)):
        check_dataset(str(value), name)
    names = {"dataset": str(train), "test_dataset": str(evaluate or test), "arrange_for": str(test)}
    for name in ("order", "seed", "limit", *names):
        if name in settings:
            others = "train, test, evaluate, orders, seeds and steps"
            raise wrong(name, settings[name], f"none: it follows from {others}")
    given = {"model": model, "per_task": None, "test_limit": None, **settings, **names}
    plan, notes = _planned(_Plan(_compared(orders), seeds, given), steps, budget, evaluate)
    for note in notes:
        log.warning("%s", note)
    return Comparison(run_all(plan.configs(), processes=processes, cluster=cluster), tuple(notes))


class _Plan(NamedTuple):
    orders: Sequence[str]
    seeds: int
    settings: dict[str, Any]
    """Those that all runs share."""
    steps: int = 1
    pool: int = 1

    @property
    def batch_size(self) -> int:
        return self.settings.get("batch_size", BASE.batch_size)  # type: ignore[no-any-return]

    def configs(self) -> dict[str, list[RunConfig]]:
        """Return the settings of the runs by order, one a seed."""
        return {order: [self.config(order, s) for s in range(self.seeds)] for order in self.orders}

    def config(self, order: str = "random", seed: int = 0) -> RunConfig:
        size = self.steps * self.batch_size
        own = {"limit": size, "pool": size, "eval_every": -(-self.steps // (EVALUATIONS - 1))}
        if order.startswith("tma_"):
            own |= {"pool": max(self.pool, size), "exact_limit": True}
        some = {name for known in ORDERS.values() for name in known.settings}
        idle = some - {*find_order(order).settings} | {"pool"}
        given = {name: value for name, value in self.settings.items() if name not in idle}
        return RunConfig.at("study", order=order, seed=seed, **own | given)


def _compared(orders: Sequence[str]) -> list[str]:
    """Return the orders with the shuffles that they are compared with, each once."""
    names = [orders] if isinstance(orders, str) else [*orders]
    for name in names:
        find_order(name)
    own = [SHUFFLES[name] for name in names if name in SHUFFLES]
    if not {*names} - {"random"}:
        raise wrong("orders", orders, "an order besides random, such as tma_nft")
    return [*dict.fromkeys(name for name in (*names, *own) if name != "random"), "random"]


def _planned(
    plan: _Plan, steps: int | None, budget: str | None, evaluate: object
) -> tuple[_Plan, list[str]]:
    """Return the plan with its data, pool and steps, and what is to be said of them."""
    check_count("seeds", plan.seeds, 1)
    given = {name: plan.settings.get(name) for name in ("pool", "batch_size")}
    for name, count in {"steps": steps, **given}.items():
        if count is not None:
            check_count(name, count, 1)
    if steps is not None and budget is not None:
        raise ParameterError(f"{steps=} and {budget=} both say how long runs are; give one.")
    if budget is not None:
        seconds_of(budget)  # a wrong one is refused before data is read
    halves, notes = ({}, []) if evaluate else _halves(plan.config())
    plan = plan._replace(settings=plan.settings | halves, steps=steps or LEAST_STEPS)
    train, measured = load_both(plan.config())
    plan = plan._replace(pool=_pool_size(len(train), plan))
    most = plan.pool // plan.batch_size
    notes += _overlaps(plan.config(), train, measured)
    if budget is not None:
        configs = [config for own in plan.configs().values() for config in own]
        steps, note = steps_within(budget, configs, EVALUATIONS, most)
        notes.append(note)
    return plan._replace(steps=steps or min(BASE.steps, most)), notes


def _pool_size(count: int, plan: _Plan) -> int:
    """Return how many of `count` training rows a seed draws."""
    least = plan.steps * plan.batch_size
    usual = max(least, min(-(-count // 2), BASE.pool or count))
    size = min(count, plan.settings.get("pool") or usual)
    if size < least:
        raise ParameterError(
            f"{plan.steps} steps of batch_size={plan.batch_size} need {least} training rows; a "
            f"seed draws {size} of {count}. Give fewer steps, a smaller batch_size or more rows."
        )
    return size


def _halves(config: RunConfig) -> tuple[dict[str, str], list[str]]:
    """Store the test rows in two halves; return the settings that name them, and a note.

    Of each task every other prompt is measured. Rows without an answer are arranged for.
    """
    read: dict[str, Any] = {"columns": config.columns, "empty": config.empty, "answers": "optional"}
    rows, units = load(config.arrange_for or "", **read), dict[str, tuple[str, list[int]]]()
    known = zip(rows["prompt"], rows["response"], rows["task"], strict=True)
    for at, (prompt, response, task) in enumerate(known):
        if response:
            units.setdefault(prompt, (task or "", []))[1].append(at)
    if len(units) < 2:
        raise ParameterError(
            f"test={config.arrange_for!r} has {len(units)} prompts with an answer, too few for two "
            "halves. Give evaluate, a dataset with answers."
        )
    shuffled = random.Random(config.data_seed).sample([*units.values()], len(units))
    shuffled.sort(key=lambda unit: unit[0])  # task after task
    measured = sorted(at for _, own in shuffled[1::2] for at in own)
    others = sorted({*range(len(rows))} - {*measured})
    stored = Path(rows.cache_files[0]["filename"]).parent.name  # a digest of content and settings
    folder, halves = cache_dir() / "compare" / digest(stored, str(measured))[:20], dict[str, str]()
    for name, part in (("arrange_for", others), ("test_dataset", measured)):
        file = folder / f"{name}.jsonl"
        if not file.is_file():
            save(rows, part, file)
        if load(file, **read)["id"][:] != rows.select(part)["id"][:]:
            raise wrong("evaluate", None, "a dataset: rows of test cannot be read from a file")
        halves[name] = str(file)
    note = f"{config.arrange_for} is split: {len(others)} rows to arrange for, {len(measured)} "
    return halves, [f"{note}others, of the same tasks, to measure. Give evaluate to use all."]


def _overlaps(config: RunConfig, train: Dataset, measured: Dataset) -> list[str]:
    """Say how many measured rows have a prompt that is trained on or arranged for."""
    notes, aim = list[str](), load_aim(config, measured)
    for rows, what in ((train, "a training row"), (aim, "a row to arrange for")):
        known = {*rows["prompt"]}
        if count := sum(prompt in known for prompt in measured["prompt"]):
            notes.append(f"{count} of {len(measured)} measured rows have the prompt of {what}.")
    return notes
