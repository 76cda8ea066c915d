"""What a run had seen when its losses fell: the direct measures of C3 and C8.

Between two evaluations a run sees some training instances, and each test instance's loss falls by
some amount. Late intervals bring small falls whatever was seen, and some instances fall more than
others throughout; so from falls and from similarities alike the mean of each interval and of each
instance is taken off (two-way centred) before they are correlated. What is left answers: where the
data just seen was more similar to this instance than usual, did its loss fall more than usual?

What was seen comes from embeddings. A published run has it as tables, so that nothing has to be
embedded to read it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tma.arrange.distances import several_prefix_distances
from tma.arrange.spec import MEASURES
from tma.data.load import load_both, texts
from tma.errors import ParameterError, check_choice
from tma.runs.store import Run
from tma.study.effects import about, clusters_of, jackknife
from tma.study.intervals import TAILS, Floats, Interval

PERMUTATIONS = 1000
"""Permutations of the baseline."""
SIMILARITY, DISTANCES = "similarity.parquet", "distances.parquet"
_BLOCK = 4096
"""Training rows whose similarities are held at once."""
Embeddings = NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Seen:
    """The instances of a run with their embeddings."""

    X: Embeddings
    """(k, d) of the training instances, in the order in which they were consumed."""
    Y: Embeddings
    """(m, d) of the test instances."""
    test_ids: Sequence[str]
    """m ids, row by row of Y."""
    texts: tuple[Sequence[str], Sequence[str]]
    """The k and the m texts."""

    @classmethod
    def by(cls, run: Run) -> Seen:
        """Return what a run has seen, embedded now unless it was before.

        Raises:
            AssetError, DataError: the data cannot be had.
            ParameterError: it is no longer the data of the run.
        """
        from tma.embed import embed

        train, test = load_both(run.config)
        row = {name: number for number, name in enumerate(train["id"])}
        order = run.order
        if missing := [name for name in order if name not in row]:
            raise ParameterError(
                f"dataset={run.config.dataset!r} lacks {len(missing)} ids of the run {run.key}, "
                f"{missing[0]!r} first; expected all of them. Give the data that it was made with."
            )
        part = train.select([row[name] for name in order])
        return cls(embed(part), embed(test), test["id"][:], (texts(part), texts(test)))

    def rows(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Return the rows of test instances."""
        row = {name: number for number, name in enumerate(self.test_ids)}
        return np.array([row[one] for one in ids], dtype=np.int64)


def similarity(run: Run) -> pd.DataFrame:
    """Return how similar the training instances just seen are to each test instance.

    Returns:
        Rows and columns as of `drops`: the mean cosine similarity of a test instance to the
        training instances that were consumed in the interval that ends with the step.

    Raises:
        AssetError, DataError, ParameterError: a run that is not published needs its data.
    """
    path = run.folder / SIMILARITY
    rows = pd.read_parquet(path) if path.is_file() else similarity_rows(run, _seen(run))
    found = rows.pivot(index="id", columns="step", values="similarity")
    index = by_instance(run.losses).index
    return found.loc[index.get_level_values("id")].set_axis(index)


def distances(run: Run) -> pd.DataFrame:
    """Return how far the data seen so far is from each test task, by the nine measures.

    Returns:
        One row a (task, step, measure): task, step, measure, distance. Steps begin at the first
        evaluation behind step 0, before which nothing was seen.

    Raises:
        AssetError, DataError, ParameterError: a run that is not published needs its data.

    Source: the paper's section on similarity distances (`tma.prefix_distances`).
    """
    path = run.folder / DISTANCES
    return pd.read_parquet(path) if path.is_file() else distance_rows(run, _seen(run))


@lru_cache(maxsize=1)
def _seen_by(folder: Path) -> Seen:
    return Seen.by(Run(folder))


def _seen(run: Run) -> Seen:
    """Return what a run has seen; similarity and distances of one run ask for it in turn."""
    return _seen_by(run.folder)


def tables(run: Run) -> dict[str, pd.DataFrame]:
    """Return what a run has seen, by the names of the files that `similarity` and `distances` read.

    Raises:
        AssetError, DataError, ParameterError: as `similarity`.
    """
    seen = Seen.by(run)
    rows = {SIMILARITY: similarity_rows(run, seen), DISTANCES: distance_rows(run, seen)}
    # float32 has the digits of the embeddings.
    return {name: found.astype({found.columns[-1]: "float32"}) for name, found in rows.items()}


