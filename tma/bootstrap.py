"""Losses of several runs → resampled mean curves → intervals of whatever is read off a curve.

The unit that is drawn is the test task, whole, because instances of one task are alike and drawing
them one by one would promise too much; instances are drawn where there is one task only, or none.
Seeds are drawn too, if there are several: tasks with the seeds as they are, then seeds with the
tasks as they are, and what each draw changes is added. (Both drawn at once, as by Owen, "The
pigeonhole bootstrap", Annals of Applied Statistics 2007, noise counts three times; so it counts
twice, and where it rules an interval is √2 times as wide as needed, besides what few tasks add.)
A bootstrap of S units shows a variance too small by (S - 1)/S, a third with three seeds; the
deviations of the drawn weights from equal ones are widened by the root of that. For the tasks,
which may be of unequal size, the interval itself is widened so, and by the ratio of Student's
quantile to the normal one: by 1.11 with 18 of them, by 2.7 with three. With three seeds whose
choice matters more than that of the tasks an interval still covers less than it says
(`benchmarks/coverage.py` measures how often it holds the truth). With one seed it says nothing
about seeds. One draw gives whole curves, so that the final loss, the area or any other functional
comes from the same resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tma.errors import ParameterError
from tma.intervals import Floats, Interval, bounds
from tma.runs import Run

RESAMPLES = 2000
"""Bootstrap samples of an interval, of tasks and as many of seeds."""
ROWS = 1 + 2 * RESAMPLES
"""The sample, its resamples of tasks, its resamples of seeds."""


def seed_weights(size: int, seed: int | Sequence[int]) -> Floats:
    """Return the weight of each of `size` seeds in each resample, (1 + RESAMPLES, size).

    Each row sums to 1; row 0 is the sample itself. Deviations from 1/size are widened by
    √(size/(size - 1)), which makes the variance of a mean over seeds unbiased; a weight may be
    below zero.
    """
    drawn = draws(size, seed) / size
    if size == 1:
        return drawn
    equal = 1 / size
    wider: Floats = equal + (drawn - equal) * math.sqrt(size / (size - 1))
    return wider


def draws(size: int, seed: int | Sequence[int]) -> Floats:
    """Return how often each of `size` units is in each resample, (1 + RESAMPLES, size).

    Row 0 is the sample itself: each unit once.
    """
    drawn = np.random.default_rng(seed).multinomial(size, [1 / size] * size, size=RESAMPLES)
    return np.vstack([np.ones(size), drawn])


def tasks_first(drawn: Floats) -> Floats:
    """Return draws (1 + RESAMPLES, …) and then as many samples as they are: (ROWS, …)."""
    return np.concatenate([drawn, np.repeat(drawn[:1], RESAMPLES, axis=0)])


def seeds_last(drawn: Floats) -> Floats:
    """Return 1 + RESAMPLES samples as they are and then the draws: (ROWS, …)."""
    return np.concatenate([np.repeat(drawn[:1], 1 + RESAMPLES, axis=0), drawn[1:]])


def drawn_apart(tasks: int, seeds: int, seed: int) -> tuple[Floats, Floats]:
    """Return how often each task is in each row, (ROWS, tasks), and each seed's weight there.

    Args:
        tasks: number of tasks.
        seeds: number of seeds.
        seed: seed of the draws.
    """
    often, weights = draws(tasks, [seed, 0]), seed_weights(seeds, [seed, 1])
    return tasks_first(often), seeds_last(weights)


def added(values: Floats) -> Floats:
    """Return a functional's resamples, (RESAMPLES,): what both draws change, added to the sample's.

    Args:
        values: (ROWS,): of the sample, with tasks drawn, with seeds drawn.
    """
    tasks, seeds = values[1 : 1 + RESAMPLES], values[1 + RESAMPLES :]
    out: Floats = tasks + (seeds - values[0])
    return out


@dataclass(frozen=True)
class Resampled:
    """Mean curves of the sample and of its resamples.

    Row 0 is the sample; in the next `RESAMPLES` rows tasks are drawn, in the last ones seeds.
    """

    values: Floats
    """(ROWS, sides, seeds, columns), means over test instances. The columns are `steps` and, unless
    all tables end at the last of these, each table's own last."""
    weights: Floats
    """(ROWS, seeds), of each seed; rows sum to 1."""
    steps: NDArray[np.int64]
    """Steps that all evaluated, rising."""
    n: int
    """Test instances."""
    clusters: int
    """Test tasks that are drawn whole; of a single task, or without tasks, test instances."""

    @property
    def curves(self) -> Floats:
        """Curves at `steps`, (ROWS, sides, seeds, steps)."""
        return self.values[..., : len(self.steps)]

    @property
    def means(self) -> Floats:
        """Mean curves over the seeds drawn, (ROWS, sides, steps)."""
        return self.over_seeds(self.curves)

    @property
    def finals(self) -> Floats:
        """Means over the seeds drawn of each table at its own end, (ROWS, sides)."""
        return self.over_seeds(self.values)[..., -1]

    def over_seeds(self, values: Floats) -> Floats:
        """Return the mean over the seeds drawn of values (ROWS, sides, seeds, …)."""
        means: Floats = np.einsum("bs,bps...->bp...", self.weights, values)
        return means

    def interval(self, values: Floats, step: int | None = None) -> Interval:
        """Return the interval of a functional's values, (ROWS,)."""
        ends = bounds(added(values))
        found = Interval(float(values[0]), *ends, self.n, self.weights.shape[1], step)
        return found.drawn_from(self.clusters)


