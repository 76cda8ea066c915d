"""What a run had seen when its losses fell: the direct measures of C3 and C8.

Late intervals bring small falls whatever was seen, and some instances fall more than others
throughout; so falls and similarities are both centred two ways, by interval and by instance, before
they are correlated. What was seen comes from embeddings; a published run has it as tables.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
    clusters_of,
    instances,
    jackknife,
)

PERMUTATIONS = 1000
SIMILARITY, DISTANCES = "similarity.parquet", "distances.parquet"
Embeddings = NDArray[np.floating]
Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Seen:
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
        row = {name: number for number, name in enumerate(train["id"])}
        order = run.order
        if missing := [name for name in order if name not in row]:
            raise ParameterError(
                f"dataset={run.config.dataset!r} lacks {len(missing)} ids of the run {run.key}, "
                f"{missing[0]!r} first; expected all of them. Give the data that it was made with."
            )
        rows = [row[name] for name in order]
        X, Y = embed_pair(train, test, run.config.encoder, rows=rows)
        part = train.select(rows)
        return cls(X, Y, test["id"][:], (texts(part), texts(test)))

    def rows(self, ids: Sequence[str]) -> Rows:
        """Return the rows of test instances."""
        row = {name: number for number, name in enumerate(self.test_ids)}
        return np.array([row[name] for name in ids], dtype=np.int64)


def similarity(run: Run) -> pd.DataFrame:
    """Return the mean cosine similarity to the training instances just seen, shaped as `drops`."""
    path = run.folder / SIMILARITY
    rows = pd.read_parquet(path) if path.is_file() else similarity_rows(run, Seen.by(run))
    found = rows.pivot(index="id", columns="step", values="similarity")
    index = by_instance(run).index
    return found.loc[index.get_level_values("id")].set_axis(index)


def distances(run: Run) -> pd.DataFrame:
    """Return task, step, measure and distance of the data seen so far from each test task."""
    path = run.folder / DISTANCES
    return pd.read_parquet(path) if path.is_file() else distance_rows(run, Seen.by(run))


def tables(run: Run) -> dict[str, pd.DataFrame]:
    """Return what a run has seen, by the files that `similarity` and `distances` read."""
    seen = Seen.by(run)
    rows = {SIMILARITY: similarity_rows(run, seen), DISTANCES: distance_rows(run, seen)}
    # Embeddings have six digits.
    return {name: table.astype({table.columns[-1]: "float32"}) for name, table in rows.items()}


def similarity_rows(run: Run, seen: Seen) -> pd.DataFrame:
    """Return step, id, similarity."""
    losses = by_instance(run)
    ids = losses.index.get_level_values("id").tolist()
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
    rows = {task: seen.rows(own.tolist()) for task, own in ids}
    train, test = seen.texts
    texts_of = [[test[row] for row in own] for own in rows.values()]
    Y_of = [seen.Y[own] for own in rows.values()]
    parts = []
    for measure in MEASURES:
        if measure == "bigram_kl":
            found = several_prefix_distances(train, texts_of, stops, measure)
        else:
            found = several_prefix_distances(seen.X, Y_of, stops, measure)
        parts += [
            pd.DataFrame({"task": task, "step": steps, "measure": measure, "distance": distance})
            for task, distance in zip(rows, found, strict=True)
        ]
    return pd.concat(parts, ignore_index=True)


def drops(run: Run) -> pd.DataFrame:
    """Return the falls of each test instance's loss, by (task, id) × step; nats a token."""
    return falls(by_instance(run))


def falls(values: pd.DataFrame) -> pd.DataFrame:
    """Return the falls of values by … × step between consecutive steps, named by the later one."""
    if values.shape[1] < 2:
        raise ParameterError(
            f"values are known at the steps {values.columns.tolist()} only; expected two at least. "
            "Make runs with a smaller eval_every, or with eval_at."
        )
    return -values.diff(axis=1).iloc[:, 1:]