def similarity_rows(run: Run, seen: Seen) -> pd.DataFrame:
    """Return one row a (step, test instance): step, id, similarity; see `similarity`."""
    table = by_instance(run.losses)
    names = table.index.get_level_values("id").tolist()
    tested = np.asarray(seen.Y)[seen.rows(names)].astype(np.float64)
    stops = _consumed(run, len(seen.X), [int(step) for step in table.columns])
    parts = []
    for step, (start, stop) in zip(table.columns[1:], itertools.pairwise(stops), strict=True):
        found = _similarity(seen.X[start:stop], tested)
        parts.append(pd.DataFrame({"step": step, "id": names, "similarity": found}))
    return pd.concat(parts, ignore_index=True)


def distance_rows(run: Run, seen: Seen, measures: Sequence[str] = tuple(MEASURES)) -> pd.DataFrame:
    """Return one row a (task, step, measure): task, step, measure, distance; see `distances`."""
    index = by_instance(run.losses).index
    steps = [step for step in sorted(run.losses["step"].unique()) if step > 0]
    stops = _consumed(run, len(seen.X), steps)
    tasks = index.to_frame(index=False).groupby("task")["id"]
    rows = {task: seen.rows(ids.tolist()) for task, ids in tasks}
    parts = []
    for measure in measures:
        from_train, from_test = seen.texts if measure == "bigram_kl" else (seen.X, seen.Y)
        tests = [_taken(from_test, own) for own in rows.values()]
        found = several_prefix_distances(from_train, tests, stops, measure)
        parts += [
            pd.DataFrame({"task": task, "step": steps, "measure": measure, "distance": course})
            for task, course in zip(rows, found, strict=True)
        ]
    return pd.concat(parts, ignore_index=True)


def drops(run: Run) -> pd.DataFrame:
    """Return how much each test instance's loss falls between consecutive evaluations.

    Returns:
        Rows (task, id), sorted, an instance without a task being one of its own; columns the steps
        at which the intervals end; nats a token, positive where the loss falls.

    Raises:
        ParameterError: the run was evaluated at fewer than two steps.
    """
    return falls(by_instance(run.losses))


def by_instance(rows: pd.DataFrame, value: str = "loss") -> pd.DataFrame:
    """Return a run's rows (step, id, task, value) as values by (task, id) × step, sorted.

    An instance without a task is a task of its own.
    """
    rows = rows.assign(task=rows["task"].fillna(rows["id"]))
    return rows.pivot(index=["task", "id"], columns="step", values=value).sort_index()


def falls(values: pd.DataFrame) -> pd.DataFrame:
    """Return how much values by … × step fall between consecutive steps, named by the later one.

    Raises:
        ParameterError: there are fewer than two steps.
    """
    if values.shape[1] < 2:
        raise ParameterError(
            f"values are known at the steps {values.columns.tolist()} only; expected two at least. "
            "Make runs with a smaller eval_every, or with eval_at."
        )
    return -values.diff(axis=1).iloc[:, 1:]