def resample(sides: Sequence[Sequence[pd.DataFrame]], seed: int) -> Resampled:
    """Draw tasks and seeds for tables of values.

    Args:
        sides: what is compared; of each side one table a seed: values by (task, id) × step, from
            `by_instance`. Column k of the seeds of one side belongs with that of the others.
        seed: seed of the draws.

    Raises:
        ParameterError: the tables are of different test instances, or have no step in common.
    """
    tables = [one for side in sides for one in side]
    index, steps = tables[0].index, tables[0].columns
    for one in tables:
        if not one.index.equals(index):
            raise ParameterError(
                f"the runs have different test instances ({len(index)} and {len(one.index)} of "
                "them); expected the same ids. Compare runs with the same data settings."
            )
        steps = steps.intersection(one.columns)
    if not len(steps):
        raise ParameterError(
            "the runs have no evaluated step in common; expected one at least. Give them the same "
            "eval_every or eval_at."
        )
    shared = np.sort(steps.to_numpy(np.int64))
    sums, counts = _clusters(_with_ends(tables, shared))
    chosen = draws(len(counts), [seed, 0])
    means = chosen @ sums / (chosen @ counts)[:, None]
    seeds = len(sides[0])
    values = tasks_first(means.reshape(len(means), len(sides), seeds, -1))
    weights = seeds_last(seed_weights(seeds, [seed, 1]))
    return Resampled(values, weights, shared, len(index), len(counts))


def _with_ends(tables: Sequence[pd.DataFrame], shared: NDArray[np.int64]) -> list[pd.DataFrame]:
    """Return tables at shared steps and, where one goes on after them, each at its own last."""
    last = [int(one.columns.max()) for one in tables]
    # The sums of a wider table may differ in the last bit: it is made wider only where it has to.
    if all(step == shared[-1] for step in last):
        return [one[shared] for one in tables]
    return [one[[*shared, step]] for one, step in zip(tables, last, strict=True)]


def _clusters(tables: Sequence[pd.DataFrame]) -> tuple[Floats, Floats]:
    """Return the sums of each cluster of test instances, (c, tables · steps), and its size, (c,).

    A single task cannot be drawn; its instances then stand for themselves.
    """
    index = tables[0].index
    level = "task" if index.get_level_values("task").nunique() > 1 else "id"
    values = pd.DataFrame(np.hstack([one.to_numpy(np.float64) for one in tables]), index=index)
    groups = values.groupby(level=level, sort=True)
    return groups.sum().to_numpy(), np.asarray(groups.size(), dtype=np.float64)


def by_instance(rows: pd.DataFrame, value: str = "loss") -> pd.DataFrame:
    """Return a run's rows (step, id, task, value) as values by (task, id) × step, sorted.

    An instance without a task is a task of its own.
    """
    rows = rows.assign(task=rows["task"].fillna(rows["id"]))
    return rows.pivot(index=["task", "id"], columns="step", values=value).sort_index()


def matched(*sides: Sequence[Run]) -> list[tuple[Run, ...]]:
    """Return the runs of several orders that belong together: those of the same seed.

    A single run, as of an order without chance, is put beside every seed of the other sides.

    Raises:
        ParameterError: a side has no run or two of one seed, or no seed is on all sides that have
            several.
    """
    found = [_by_seed(number, side) for number, side in enumerate(sides, start=1)]
    several = [runs for runs in found if len(runs) > 1]
    if not several:
        return [tuple(run for runs in found for run in runs.values())]
    shared = sorted(set.intersection(*(set(runs) for runs in several)))
    if not shared:
        seeds = " and ".join(str(sorted(runs)) for runs in several)
        raise ParameterError(f"the sides have seeds {seeds}; expected seeds in common.")
    return [tuple(r.get(seed) or next(iter(r.values())) for r in found) for seed in shared]


def _by_seed(number: int, runs: Sequence[Run]) -> dict[int, Run]:
    found = {run.config.seed: run for run in runs}
    if not runs or len(found) < len(runs):
        seeds = [run.config.seed for run in runs]
        raise ParameterError(f"side {number} has runs of seeds {seeds}; expected one run or more, "
                             "each of a seed of its own.")  # fmt: skip
    return found