def _consumed(run: Run, instances: int, steps: Sequence[int] | pd.Index) -> list[int]:
    """Return how many instances were consumed up to each step."""
    size = run.config.batch_size  # the last step of an epoch may be smaller
    epoch = instances // run.config.epochs
    done = (divmod(int(step), -(-epoch // size)) for step in steps)
    return [epochs * epoch + min(rest * size, epoch) for epochs, rest in done]


@dataclass(frozen=True, kw_only=True)
class Association(Interval):
    """A correlation with its 95 % interval, beside the middle 95 % of permuted ones."""

    baseline_low: float
    baseline_high: float
    p: float
    """Share of permutations, the sample among them, that lie at least as far from zero."""

    @property
    def parts(self) -> dict[str, Interval]:
        """What has to be positive: the correlation, and what is left without the permuted ones."""
        middle = (self.baseline_low + self.baseline_high) / 2
        ends = (self.estimate - self.baseline_high, self.estimate - self.baseline_low)
        over_chance = Interval(self.estimate - middle, *ends, self.n, self.seeds)
        return {"as measured": self, "minus permuted": over_chance}


def association(
    drops: Sequence[pd.DataFrame],
    similarity: Sequence[pd.DataFrame],
    clusters: pd.Series | None = None,
    *,
    seeds: int | None = None,
    within_tasks: bool = False,
    seed: int = 0,
) -> Association:
    """Return the two-way centred correlation of loss drops and what was seen, over all runs.

    Both hold a table (task, id) × interval of each run, which is centred by itself. The interval is
    the jackknife over `clusters` (by id; None: each instance is one). For the baseline, tasks
    exchange their similarities, in the same way in all runs on the same test instances;
    `within_tasks`, instances of a task do, and the means of each task are taken off. NaN, with an
    unbounded interval and p = 1, where one of the two does not vary once the means are taken off.
    """
    for number, (d, s) in enumerate(zip(drops, similarity, strict=True)):
        if not (d.index.equals(s.index) and d.columns.equals(s.columns)):
            raise ParameterError(
                f"drops[{number}] is {d.shape[0]} instances × {d.shape[1]} intervals and "
                f"similarity[{number}] {s.shape[0]} × {s.shape[1]}; expected the same ids."
            )
    pairs = [_Pair.of(*both, within_tasks) for both in zip(drops, similarity, strict=True)]
    ids = pd.Index([]).append([pair.ids for pair in pairs]).unique()
    of = ids.to_series() if clusters is None else clusters.loc[ids]

    def without(name: str | None) -> float:
        kept = (
            pairs if name is None else [p.select((of.loc[p.ids] != name).to_numpy()) for p in pairs]
        )
        return _correlation([pair.centred() for pair in kept])

    found = jackknife(of.unique().tolist(), without, len(ids), seeds or len(pairs)).within(-1, 1)
    low, high, p = -np.inf, np.inf, 1.0
    if np.isfinite(found.estimate):
        permuted = _permuted(pairs, seed, within=within_tasks)
        low, high = (float(np.quantile(permuted, tail)) for tail in TAILS)
        p = (1 + int((np.abs(permuted) >= abs(found.estimate) - 1e-12).sum())) / (1 + PERMUTATIONS)
    return Association(**vars(found), baseline_low=low, baseline_high=high, p=p)


@dataclass(frozen=True, eq=False)
class _Pair:
    """A run's drops and similarities, (m, k) each."""

    drops: Floats
    similar: Floats
    ids: pd.Index
    tasks: Rows
    """Number of each instance's task."""
    within: bool
    """Whether the means of each task are taken off."""

    @classmethod
    def of(cls, drops: pd.DataFrame, similarity: pd.DataFrame, within: bool) -> _Pair:
        tasks = pd.factorize(drops.index.get_level_values("task"))[0]
        values = (drops.to_numpy(np.float64), similarity.to_numpy(np.float64))
        return cls(*values, drops.index.get_level_values("id"), tasks, within)

    def select(self, rows: NDArray[np.bool_]) -> _Pair:
        tasks = pd.factorize(self.tasks[rows])[0]
        return _Pair(self.drops[rows], self.similar[rows], self.ids[rows], tasks, self.within)

    def centred(self, rows: Rows | None = None) -> tuple[Floats, Floats]:
        """Return both less their means, the similarities of other rows if any are given."""
        similar = self.similar if rows is None else self.similar[rows]
        groups = self.tasks if self.within else np.zeros_like(self.tasks)
        return _centred(self.drops, groups), _centred(similar, groups)


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


def _permuted(pairs: Sequence[_Pair], seed: int, *, within: bool) -> Floats:
    """Return the correlation under permutations, (PERMUTATIONS,)."""
    random = np.random.default_rng([seed, 2])
    tested = pd.factorize(pd.Series([tuple(pair.ids) for pair in pairs]))[0]
    tasks = [pairs[int(np.argmax(tested == number))].tasks for number in range(tested.max() + 1)]
    permuted = np.empty(PERMUTATIONS)
    for number in range(PERMUTATIONS):
        rows = [_drawn_rows(random, own, within=within) for own in tasks]
        both = [pair.centred(rows[own]) for pair, own in zip(pairs, tested, strict=True)]
        permuted[number] = _correlation(both)
    return permuted


def _drawn_rows(random: np.random.Generator, tasks: Rows, *, within: bool) -> Rows:
    row = np.empty(len(tasks), dtype=np.int64)
    # The instances of a task are alike: whole tasks exchange places, unless there is but one.
    if within or not tasks.max():
        row[np.argsort(tasks, kind="stable")] = np.lexsort((random.random(len(tasks)), tasks))
        return row
    members = [np.flatnonzero(tasks == task) for task in range(tasks.max() + 1)]
    for own, other in zip(members, random.permutation(len(members)), strict=True):
        row[own] = np.resize(members[other], len(own))
    return row


def of_runs(runs: Runs, *, within_tasks: bool = False) -> Association:
    """Return the `association` of loss drops with what was seen, over source datasets."""
    every = [run for own in runs.values() for run in own]
    return association(
        [drops(run) for run in every],
        [similarity(run) for run in every],
        clusters_of(every),
        seeds=len({run.config.seed for run in every}),
        within_tasks=within_tasks,
    )


def centred(runs: Runs) -> pd.DataFrame:
    """Return run (a number), task, id, step, drop and similarity, as `of_runs` correlates them."""
    parts = []
    for number, run in enumerate(itertools.chain.from_iterable(runs.values())):
        drop, similar = drops(run), similarity(run)
        x, y = _Pair.of(drop, similar, within=False).centred()
        columns = {"drop": x.ravel(), "similarity": y.ravel()}
        parts.append(pd.DataFrame(columns, drop.stack().index).reset_index().assign(run=number))
    return pd.concat(parts, ignore_index=True)[["run", "task", "id", "step", "drop", "similarity"]]


def distances_of(runs: Mapping[str, Run]) -> pd.DataFrame:
    """Return the `distances` of one run an order, with a column order."""
    parts = [distances(run).assign(order=order) for order, run in runs.items()]
    return pd.concat(parts, ignore_index=True)


def step_match(runs: Sequence[Run]) -> Association:
    """Return how closely the loss of test tasks falls when the distance to them falls.

    The `association` of the falls of a task's mean loss and of its average cosine distance, with
    tasks for instances. The first interval is left out: before it nothing was seen.
    """
    both = [[_as_instances(table) for table in _task_falls(run)] for run in runs]
    losses, nearer = zip(*both, strict=True)
    tasks = instances(runs).drop_duplicates("task").set_index("task")
    clusters = tasks["source"] if tasks["source"].nunique() > 1 else None
    return association(losses, nearer, clusters, seeds=len(runs))


def _as_instances(tasks: pd.DataFrame) -> pd.DataFrame:
    names = tasks.index.tolist()
    return tasks.set_axis(pd.MultiIndex.from_arrays([names, names], names=["task", "id"]))


def _task_falls(run: Run) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the falls of loss and of distance by task × interval."""
    rows = distances(run).query("measure == 'cosine_avg'")
    nearer = falls(rows.pivot(index="task", columns="step", values="distance"))
    losses = by_instance(run).groupby(level="task").mean()
    return falls(losses)[nearer.columns], nearer


def located(runs: Sequence[Run]) -> pd.DataFrame:
    """Return the steps at which the loss and the distance of each test task fall most.

    Columns seed, task, loss_step, distance_step, loss_fall (nats a token), distance_fall, and
    by_chance: the share of the run's tasks whose distance falls most at this loss_step.
    """
    parts = []
    for run in runs:
        loss, nearer = _task_falls(run)
        steps = nearer.idxmax(axis=1)
        columns = {
            "loss_step": loss.idxmax(axis=1),
            "distance_step": steps,
            "loss_fall": loss.max(axis=1),
            "distance_fall": nearer.max(axis=1),
            "by_chance": loss.idxmax(axis=1).map(steps.value_counts(normalize=True)).fillna(0.0),
        }
        rows = pd.DataFrame(columns).rename_axis("task").reset_index()
        parts.append(rows.assign(seed=run.config.seed)[["seed", "task", *columns]])
    return pd.concat(parts, ignore_index=True)


def agreement(located: pd.DataFrame) -> dict[str, float]:
    """Return how often loss and distance fall most in one interval, and how often by chance."""
    same = located["loss_step"] == located["distance_step"]
    return {"same": float(same.mean()), "by_chance": float(located["by_chance"].mean())}


def table(found: Mapping[str, Association]) -> pd.DataFrame:
    """Return named associations as rows: interval, n, seeds, baseline, p; none without a value."""
    columns = ["estimate", "low", "high", "n", "seeds", "baseline_low", "baseline_high", "p"]
    rows = {name: vars(one) for name, one in found.items() if np.isfinite(one.estimate)}
    return pd.DataFrame.from_dict(rows, orient="index").reindex(columns=columns)
