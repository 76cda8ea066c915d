"""What a run had seen when its losses fell: the direct measures of C3 and C8.

Late intervals bring small falls whatever was seen, and some instances fall more than others
throughout; so falls and similarities are both centred two ways, by interval and by instance, before
they are correlated. What was seen comes from embeddings; a published run has it as tables.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tma.arrange.spec import MEASURES
from tma.data.load import texts
from tma.errors import ParameterError
from tma.runs.config import load_both
from tma.runs.store import Run
from tma.study.statistics import (
    TAILS,
    Floats,
    Interval,
    Runs,
    by_instance,
    check_steps,
    clusters_of,
    format_interval,
    format_range,
    instances,
    jackknife,
)

PERMUTATIONS = 1000
SIMILARITY, DISTANCES = "similarity.parquet", "distances.parquet"
Embeddings = NDArray[np.floating]
Rows = NDArray[np.int64]


class Seen(NamedTuple):
    """The instances of a run with their embeddings."""

    X: Embeddings
    """(k, d) of the training instances, in the order in which they were consumed."""
    Y: Embeddings
    """(m, d) of the test instances."""
    test_ids: Sequence[str]
    texts: tuple[Sequence[str], Sequence[str]]
    """Of training and test instances."""

    @classmethod
    def by(cls, run: Run) -> Seen:
        """Return what a run has seen, embedded now unless it was before."""
        from tma.embed import embed_pair

        train, test = load_both(run.config)
        rows, order = pd.Index(train["id"][:]).get_indexer(run.order), run.order
        if (rows < 0).any():
            raise ParameterError(
                f"dataset={run.config.dataset!r} lacks {(rows < 0).sum()} ids of the run "
                f"{run.key}, {order[int(np.argmin(rows))]!r} first; expected all of them. Give the "
                "data that it was made with."
            )
        X, Y = embed_pair(train, test, run.config.encoder, rows=rows)
        part = train.select(rows)
        return cls(X, Y, test["id"][:], (texts(part), texts(test)))

    def rows(self, ids: pd.Index | pd.Series) -> Rows:
        """Return the rows of test instances."""
        return pd.Index(self.test_ids).get_indexer(pd.Index(ids))


def similarity(run: Run) -> pd.DataFrame:
    """Return the mean cosine similarity to the training instances just seen, shaped as `drops`."""
    found = _table(run, SIMILARITY).pivot(index="id", columns="step", values="similarity")
    index = by_instance(run).index
    return found.loc[index.get_level_values("id")].set_axis(index)


def distances(run: Run) -> pd.DataFrame:
    """Return task, step, measure and distance of the data seen so far from each test task."""
    return _table(run, DISTANCES)


def _table(run: Run, name: str) -> pd.DataFrame:
    path = run.folder / name
    return pd.read_parquet(path) if path.is_file() else ROWS[name](run, Seen.by(run))


def tables(run: Run) -> dict[str, pd.DataFrame]:
    """Return what a run has seen, by the files that `similarity` and `distances` read."""
    seen = Seen.by(run)
    found = {name: rows(run, seen) for name, rows in ROWS.items()}
    # Embeddings have six digits.
    return {name: table.astype({table.columns[-1]: "float32"}) for name, table in found.items()}


def similarity_rows(run: Run, seen: Seen) -> pd.DataFrame:
    """Return step, id, similarity."""
    losses = by_instance(run)
    ids = losses.index.get_level_values("id")
    tested = np.asarray(seen.Y)[seen.rows(ids)].astype(np.float64)
    stops = _consumed(run, len(seen.X), losses.columns)
    parts = []
    for step, (a, b) in zip(losses.columns[1:], itertools.pairwise(stops), strict=True):
        similar = tested @ np.asarray(seen.X[a:b]).astype(np.float64).sum(axis=0) / (b - a)
        parts.append(pd.DataFrame({"step": step, "id": ids, "similarity": similar}))
    return pd.concat(parts, ignore_index=True)


def distance_rows(run: Run, seen: Seen) -> pd.DataFrame:
    """Return task, step, measure, distance."""
    from tma.arrange.distances import several_prefix_distances

    losses = by_instance(run)
    steps = [int(step) for step in losses.columns if int(step) > 0]
    stops = _consumed(run, len(seen.X), steps)
    ids = losses.index.to_frame(index=False).groupby("task")["id"]
    rows = {task: seen.rows(own) for task, own in ids}
    train, test = seen.texts
    words = (train, [[test[row] for row in own] for own in rows.values()])
    vectors = (seen.X, [seen.Y[own] for own in rows.values()])
    parts = []
    for measure in MEASURES:
        of = words if measure == "bigram_kl" else vectors
        found = several_prefix_distances(of[0], of[1], stops, measure)
        parts += [
            pd.DataFrame({"task": task, "step": steps, "measure": measure, "distance": distance})
            for task, distance in zip(rows, found, strict=True)
        ]
    return pd.concat(parts, ignore_index=True)


ROWS = {SIMILARITY: similarity_rows, DISTANCES: distance_rows}


def drops(run: Run) -> pd.DataFrame:
    """Return the falls of each test instance's loss, by (task, id) × step; nats a token."""
    return falls(by_instance(run))


