"""How closely test losses follow the training data just seen: the direct measure of C8, and of C3.

Between two evaluations a run sees some training instances, and each test instance's loss drops by
some amount. Late intervals bring small drops whatever was seen, and some instances drop more than
others throughout; so from drops and from similarities alike the mean of each interval and of each
instance is taken off (two-way centred) before they are correlated. What is left answers: where the
data just seen was more similar to this instance than usual, did its loss drop more than usual?
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tma.bootstrap import ROWS, added, by_instance, drawn_apart
from tma.errors import ParameterError, check_choice, check_length
from tma.intervals import Floats, Interval, bounds
from tma.method import MEASURES
from tma.runs import Run
from tma.seen import falls

PERMUTATIONS = 1000
"""Permutations of the baseline."""


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
    *,
    run_seeds: Sequence[int] | None = None,
    within_tasks: bool = False,
    seed: int = 0,
) -> Association:
    """Return the two-way centred correlation of loss drops and what was seen.

    Args:
        drops: of each run its loss drops by (task, id) × interval, from `seen.drops`.
        similarity: of each run the similarities, of the same shape, from `seen.seen_similarity`.
        run_seeds: the seed of each run; runs of the same seed, as of several orders, are drawn
            together. None: each run is drawn by itself.
        within_tasks: take off the means of each task in each interval, and permute within tasks:
            what is left is of the instance, not of its task.
        seed: seed of the bootstrap and of the permutations.

    Returns:
        The correlation in [-1, 1] over all runs, each centred by itself. Its interval draws whole
        tasks (instances if there is one task only) and the seeds. The baseline gives the instances
        of each task the courses of similarity of another's (`within_tasks`: each instance that of
        another of its task), the same one's in every run, since they belong together. NaN, with an
        endless interval and p = 1, where one of the two does not vary once the means are taken off,
        as with one instance or one interval.

    Raises:
        ParameterError: no runs, or tables that do not fit each other.

    Source: the paper's conclusion that generalization is by similarity of instances; the measure is
        this package's.
    """
    _check_tables(drops, similarity)
    index = drops[0].index
    groups = index.get_level_values("task") if within_tasks else np.zeros(len(index))
    codes = pd.factorize(groups)[0]
    runs = [
        (_centred(d.to_numpy(), codes), _centred(s.to_numpy(), codes))
        for d, s in zip(drops, similarity, strict=True)
    ]
    drawn = pd.factorize(np.array(run_seeds if run_seeds is not None else range(len(runs))))[0]
    check_length("run_seeds", drawn.tolist(), "drops and similarity", len(runs))
    found = _bootstrap(runs, index, drawn, seed)
    estimate = found.estimate
    baseline_low, baseline_high, p = -np.inf, np.inf, 1.0
    if np.isfinite(estimate):
        permuted = _permuted(runs, index, seed, within=within_tasks)
        baseline_low, baseline_high = bounds(permuted)
        p = (1 + int((np.abs(permuted) >= abs(estimate) - 1e-12).sum())) / (1 + PERMUTATIONS)
    return Association(**vars(found), baseline_low=baseline_low, baseline_high=baseline_high, p=p)


def step_match(
    runs: Sequence[Run],
    distances: Sequence[pd.DataFrame],
    measure: str = "cosine_avg",
    seed: int = 0,
) -> Association:
    """Return how closely the loss of test tasks falls when the distance to them falls.

    Args:
        runs: runs of one order, one a seed.
        distances: of each run its distances, from `seen.distance_curves`.
        measure: one of their measures.
        seed: seed of the bootstrap and of the permutations.

    Returns:
        The `association` of two falls between consecutive evaluations, with test tasks for
        instances (n counts tasks): that of a task's mean loss, and that of its distance from
        the data seen so far. The first interval is not among them: before it nothing was seen.

    Raises:
        ParameterError: an unknown measure, or tables that do not fit each other.

    Source: the paper's claim that the loss drops at the step at which similar data arrives.
    """
    both = [
        [_as_instances(table) for table in _task_falls(run, table, measure)]
        for run, table in zip(runs, distances, strict=True)
    ]
    losses, nearer = zip(*both, strict=True) if both else ((), ())
    return association(losses, nearer, run_seeds=[run.config.seed for run in runs], seed=seed)


def located(
    runs: Sequence[Run], distances: Sequence[pd.DataFrame], measure: str = "cosine_avg"
) -> pd.DataFrame:
    """Return where the loss of each test task falls most, and where its distance does.

    Args:
        runs: runs of one order, one a seed.
        distances: of each run its distances, from `seen.distance_curves`.
        measure: one of their measures.

    Returns:
        One row a (seed, task): seed, task, loss_step and distance_step (at which the interval of
        the largest fall ends), loss_fall (nats a token) and distance_fall, and by_chance: the share
        of the run's tasks whose distance falls most at this loss_step. The first interval is left
        out as in `step_match`.

    Raises:
        ParameterError: an unknown measure.
    """
    parts = []
    for run, table in zip(runs, distances, strict=True):
        loss, nearer = _task_falls(run, table, measure)
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


def _task_falls(run: Run, table: pd.DataFrame, measure: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the falls of loss and of distance by task × interval."""
    check_choice("measure", measure, MEASURES)
    rows = table[table["measure"] == measure]
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


