"""Embeddings → a permutation of training rows: one function an order.

A new order is a function of `Rows` under `@order("its_name")`, and a line in `method.ORDERS`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tma.arrange.rounds import Order, Rows, Texts, cut, first_places, rounds
from tma.arrange.spec import Method, order_name
from tma.errors import check_length, check_texts, wrong

if TYPE_CHECKING:
    from tma.arrange.rows import UnitRows

log = logging.getLogger(__name__)

TIE = 1e-10
"""Distances of single rows that differ by less are equal: float64 sums leave far less noise."""

_ORDERS: dict[str, Callable[[Rows], Order]] = {}


def order(name: str) -> Callable[[Callable[[Rows], Order]], Callable[[Rows], Order]]:
    """Register a function of `Rows` as the order `name`."""

    def register(function: Callable[[Rows], Order]) -> Callable[[Rows], Order]:
        _ORDERS[name] = function
        return function

    return register


def arrange(
    name: str,
    X: NDArray[np.floating],
    Y: NDArray[np.floating],
    *,
    tasks: Sequence[str | None] | None = None,
    limit: int | None = None,
    seed: int = 0,
    measure: str = "wsd",
    weight: float | None = None,
    collision: str = "set",
    within: str = "row",
    exact_limit: bool = False,
    exclude_near_duplicates: float | None = None,
    pool: int | None = None,
    pool_by: str = "row",
    texts: Texts | None = None,
    device: str | None = None,
) -> Order:
    """Return the training rows in the named order.

    Args:
        name: `random`: shuffled. `round_robin`: one row of each task in turn, tasks and rows
            shuffled. `cluster`: task after task, tasks and rows shuffled. `nearest`, `farthest`:
            by WSD or another `measure`. `coarse_nearest`, `coarse_farthest`: whole tasks by the WSD
            of their mean embedding, rows of a task ascending. `tma_min`: the N nearest in round
            order. `tma_max`: the N farthest, the farthest round first. `tma_nft`: N/2 nearest in
            round order, then N/2 farthest with the farthest round last. `tma_fft`: N/2 farthest,
            the farthest round first, then N/2 nearest with the nearest round last. `tma_rt`: the
            rows of `tma_nft`, shuffled; `tma_min_rt` and `tma_max_rt`: those of `tma_min` and
            `tma_max`, which tell what is selected from its order.
            `tma_rounds[i:j]`: the nearest rounds i to j - 1.
        X: (n, d) unit embeddings of the training rows, in memory or memory-mapped.
        Y: (m, d) unit embeddings of the test rows.
        tasks: the task of each training row; needed by the orders that go by tasks.
        limit: N, rows wanted; None: all. TMA takes whole rounds, and so goes past N by less than
            one round (for the two-sided orders: by less than one near and one far round). Where
            the near and the far half of a two-sided order share rows, fewer than N come out.
        seed: seed of the shuffled orders.
        measure: what `nearest` and `farthest` sort by: "wsd" or one of `similarity.MEASURES`.
        weight: w of WSD; None: mean(MD)/mean(AD), the paper's.
        collision: TMA: "set", two test rows may take the same row (the paper's), or "each", every
            test row takes its own, by ascending test row.
        within: TMA, inside a round: "row", ascending row number (the paper's; where data is stored
            task by task, a round is then in cluster order), "similarity", in the round's own sense
            (a half that is turned round, turned round as well), or "shuffled", by the seed.
        exact_limit: TMA: cut the last round, so that each side takes just the rows wanted of it.
        exclude_near_duplicates: leave out training rows with at least this cosine similarity to a
            test row; how many is logged.
        pool: rows that the seed draws, before near-duplicates are left out; only these are
            arranged, and held in memory. None: all. One seed draws one pool, whatever then arranges
            it. Of the rows of a pool that tie, the one drawn first comes first.
        pool_by: what is drawn: "row", single rows, or "task", one task after another, whole but for
            the last.
        texts: training and test texts; needed by `measure="bigram_kl"`.
        device: where products are computed; None: a GPU if there is one. No influence on the order.

    Returns:
        (k,) int64 row numbers, each at most once. A row that both halves of a two-sided order
        hold stays at its first place.

    Raises:
        ParameterError: an unknown name or setting, or `tasks` or `texts` that are missing or of
            another length than X; it is a ValueError.
        ValueError: embeddings that are empty, not finite, not unit rows, or of unequal width.

    Source: the paper's sections on data arrangement, similarity, granularity and TMA.
    """
    method = Method(
        name,
        limit=limit,
        seed=seed,
        measure=measure,
        weight=weight,
        collision=collision,
        within=within,
        exact_limit=exact_limit,
        exclude_near_duplicates=exclude_near_duplicates,
        pool=pool,
        pool_by=pool_by,
    )
    return arrange_by(method, X, Y, tasks=tasks, texts=texts, device=device)[0]


def arrange_by(
    method: Method,
    X: NDArray[np.floating],
    Y: NDArray[np.floating],
    *,
    tasks: Sequence[str | None] | None = None,
    texts: Texts | None = None,
    device: str | None = None,
    pool: Order | None = None,
) -> tuple[Order, Rows]:
    """Return the order of a method as `arrange` does, and what it was made from.

    Given `pool`, the numbers of the rows that `drawn` draws, X, tasks and texts are those of just
    these rows, so that the others need no embeddings.
    """
    rows = prepared(method, X, Y, tasks=tasks, texts=texts, device=device, pool=pool)
    return rows.stored[ordered(rows)], rows


def ordered(rows: Rows) -> Order:
    """Return an order as numbers of the rows of `rows.X`."""
    made = _ORDERS[order_name(rows.method.name)](rows) if len(rows.numbers) else _joined([])
    rows.X.check()  # an order that needs no embeddings has not read them
    return made


def prepared(
    method: Method,
    X: NDArray[np.floating],
    Y: NDArray[np.floating],
    *,
    tasks: Sequence[str | None] | None = None,
    texts: Texts | None = None,
    device: str | None = None,
    pool: Order | None = None,
) -> Rows:
    """Return what an order is made from: the pool that is drawn, less near-duplicates."""
    from tma.arrange.rows import unit_pair

    train, test = unit_pair(X, Y)
    # By position, whatever index a table's column has.
    tasks = None if tasks is None else list(tasks)
    texts = None if texts is None else (list(texts[0]), list(texts[1]))
    check_length("tasks", tasks, "X", len(train))
    check_texts(texts, len(train), len(test))
    every = np.arange(len(train))
    stored = every if pool is None else pool
    rows = Rows(train, test.float32, stored, every, tasks, texts, method, device)
    if pool is None and method.pool is not None:
        rows = _only(rows, _pool(rows, method.pool))
    numbers = _usable(method.exclude_near_duplicates, rows.X, test, rows.numbers, device)
    return replace(rows, numbers=numbers, left_out=len(rows.numbers) - len(numbers))


def _only(rows: Rows, drawn: Order) -> Rows:
    """Return what an order is made from, with the rows drawn alone, in the sequence drawn."""
    from tma.arrange.rows import UnitRows

    rows.X.check()
    tasks = None if rows.tasks is None else [rows.tasks[row] for row in drawn]
    texts = None if rows.texts is None else ([rows.texts[0][row] for row in drawn], rows.texts[1])
    X, numbers = UnitRows(rows.X.array[drawn], rows.X.name), np.arange(len(drawn))
    return replace(rows, X=X, stored=drawn, numbers=numbers, tasks=tasks, texts=texts)


def _pool(rows: Rows, size: int) -> Order:
    """Return the numbers of the rows that the seed draws, in the sequence in which it does."""
    if rows.method.pool_by == "row":
        return drawn(len(rows.numbers), size, rows.method.seed)
    return _joined(_shuffled_tasks(rows, _stream(rows.method.seed)))[:size]


def pool_rows(method: Method, count: int) -> Order | None:
    """Return the numbers of the rows that need embeddings, those that the seed draws; None: all."""
    if method.pool is None or method.pool_by != "row":
        return None
    return drawn(count, method.pool, method.seed)


def drawn(count: int, size: int, seed: int) -> Order:
    """Return the numbers of the `size` of `count` rows that a seed draws, in its sequence."""
    return _stream(seed).permutation(count)[:size]


def _stream(seed: int) -> np.random.Generator:
    """Return a stream of its own: the draw must not come back in the shuffling."""
    return np.random.default_rng([seed, 1])


def _usable(
    threshold: float | None, X: UnitRows, Y: UnitRows, numbers: Order, device: str | None
) -> Order:
    """Return which of the rows of X may be used."""
    if threshold is None:
        return numbers
    from tma.arrange.duplicates import near_duplicates

    found = near_duplicates(X, Y, threshold, device=device).duplicate
    count = int(found.sum())
    log.warning(
        "%d of %d training rows are near-duplicates of test rows (cosine similarity of at "
        "least %g) and are left out",
        count,
        len(numbers),
        threshold,
    )
    return numbers[~found]


@order("random")
def _random(rows: Rows) -> Order:
    return rows.random.permutation(rows.numbers)[: rows.limit]


@order("cluster")
def _cluster(rows: Rows) -> Order:
    return _joined(_shuffled_tasks(rows, rows.random))[: rows.limit]


@order("round_robin")
def _round_robin(rows: Rows) -> Order:
    groups = _shuffled_tasks(rows, rows.random)
    turn = np.concatenate([np.arange(len(group)) for group in groups])
    return _joined(groups)[np.argsort(turn, kind="stable")][: rows.limit]


def _shuffled_tasks(rows: Rows, random: np.random.Generator) -> list[Order]:
    groups = _by_task(rows)
    return [random.permutation(groups[at]) for at in random.permutation(len(groups))]


@order("nearest")
def _nearest(rows: Rows) -> Order:
    return rows.numbers[ascending(_values(rows))][: rows.limit]


@order("farthest")
def _farthest(rows: Rows) -> Order:
    return rows.numbers[ascending(-_values(rows))][: rows.limit]


def _values(rows: Rows) -> NDArray[np.float64]:
    from tma.arrange.distances import row_distances, weighted_similarity_distance

    given: dict[str, Any] = {"numbers": rows.numbers, "device": rows.device}
    if rows.method.measure == "wsd":
        return weighted_similarity_distance(rows.X, rows.Y, rows.method.weight, **given)
    if rows.method.measure != "bigram_kl":
        return row_distances(rows.X, rows.Y, rows.method.measure, **given)
    if rows.texts is None:
        raise wrong("texts", None, "training and test texts with measure='bigram_kl'")
    train = [rows.texts[0][i] for i in rows.numbers]
    return row_distances(train, rows.texts[1], "bigram_kl")


@order("coarse_nearest")
def _coarse_nearest(rows: Rows) -> Order:
    return _coarse(rows, farthest=False)


@order("coarse_farthest")
def _coarse_farthest(rows: Rows) -> Order:
    return _coarse(rows, farthest=True)


def _coarse(rows: Rows, *, farthest: bool) -> Order:
    from tma.arrange.distances import task_distances

    groups = _by_task(rows)
    distance = task_distances(rows.X, rows.Y, groups, rows.method.weight)
    sequence = ascending(-distance if farthest else distance)
    return _joined([groups[at] for at in sequence])[: rows.limit]


def sides(rows: Rows) -> tuple[list[Order], list[Order]]:
    """Return the nearest and the farthest rounds of which an order is made, if it is."""
    name, limit = order_name(rows.method.name), rows.limit
    if name in ("tma_min", "tma_min_rt"):
        return list(rounds(rows, limit)), []
    if name in ("tma_max", "tma_max_rt"):
        return [], list(rounds(rows, limit, farthest=True))
    if name == "tma_rounds[i:j]":
        return _some_rounds(rows), []
    if not name.startswith("tma_"):
        return [], []
    # All rows wanted: half of them from each side would share some and so leave others out.
    whole = limit >= len(rows.numbers)
    near, far = (limit, limit) if whole else (-(-limit // 2), limit // 2)
    return list(rounds(rows, near)), list(rounds(rows, far, farthest=True))


def _some_rounds(rows: Rows) -> list[Order]:
    first, stop = rows.method.rounds
    # Rounds hold at most m rows, so that this many rows are not reached before round j.
    enough = len(rows.numbers) if stop is None else stop * len(rows.Y)
    chosen: list[Order] = []
    wanted = rows.limit
    for found in islice(rounds(rows, enough), first, stop):
        if wanted <= 0:
            break
        chosen.append(cut(found, wanted) if rows.method.exact_limit else found)
        wanted -= len(found)
    return chosen


@order("tma_min")
@order("tma_max")
@order("tma_rounds[i:j]")
def _one_side(rows: Rows) -> Order:
    near, far = sides(rows)
    return _joined(near + far)


@order("tma_nft")
def _nft(rows: Rows) -> Order:
    near, far = sides(rows)
    return first_places(near + _reversed(rows, far))


@order("tma_fft")
def _fft(rows: Rows) -> Order:
    near, far = sides(rows)
    return first_places(far + _reversed(rows, near))


@order("tma_rt")
def _rt(rows: Rows) -> Order:
    return rows.random.permutation(_nft(rows))


@order("tma_min_rt")
@order("tma_max_rt")
def _one_side_rt(rows: Rows) -> Order:
    return rows.random.permutation(_one_side(rows))


def _reversed(rows: Rows, made: list[Order]) -> list[Order]:
    """Return rounds from the last to the first; by similarity, each is turned round as well."""
    step = -1 if rows.method.within == "similarity" else 1
    return [found[::step] for found in made[::-1]]


def _joined(parts: Sequence[Order]) -> Order:
    return np.concatenate([np.empty(0, dtype=np.int64), *parts])


def _asks(method: Method) -> str:
    """Return the setting that needs tasks, as a caller wrote it."""
    return "pool_by='task'" if method.pool_by == "task" else f"order={method.name!r}"


def _by_task(rows: Rows) -> list[Order]:
    """Return each task's usable row numbers, ascending; tasks by their first row."""
    if rows.tasks is None:
        expected = f"the task of each row of X: {_asks(rows.method)} goes by tasks"
        raise wrong("tasks", None, expected)
    groups: dict[str, list[int]] = {}
    for number in rows.numbers.tolist():
        task = rows.tasks[number]
        if task is None or isinstance(task, float):  # tables mark what is missing by NaN
            raise wrong(f"tasks[{number}]", None, f"a task: {_asks(rows.method)} goes by it")
        groups.setdefault(task, []).append(number)
    return [np.array(numbers, dtype=np.int64) for numbers in groups.values()]


def ascending(values: NDArray[np.float64]) -> Order:
    """Return the sequence that sorts values, (n,); neighbours closer than 1e-10 are equal.

    Equal values stand by ascending position, for `ascending(-values)` too.
    """
    order = np.argsort(values, kind="stable")
    apart = np.diff(values[order], prepend=values[order[:1]]) > TIE
    return order[np.lexsort((order, np.cumsum(apart)))]