def falls(values: pd.DataFrame) -> pd.DataFrame:
    """Return the falls of values by … × step between consecutive steps, named by the later one."""
    check_steps(values.columns)
    return -values.diff(axis=1).iloc[:, 1:]


def _consumed(run: Run, instances: int, steps: Sequence[int] | pd.Index) -> list[int]:
    """Return how many instances were consumed up to each step."""
    size = run.config.batch_size  # the last step of an epoch may be smaller
    epoch = instances // run.config.epochs
    done = (divmod(int(step), -(-epoch // size)) for step in steps)
    return [epochs * epoch + min(rest * size, epoch) for epochs, rest in done]


@dataclass(frozen=True, kw_only=True)
class Association(Interval):
    """A correlation with its 95% interval, beside the middle 95% of permuted ones."""

    baseline_low: float
    baseline_high: float
    p: float
    """Share of permutations, the sample among them, that lie at least as far from zero."""

    @property
    def parts(self) -> dict[str, Interval]:
        """What has to be positive: the correlation, and what is left without the permuted ones."""
        middle = (self.baseline_low + self.baseline_high) / 2
        ends = (self.estimate - self.baseline_high, self.estimate - self.baseline_low)
        gap = self.estimate - middle
        over_chance = Interval(gap, *ends, self.n, self.seeds, over=self.over)
        return {"as measured": self, "minus permuted": over_chance}


def association(
    drops: Sequence[pd.DataFrame],
    similarity: Sequence[pd.DataFrame],
    clusters: pd.Series | None = None,
    *,
    seeds: int | None = None,
    within_tasks: bool = False,
) -> Association:
    """Return the two-way centred correlation of loss drops and what was seen, over all runs.

    Both hold a table (task, id) × interval of each run, which is centred by itself. The interval is
    the jackknife over `clusters` (by id; None: each instance is one). For the baseline, tasks
    exchange their similarities, in the same way in all runs on the same test instances;
    `within_tasks`, instances of a task do, and the means of each task are taken off. NaN, with an
    unbounded interval and p = 1, where one of the two does not vary once the means are taken off.
    """
    pairs = []
    for number, (d, s) in enumerate(zip(drops, similarity, strict=True)):
        if not (d.index.equals(s.index) and d.columns.equals(s.columns)):
            raise ParameterError(
                f"drops[{number}] is {d.shape[0]} instances × {d.shape[1]} intervals and "
                f"similarity[{number}] {s.shape[0]} × {s.shape[1]}; expected the same ids."
            )
        values = (d.to_numpy(np.float64), s.to_numpy(np.float64))
        pairs.append(_Pair(*values, d.index.to_frame(index=False), within_tasks))
    ids = pd.Index(pd.concat([pair.names["id"] for pair in pairs]).unique())
    of = ids.to_series(name="id") if clusters is None else clusters.loc[ids]

    def without(name: str | None) -> float:
        kept = [(of.loc[pair.names["id"]] != name).to_numpy() for pair in pairs]
        parts = [pair.select(rows) for pair, rows in zip(pairs, kept, strict=True)]
        return _correlation([part.centred() for part in parts])

    found = jackknife(of, without, len(ids), seeds or len(pairs)).within(-1, 1)
    low, high, p = -np.inf, np.inf, 1.0
    if np.isfinite(found.estimate):
        permuted = _permuted(pairs)
        low, high = (float(np.quantile(permuted, tail)) for tail in TAILS)
        p = (1 + int((np.abs(permuted) >= abs(found.estimate) - 1e-12).sum())) / (1 + PERMUTATIONS)
    return Association(**vars(found), baseline_low=low, baseline_high=high, p=p)


@dataclass(frozen=True, eq=False)
class _Pair:
    """A run's drops and similarities, (m, k) each, and (m,) the task and id of their rows."""

    drops: Floats
    similar: Floats
    names: pd.DataFrame
    within: bool
    """Whether the means of each task are taken off."""

    @cached_property
    def tasks(self) -> Rows:
        """Number of each instance's task."""
        return pd.factorize(self.names["task"])[0]

    def select(self, rows: NDArray[np.bool_]) -> _Pair:
        return _Pair(self.drops[rows], self.similar[rows], self.names[rows], self.within)

    def centred(self, rows: Rows | slice = slice(None)) -> tuple[Floats, Floats]:
        """Return both less their means, the similarities of other rows if any are given."""
        groups = self.tasks if self.within else np.zeros_like(self.tasks)
        return _centred(self.drops, groups), _centred(self.similar[rows], groups)


def _centred(values: Floats, codes: Rows) -> Floats:
    """Return values (m, k) less the mean of each row, and of each group of rows in each column."""
    rest = values - values.mean(axis=1, keepdims=True)
    sums = np.zeros((codes.max(initial=0) + 1, values.shape[1]))
    np.add.at(sums, codes, rest)
    out: Floats = rest - (sums / np.bincount(codes, minlength=1)[:, None])[codes]
    return out


def _correlation(pairs: Sequence[tuple[Floats, Floats]]) -> float:
    both = sum(float(np.vdot(drop, similar)) for drop, similar in pairs)
    squares = [sum(float(np.vdot(pair[k], pair[k])) for pair in pairs) for k in (0, 1)]
    # What is left of a single instance, or of one interval, is rounding.
    return both / float(np.sqrt(squares[0] * squares[1])) if min(squares) > 1e-20 else float("nan")


def _permuted(pairs: Sequence[_Pair]) -> Floats:
    """Return the correlation under permutations, (PERMUTATIONS,)."""
    random = np.random.default_rng([0, 2])
    tested = [tuple(pair.names["id"]) for pair in pairs]
    of = dict(zip(reversed(tested), reversed(pairs), strict=True))  # the first with these ids
    permuted = np.empty(PERMUTATIONS)
    for number in range(PERMUTATIONS):
        rows = {ids: _drawn_rows(random, of[ids]) for ids in dict.fromkeys(tested)}
        both = [pair.centred(rows[ids]) for pair, ids in zip(pairs, tested, strict=True)]
        permuted[number] = _correlation(both)
    return permuted


def _drawn_rows(random: np.random.Generator, pair: _Pair) -> Rows:
    tasks = pair.tasks
    row = np.empty(len(tasks), dtype=np.int64)
    # The instances of a task are alike: whole tasks exchange places, unless there is but one.
    if pair.within or not tasks.max():
        row[np.argsort(tasks, kind="stable")] = np.lexsort((random.random(len(tasks)), tasks))
        return row
    members = [np.flatnonzero(tasks == task) for task in range(tasks.max() + 1)]
    for own, other in zip(members, random.permutation(len(members)), strict=True):
        row[own] = np.resize(members[other], len(own))
    return row


def of_runs(runs: Runs, *, within_tasks: bool = False) -> Association:
    """Return the `association` of loss drops with what was seen, over source datasets."""
    every = [run for own in runs.values() for run in own]
    seen = [similarity(run) for run in every]
    seeds = len({run.config.seed for run in every})
    falls = [drops(run) for run in every]
    return association(falls, seen, clusters_of(every), seeds=seeds, within_tasks=within_tasks)


def centred(runs: Runs) -> pd.DataFrame:
    """Return run (a number), task, id, step, drop and similarity, as `of_runs` correlates them."""
    parts = []
    for number, run in enumerate(itertools.chain.from_iterable(runs.values())):
        drop, similar = drops(run), similarity(run)
        groups = np.zeros(len(drop), dtype=np.int64)
        both = (_centred(one.to_numpy(np.float64), groups).ravel() for one in (drop, similar))
        columns = dict(zip(("drop", "similarity"), both, strict=True))
        parts.append(pd.DataFrame(columns, drop.stack().index).reset_index().assign(run=number))
    return pd.concat(parts, ignore_index=True)[["run", "task", "id", "step", "drop", "similarity"]]


def distances_of(runs: Mapping[str, Run]) -> pd.DataFrame:
    """Return the `distances` of one run an order, with a column order."""
    parts = [distances(run).assign(order=order) for order, run in runs.items()]
    return pd.concat(parts, ignore_index=True)


def step_match(runs: Sequence[Run]) -> Association:
    """Return the `association` of the falls of each test task's mean loss and average distance.

    The first interval is left out: before it nothing was seen.
    """
    losses, nearer = zip(*map(_task_falls, runs), strict=True)
    tasks = instances(runs).drop_duplicates("task").set_index("task")
    clusters = tasks["source"] if tasks["source"].nunique() > 1 else None
    return association(losses, nearer, clusters, seeds=len(runs))


def _task_falls(run: Run) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the falls of loss and of distance by task, which stands for an id too, × interval."""
    rows = distances(run).query("measure == 'cosine_avg'").assign(id=lambda table: table["task"])
    nearer = falls(rows.pivot(index=["task", "id"], columns="step", values="distance"))
    losses = by_instance(run).groupby(level="task").mean()
    return falls(losses)[nearer.columns].set_axis(nearer.index), nearer


def located(runs: Sequence[Run]) -> pd.DataFrame:
    """Return the steps at which the loss and the distance of each test task fall most.

    Columns seed, task, loss_step, distance_step, loss_fall (nats a token), distance_fall, and
    by_chance: the share of the run's tasks whose distance falls most at this loss_step.
    """
    parts = []
    for run in runs:
        loss, nearer = (falls.droplevel("id") for falls in _task_falls(run))
        steps, others = loss.idxmax(axis=1), nearer.idxmax(axis=1)
        columns = {
            "loss_step": steps,
            "distance_step": others,
            "loss_fall": loss.max(axis=1),
            "distance_fall": nearer.max(axis=1),
            "by_chance": steps.map(others.value_counts(normalize=True)).fillna(0.0),
        }
        parts.append(pd.DataFrame({"seed": run.config.seed, **columns}))
    return pd.concat(parts).reset_index()[["seed", "task", *columns]]


def agreement(located: pd.DataFrame) -> dict[str, float]:
    """Return how often loss and distance fall most in one interval, and how often by chance."""
    same = located["loss_step"] == located["distance_step"]
    return {"same": float(same.mean()), "by_chance": float(located["by_chance"].mean())}


def table(found: Mapping[str, Association]) -> pd.DataFrame:
    """Return named associations as rows: interval, n, seeds, baseline, p; none without a value."""
    columns = ["estimate", "low", "high", "n", "seeds", "baseline_low", "baseline_high", "p"]
    rows = {name: vars(one) for name, one in found.items() if np.isfinite(one.estimate)}
    return pd.DataFrame.from_dict(rows, orient="index").reindex(columns=columns)


def format_table(found: Mapping[str, Association]) -> pd.DataFrame:
    """Return the same for display: each interval in one cell."""
    rows = {
        name: {
            "correlation (95% interval)": format_interval(one),
            "without one dataset": format_range(*one.without_one),
            "permuted, middle 95%": format_range(one.baseline_low, one.baseline_high),
            "p": f"{one.p:.3f}",
            "n": f"{one.n:,}",
        }
        for name, one in found.items()
        if np.isfinite(one.estimate)
    }
    return pd.DataFrame.from_dict(rows, orient="index")