def _consumed(run: Run, instances: int, steps: Sequence[int]) -> list[int]:
    """Return how many of a run's instances were consumed up to each step.

    The last step of an epoch may be smaller.
    """
    size = run.config.batch_size
    epoch = instances // run.config.epochs
    whole = (divmod(int(step), -(-epoch // size)) for step in steps)
    return [epochs * epoch + min(rest * size, epoch) for epochs, rest in whole]


def _similarity(X: Embeddings, Y: Floats) -> Floats:
    """Return the mean similarity of each row of Y to the rows of X."""
    blocks = (X[at : at + _BLOCK] for at in range(0, len(X), _BLOCK))
    rows: Iterator[Floats] = (np.asarray(block).astype(np.float64) for block in blocks)
    mean: Floats = Y @ sum((block.sum(axis=0) for block in rows), np.zeros(Y.shape[1]))
    return mean / len(X)


def _taken(rows: Embeddings | Sequence[str], numbers: NDArray[np.int64]) -> Embeddings | list[str]:
    if isinstance(rows, np.ndarray):
        return rows[numbers]
    return [rows[number] for number in numbers]


@dataclass(frozen=True, kw_only=True)
class Association(Interval):
    """A correlation with its 95 % interval, beside what no connection would give."""

    baseline_low: float
    """Lower end of the middle 95 % of the permuted correlations."""
    baseline_high: float
    """Upper end of it."""
    p: float
    """Share of permutations, the sample itself among them, with a correlation at least as far from
    zero."""

    @property
    def over_chance(self) -> Interval:
        """By how much it exceeds the permuted correlations: it minus the middle 95 % of them.

        The interval lies above zero where the correlation is larger than chance gives it.
        """
        middle = (self.baseline_low + self.baseline_high) / 2
        ends = (self.estimate - self.baseline_high, self.estimate - self.baseline_low)
        return Interval(self.estimate - middle, *ends, self.n, self.seeds)

    @property
    def parts(self) -> dict[str, Interval]:
        """What a claim that it is not chance needs: its own interval, and `over_chance`."""
        return {"as measured": self, "minus permuted": self.over_chance}


def association(
    drops: Sequence[pd.DataFrame],
    similarity: Sequence[pd.DataFrame],
    clusters: pd.Series | None = None,
    *,
    seeds: int | None = None,
    within_tasks: bool = False,
    seed: int = 0,
) -> Association:
    """Return the two-way centred correlation of loss drops and what was seen.

    Args:
        drops: of each run its loss drops by (task, id) × interval, from `drops`.
        similarity: of each run the similarities, of the same shape, from `similarity`.
        clusters: of each test instance its source dataset, by id, from `effects.clusters_of`; None:
            each is one by itself.
        seeds: number of seeds of the runs, for display; None: one a run.
        within_tasks: take off the means of each task in each interval, and permute within tasks:
            what is left is of the instance, not of its task.
        seed: seed of the permutations.

    Returns:
        The correlation in [-1, 1] over all runs, each centred by itself, with its interval by the
        jackknife over clusters. The baseline gives the instances of each task the courses of
        similarity of another's (`within_tasks`: each instance that of another of its task), the
        same one's in every run on the same test instances, since they belong together. NaN, with an
        endless interval and p = 1, where one of the two does not vary once the means are taken off,
        as with one instance or one interval.

    Raises:
        ParameterError: no runs, or tables that do not fit each other.

    Source: the paper's conclusion that generalization is by similarity of instances; the measure is
        this package's.
    """
    _check_tables(drops, similarity)
    pairs = [_Pair.of(*both, within_tasks) for both in zip(drops, similarity, strict=True)]
    ids = pd.Index([]).append([pair.ids for pair in pairs]).unique()
    of = ids.to_series() if clusters is None else clusters.loc[ids]
    names = of.unique().tolist()
    kept = {name: [(of.loc[pair.ids] != name).to_numpy() for pair in pairs] for name in names}

    def left(name: str | None) -> float:
        parts = pairs if name is None else map(_Pair.kept, pairs, kept[name])
        return _correlation([pair.centred() for pair in parts])

    runs = seeds or len(pairs)
    found = jackknife(names, left, len(ids), runs).within(-1, 1)
    baseline_low, baseline_high, p = -np.inf, np.inf, 1.0
    if np.isfinite(found.estimate):
        permuted = _permuted(pairs, seed, within=within_tasks)
        baseline_low, baseline_high = (float(np.quantile(permuted, tail)) for tail in TAILS)
        p = (1 + int((np.abs(permuted) >= abs(found.estimate) - 1e-12).sum())) / (1 + PERMUTATIONS)
    return Association(**vars(found), baseline_low=baseline_low, baseline_high=baseline_high, p=p)


@dataclass(frozen=True, eq=False)
class _Pair:
    """A run's drops and similarities, (m, k) each."""

    drops: Floats
    similar: Floats
    ids: pd.Index
    tasks: NDArray[np.int64]
    """Number of each instance's task, (m,)."""
    groups: NDArray[np.int64]
    """Number of the group whose means are taken off in each interval, (m,)."""

    @classmethod
    def of(cls, drops: pd.DataFrame, similarity: pd.DataFrame, within: bool) -> _Pair:
        tasks = pd.factorize(drops.index.get_level_values("task"))[0]
        groups = tasks if within else np.zeros_like(tasks)
        values = (drops.to_numpy(np.float64), similarity.to_numpy(np.float64))
        return cls(*values, drops.index.get_level_values("id"), tasks, groups)

    def kept(self, rows: NDArray[np.bool_]) -> _Pair:
        """Return some of the instances."""
        codes = pd.factorize(self.tasks[rows])[0], pd.factorize(self.groups[rows])[0]
        return _Pair(self.drops[rows], self.similar[rows], self.ids[rows], *codes)

    def centred(self, rows: NDArray[np.int64] | None = None) -> tuple[Floats, Floats]:
        """Return both less their means, the similarities of other rows if any are given."""
        similar = self.similar if rows is None else self.similar[rows]
        return _centred(self.drops, self.groups), _centred(similar, self.groups)


def _correlation(pairs: Sequence[tuple[Floats, Floats]]) -> float:
    both, drop, similar = (
        sum(float(np.vdot(one[i], one[j])) for one in pairs) for i, j in ((0, 1), (0, 0), (1, 1))
    )
    # What is left of a single instance, or of one interval, is rounding.
    return both / float(np.sqrt(drop * similar)) if min(drop, similar) > 1e-20 else float("nan")


def of_runs(runs: Sequence[Run], *, within_tasks: bool = False, seed: int = 0) -> Association:
    """Return the `association` of the loss drops of runs with what they saw, over source datasets.

    Raises:
        AssetError, DataError, ParameterError: as `similarity`.
    """
    tables = [drops(run) for run in runs], [similarity(run) for run in runs]
    seeds = len({run.config.seed for run in runs})
    clusters = clusters_of(runs)
    return association(*tables, clusters, seeds=seeds, within_tasks=within_tasks, seed=seed)


def distances_of(runs: Mapping[str, Run]) -> pd.DataFrame:
    """Return the `distances` of one run an order, with a column order."""
    parts = [distances(run).assign(order=order) for order, run in runs.items()]
    return pd.concat(parts, ignore_index=True)


def step_match(runs: Sequence[Run], measure: str = "cosine_avg", seed: int = 0) -> Association:
    """Return how closely the loss of test tasks falls when the distance to them falls.

    Args:
        runs: runs of one order, one a seed.
        measure: one of the nine distances.
        seed: seed of the permutations.

    Returns:
        The `association` of two falls between consecutive evaluations, with test tasks for
        instances (n counts tasks): that of a task's mean loss, and that of its distance from
        the data seen so far. The first interval is not among them: before it nothing was seen.

    Raises:
        ParameterError: an unknown measure.

    Source: the paper's claim that the loss drops at the step at which similar data arrives.
    """
    both = [[_as_instances(table) for table in _task_falls(run, measure)] for run in runs]
    losses, nearer = zip(*both, strict=True) if both else ((), ())
    tasks = pd.concat([about(run) for run in runs]).drop_duplicates("task").set_index("task")
    clusters = tasks["source"] if tasks["source"].nunique() > 1 else None
    return association(losses, nearer, clusters, seeds=len(runs), seed=seed)


def located(runs: Sequence[Run], measure: str = "cosine_avg") -> pd.DataFrame:
    """Return where the loss of each test task falls most, and where its distance does.

    Args:
        runs: runs of one order, one a seed.
        measure: one of the nine distances.

    Returns:
        One row a (seed, task): seed, task, loss_step and distance_step (at which the interval of
        the largest fall ends), loss_fall (nats a token) and distance_fall, and by_chance: the share
        of the run's tasks whose distance falls most at this loss_step. The first interval is left
        out as in `step_match`.

    Raises:
        ParameterError: an unknown measure.
    """
    parts = []
    for run in runs:
        loss, nearer = _task_falls(run, measure)
        steps = loss.idxmax(axis=1), nearer.idxmax(axis=1)
        found = {
            "seed": run.config.seed,
            "task": loss.index,
            "loss_step": steps[0].to_numpy(),
            "distance_step": steps[1].to_numpy(),
            "loss_fall": loss.max(axis=1).to_numpy(),
            "distance_fall": nearer.max(axis=1).to_numpy(),
            "by_chance": [float((steps[1] == step).mean()) for step in steps[0]],
        }
        parts.append(pd.DataFrame(found))
    return pd.concat(parts, ignore_index=True)


def agreement(located: pd.DataFrame) -> dict[str, float]:
    """Return how often loss and distance fall most in the same interval, and how often by chance.

    Args:
        located: from `located`.

    Returns:
        same: the share of rows whose two steps are equal; by_chance: the share to be expected if
        each task had the distances of a random one of the same run.
    """
    same = located["loss_step"] == located["distance_step"]
    return {"same": float(same.mean()), "by_chance": float(located["by_chance"].mean())}


def _task_falls(run: Run, measure: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the falls of loss and of distance by task × interval."""
    check_choice("measure", measure, MEASURES)
    rows = distances(run).query("measure == @measure")
    nearer = falls(rows.pivot(index="task", columns="step", values="distance"))
    losses = by_instance(run.losses).groupby(level="task").mean()
    return falls(losses)[nearer.columns], nearer


def table(found: Mapping[str, Association]) -> pd.DataFrame:
    """Return named associations as rows for display: interval, n, seeds, baseline, p.

    One without a value, such as within test tasks of one instance each, has no row.
    """
    columns = ("estimate", "low", "high", "n", "seeds", "baseline_low", "baseline_high", "p")
    rows = {
        name: [getattr(one, column) for column in columns]
        for name, one in found.items()
        if np.isfinite(one.estimate)
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


def centred(runs: Sequence[Run]) -> pd.DataFrame:
    """Return the pairs that `of_runs` correlates, one row a (run, instance, interval).

    Returns:
        Columns run (its number), task, id, step (the interval's end), drop and similarity, both
        two-way centred.

    Raises:
        AssetError, DataError, ParameterError: as `similarity`.
    """
    parts = []
    for number, run in enumerate(runs):
        d, s = drops(run), similarity(run)
        both = zip(("drop", "similarity"), _Pair.of(d, s, within=False).centred(), strict=True)
        columns = {name: pd.DataFrame(v, d.index, d.columns).stack() for name, v in both}
        parts.append(pd.DataFrame(columns).reset_index().assign(run=number))
    whole = pd.concat(parts, ignore_index=True)
    return whole.reindex(columns=["run", "task", "id", "step", "drop", "similarity"])


def _as_instances(tasks: pd.DataFrame) -> pd.DataFrame:
    names = tasks.index.tolist()
    return tasks.set_axis(pd.MultiIndex.from_arrays([names, names], names=["task", "id"]))


def _check_tables(drops: Sequence[pd.DataFrame], similarity: Sequence[pd.DataFrame]) -> None:
    if not drops or len(drops) != len(similarity):
        raise ParameterError(
            f"drops has {len(drops)} tables and similarity {len(similarity)}; expected one a run "
            "of each, and a run at least."
        )
    for number, (d, s) in enumerate(zip(drops, similarity, strict=True)):
        if not (d.index.equals(s.index) and d.columns.equals(s.columns)):
            raise ParameterError(
                f"drops[{number}] has {d.shape[0]} instances × {d.shape[1]} intervals and "
                f"similarity[{number}] {s.shape[0]} × {s.shape[1]}; expected the same ids and "
                "steps. Make both from the same run."
            )


def _centred(values: Floats, codes: NDArray[np.int64]) -> Floats:
    """Return values (m, k) less the mean of each row, and of each group of rows in each column."""
    rest = values - values.mean(axis=1, keepdims=True)
    sums = np.zeros((codes.max(initial=0) + 1, values.shape[1]))
    np.add.at(sums, codes, rest)
    out: Floats = rest - (sums / np.bincount(codes, minlength=1)[:, None])[codes]
    return out


def _permuted(pairs: Sequence[_Pair], seed: int, *, within: bool) -> Floats:
    """Return the correlation under permutations, (PERMUTATIONS,).

    The instances of a task are alike, so that whole tasks change places, an instance taking the
    similarities of one of the other task's; within tasks, or where there is one, instances do.
    """
    random = np.random.default_rng([seed, 2])
    tested = pd.factorize(pd.Series([tuple(pair.ids) for pair in pairs]))[0]
    tasks = [pairs[int(np.argmax(tested == number))].tasks for number in range(tested.max() + 1)]
    permuted = np.empty(PERMUTATIONS)
    for number in range(PERMUTATIONS):
        rows = [_drawn_rows(random, own, within=within) for own in tasks]
        both = [pair.centred(rows[own]) for pair, own in zip(pairs, tested, strict=True)]
        permuted[number] = _correlation(both)
    return permuted


def _drawn_rows(
    random: np.random.Generator, tasks: NDArray[np.int64], *, within: bool
) -> NDArray[np.int64]:
    row = np.empty(len(tasks), dtype=np.int64)
    if within or not tasks.max():
        row[np.argsort(tasks, kind="stable")] = np.lexsort((random.random(len(tasks)), tasks))
        return row
    members = [np.flatnonzero(tasks == task) for task in range(tasks.max() + 1)]
    for own, other in zip(members, random.permutation(len(members)), strict=True):
        row[own] = np.resize(members[other], len(own))
    return row