def centred(drops: Sequence[pd.DataFrame], similarity: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return the pairs that `association` correlates, one row a (run, instance, interval).

    Returns:
        Columns run (its number), task, id, step (the interval's end), drop and similarity, both
        two-way centred.

    Raises:
        ParameterError: no runs, or tables that do not fit each other.
    """
    _check_tables(drops, similarity)
    parts = []
    for number, both in enumerate(zip(drops, similarity, strict=True)):
        codes = np.zeros(len(both[0]), dtype=np.int64)
        columns = [
            pd.DataFrame(_centred(t.to_numpy(), codes), t.index, t.columns).stack() for t in both
        ]
        table = pd.DataFrame(dict(zip(("drop", "similarity"), columns, strict=True)))
        parts.append(table.reset_index().assign(run=number))
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
        same = d.index.equals(s.index) and d.columns.equals(s.columns)
        if not same or not d.index.equals(drops[0].index):
            raise ParameterError(
                f"drops[{number}] has {d.shape[0]} instances × {d.shape[1]} intervals and "
                f"similarity[{number}] {s.shape[0]} × {s.shape[1]}; expected the same ids and "
                "steps, and the ids of drops[0]. Make both from the same run."
            )


def _centred(values: Floats, codes: NDArray[np.int64]) -> Floats:
    """Return values (m, k) less the mean of each row, and of each group of rows in each column."""
    rest = values - values.mean(axis=1, keepdims=True)
    sums = np.zeros((codes.max() + 1, values.shape[1]))
    np.add.at(sums, codes, rest)
    out: Floats = rest - (sums / np.bincount(codes)[:, None])[codes]
    return out


def _bootstrap(
    runs: Sequence[tuple[Floats, Floats]],
    index: pd.Index,
    drawn: NDArray[np.int64],
    seed: int,
) -> Interval:
    """Return the correlation with its interval.

    Interval means are taken off anew in each resample: from the sums of squares and products of the
    drawn tasks, those of their interval means are subtracted.
    """
    level = "task" if index.get_level_values("task").nunique() > 1 else "id"
    cluster = pd.factorize(index.get_level_values(level))[0]
    tasks, seeds = drawn_apart(cluster.max() + 1, drawn.max() + 1, seed)
    total = np.zeros((3, ROWS))
    for number, both in enumerate(runs):
        size, means = tasks @ np.bincount(cluster), []
        for values in both:
            sums = np.zeros((cluster.max() + 1, values.shape[1]))
            np.add.at(sums, cluster, values)
            means.append(tasks @ sums / size[:, None])
        for at, (i, j) in enumerate(((0, 1), (0, 0), (1, 1))):
            products = np.bincount(cluster, (both[i] * both[j]).sum(axis=1))
            apart = tasks @ products - size * (means[i] * means[j]).sum(axis=1)
            total[at] += seeds[:, drawn[number]] * apart
    # What is left of a resample of one instance is rounding.
    positive = (total[1:] > np.maximum(1e-12 * total[1:, :1], 1e-20)).all(axis=0)
    found = np.where(
        positive, total[0] / np.sqrt(np.where(positive, total[1] * total[2], 1)), np.nan
    )
    ends = bounds(added(found))
    whole = Interval(float(found[0]), *ends, len(index), int(drawn.max()) + 1)
    return whole.drawn_from(int(cluster.max()) + 1).within(-1, 1)


def _permuted(
    runs: Sequence[tuple[Floats, Floats]], index: pd.Index, seed: int, *, within: bool
) -> Floats:
    """Return the correlation under permutations, (PERMUTATIONS,).

    The instances of a task are alike, so that whole tasks change places, an instance taking the
    similarities of one of the other task's; within tasks, or where there is one, instances do.
    """
    random = np.random.default_rng([seed, 2])
    tasks = pd.factorize(index.get_level_values("task"))[0]
    members = [np.flatnonzero(tasks == task) for task in range(tasks.max() + 1)]
    codes = tasks if within else np.zeros_like(tasks)
    permuted = np.empty(PERMUTATIONS)
    for number in range(PERMUTATIONS):
        if within or len(members) == 1:
            row = _permuted_within(random, tasks)
        else:
            row = _permuted_tasks(random, members, len(tasks))
        # Tasks of unequal size change the means.
        both = [(d, _centred(s[row], codes)) for d, s in runs]
        scale = np.sqrt(np.prod([sum((pair[i] ** 2).sum() for pair in both) for i in (0, 1)]))
        permuted[number] = sum(np.vdot(d, s) for d, s in both) / scale
    return permuted


def _permuted_within(random: np.random.Generator, tasks: NDArray[np.int64]) -> NDArray[np.int64]:
    row = np.empty(len(tasks), dtype=np.int64)
    row[np.argsort(tasks, kind="stable")] = np.lexsort((random.random(len(tasks)), tasks))
    return row


def _permuted_tasks(
    random: np.random.Generator, members: Sequence[NDArray[np.int64]], size: int
) -> NDArray[np.int64]:
    row = np.empty(size, dtype=np.int64)
    for own, other in zip(members, random.permutation(len(members)), strict=True):
        row[own] = np.resize(members[other], len(own))
    return row
