"""Embeddings → a permutation of training rows: one function an order, under `@order`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from os import PathLike, fspath
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from tma.arrange.rounds import Inputs, Texts, first_places, joined
from tma.arrange.spec import ORDERS, Exchanges, Floats, Method, Numbers, Order, find_order
from tma.cluster import check_cluster
from tma.errors import check_length, check_texts, wrong

log = logging.getLogger(__name__)

TIE = 1e-10
"""Distances of single rows that differ by less are equal: float64 sums leave far less noise."""

Function = Callable[[Inputs], Numbers]
_TMA = ("collision", "within", "exact_limit")


def order(
    *names: str, settings: Sequence[str] = (), seeded: bool = False, embeds: bool = True
) -> Callable[[Function], Function]:
    """Register a function of `Inputs`, which returns numbers of rows of X, as orders.

    Args:
        names: names of the orders; the function finds the one in use in `inputs.method.name`.
        settings: those of `Method` that not every order has and these have, such as `weight`.
        seeded: the rows depend on `inputs.random`.
        embeds: the rows depend on embeddings.
    """

    def register(function: Function) -> Function:
        ORDERS.update(dict.fromkeys(names, Order(function, tuple(settings), seeded, embeds)))
        return function

    return register


def arrange(
    name: str,
    X: NDArray[np.floating] | PathLike[str] | str | Sequence[PathLike[str] | str],
    Y: NDArray[np.floating],
    *,
    tasks: Sequence[str | None] | None = None,
    texts: Texts | None = None,
    exchanges: tuple[Exchanges, Exchanges] | None = None,
    device: str | None = None,
    cluster: str | None = None,
    **settings: Any,
) -> Numbers:
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
            `tma_max`, which separates selection from order.
            `tma_rounds[i:j]`: the nearest rounds i to j - 1.
        X: (n, d) unit embeddings of the training rows, in memory or memory-mapped. With `cluster`
            also a folder of .npy files, in the sequence of their names, or a list of such files,
            local to all nodes or of an object store (s3://…): they are read where they are used.
            `pool`, `drop_leaks` and `exclude_near_duplicates` do not go with files.
        Y: (m, d) unit embeddings of the test rows.
        tasks: the task of each training row, for the orders that go by tasks.
        texts: training and test texts, for `measure="bigram_kl"`.
        exchanges: those of the training and of the test rows, for `drop_leaks` (see `tma.leaks`).
        device: where products are computed; None: a GPU if there is one. No influence on the order.
        cluster: "ray" or "ray:ADDRESS": where shards of X are searched; None: in this process. No
            influence on the order. TMA's orders, `nearest` and `farthest` run there.
        settings: any of `tma.Method`, with its defaults: `limit`, `seed`, `measure`, `weight`,
            `collision`, `within`, `exact_limit`, `exclude_near_duplicates`, `drop_leaks`, `pool`,
            `pool_by`.

    Returns:
        (k,) int64 row numbers, each at most once. A row that both halves of a two-sided order
        hold stays at its first place.

    Raises:
        ParameterError: an unknown name or setting, or `tasks` or `texts` that are missing or of
            another length than X; a cluster or files that cannot be used, or that do not go with
            the order. It is a ValueError.
        ValueError: embeddings that are empty, not finite, not unit rows, or of unequal width.
        TmaError: a worker of the cluster was killed again and again.

    Source: the paper's sections on data arrangement, similarity, granularity and TMA.
    """
    method = Method(name, **settings)
    if cluster is not None:
        check_for_cluster(method, cluster)
    if _names_files(X):
        if cluster is None:
            came = fspath(X) if isinstance(X, PathLike) else X
            raise wrong("X", came, 'an array (np.load), or cluster="ray", which reads files')
        return ordered(_of_files(method, X, Y, cluster, device))
    given: dict[str, Any] = {"texts": texts, "exchanges": exchanges, "device": device}
    inputs = prepared(method, X, Y, tasks=tasks, **given)  # type: ignore[arg-type]
    return inputs.stored[ordered(inputs, cluster)]


def ordered(inputs: Inputs, cluster: str | None = None) -> Numbers:
    """Return an order as numbers of the rows of `inputs.X`, which a cluster may search."""
    function = find_order(inputs.method.name).function
    if cluster is not None:
        inputs = _on_cluster(inputs, cluster)
    rows = function(inputs) if len(inputs.X) else joined([])
    inputs.X.check()  # an order that needs no embeddings has not read them
    return rows


def _on_cluster(inputs: Inputs, cluster: str) -> Inputs:
    """Return the same with the training rows dealt out to a cluster."""
    from tma.arrange.sharded import ShardedRows, shard_sources
    from tma.cluster import Tasks

    tasks = Tasks(cluster, gpu=inputs.device != "cpu")
    rows: Any = ShardedRows(shard_sources(inputs.X.float32, tasks.slots), tasks)
    return replace(inputs, X=rows)


def _of_files(
    method: Method, X: Any, Y: NDArray[np.floating], cluster: str, device: str | None
) -> Inputs:
    """Return what an order is made from where the training rows are files that a cluster reads."""
    from tma.arrange.exact_knn import UnitRows, unit_pair
    from tma.arrange.sharded import AsStored, ShardedRows, shard_sources
    from tma.cluster import Tasks

    for setting in ("pool", "drop_leaks", "exclude_near_duplicates"):
        if value := getattr(method, setting):
            raise wrong(setting, value, "none where X is files; take such rows out before")
    tests = UnitRows(Y, "Y")  # refuses what has no rows before a cluster is asked
    tasks = Tasks(cluster, gpu=device != "cpu")
    train, test = unit_pair(ShardedRows(shard_sources(X, tasks.slots), tasks), tests)
    return Inputs(method, train, test.float32, cast("Numbers", AsStored()), device=device)


def _names_files(X: Any) -> bool:
    """Return whether X names files, or holds functions that return rows, and is no rows itself."""
    parts = [X] if isinstance(X, str | PathLike) else X
    return isinstance(parts, Sequence) and any(
        isinstance(part, str | PathLike) or callable(part) for part in parts
    )


def check_for_cluster(method: Method, cluster: str) -> None:
    """Refuse an order that a cluster cannot make, before anything is read."""
    check_cluster(cluster)
    if not method.name.startswith("tma_") and "measure" not in find_order(method.name).settings:
        raise wrong("order", method.name, "an order of TMA, nearest or farthest, on a cluster")
    if method.measure == "bigram_kl":
        raise wrong("measure", method.measure, "a measure of embeddings on a cluster")


def prepared(
    method: Method,
    X: NDArray[np.floating],
    Y: NDArray[np.floating],
    *,
    tasks: Sequence[str | None] | None = None,
    texts: Texts | None = None,
    exchanges: tuple[Exchanges, Exchanges] | None = None,
    device: str | None = None,
    pool: Numbers | None = None,
) -> Inputs:
    """Return what an order is made from: the pool that the seed draws, less what is in the test.

    Given `pool`, what `pool_rows` returned, X, tasks, texts and exchanges are of just these rows.
    """
    from tma.arrange.exact_knn import unit_pair

    train, test = unit_pair(X, Y)
    # By position, whatever index a table's column has.
    tasks = None if tasks is None else list(tasks)
    texts = None if texts is None else (list(texts[0]), list(texts[1]))
    check_length("tasks", tasks, "X", len(train))
    check_texts(texts, len(train), len(test))
    stored = np.arange(len(train)) if pool is None else pool
    given: dict[str, Any] = {"tasks": tasks, "texts": texts, "device": device}
    inputs = Inputs(method, train, test.float32, stored, **given)
    if pool is None and method.pool is not None:
        inputs = inputs.select(_pool(inputs, method.pool))
    if method.drop_leaks:
        if exchanges is None:
            raise wrong("exchanges", None, "those of training and test rows with drop_leaks=True")
        check_length("exchanges[0]", exchanges[0], "X", len(train))
        of_rows = [
            exchanges[0][row] for row in (inputs.stored if pool is None else range(len(train)))
        ]
        inputs = _without_leaks(inputs, of_rows, exchanges[1])
    if method.exclude_near_duplicates is None:
        return inputs
    return _without_near_duplicates(inputs, method.exclude_near_duplicates)


def _without_leaks(inputs: Inputs, train: Exchanges, test: Exchanges) -> Inputs:
    from tma.arrange.duplicates import leaks

    found = leaks(train, test, inputs.X, inputs.Y)
    rows = found["row"].to_numpy()
    log.warning(
        "%d of %d training rows hold a test text and are left out; tma.leaks shows them",
        len(rows),
        len(train),
    )
    kept = np.delete(np.arange(len(train)), rows)
    found["row"] = inputs.stored[rows]
    return replace(inputs.select(kept), left_out=len(rows), leaks=found)


def _without_near_duplicates(inputs: Inputs, threshold: float) -> Inputs:
    from tma.arrange.duplicates import near_duplicates

    duplicate = near_duplicates(inputs.X, inputs.Y, threshold, device=inputs.device).duplicate
    log.warning(
        "%d of %d training rows are near-duplicates of test rows (cosine similarity of at "
        "least %g) and are left out",
        duplicate.sum(),
        len(duplicate),
        threshold,
    )
    left_out = inputs.left_out + int(duplicate.sum())
    return replace(inputs.select(np.flatnonzero(~duplicate)), left_out=left_out)


def _pool(inputs: Inputs, size: int) -> Numbers:
    """Return the numbers of the rows that the seed draws, in the sequence drawn."""
    seed = inputs.method.seed
    if inputs.method.pool_by == "row":
        return drawn(len(inputs.X), size, seed)
    return joined(_shuffled(_groups(inputs), _stream(seed)))[:size]


def pool_rows(method: Method, count: int) -> Numbers | None:
    """Return the numbers of the rows that need embeddings, those that the seed draws; None: all."""
    if method.pool is None or method.pool_by != "row":
        return None
    return drawn(count, method.pool, method.seed)


def drawn(count: int, size: int, seed: int) -> Numbers:
    """Return the numbers of the `size` of `count` rows that a seed draws, in the sequence drawn."""
    return _stream(seed).permutation(count)[:size]


def _stream(seed: int) -> np.random.Generator:
    """Return a stream of its own: the draw must not come back in the shuffling."""
    return np.random.default_rng([seed, 1])


@order("random", seeded=True, embeds=False)
def _random(inputs: Inputs) -> Numbers:
    return inputs.random.permutation(len(inputs.X))[: inputs.limit]


@order("cluster", seeded=True, embeds=False)
def _cluster(inputs: Inputs) -> Numbers:
    return joined(_shuffled(_groups(inputs), inputs.random))[: inputs.limit]


@order("round_robin", seeded=True, embeds=False)
def _round_robin(inputs: Inputs) -> Numbers:
    groups = _shuffled(_groups(inputs), inputs.random)
    turn = np.concatenate([np.arange(len(group)) for group in groups])
    return joined(groups)[np.argsort(turn, kind="stable")][: inputs.limit]


def _shuffled(groups: list[Numbers], random: np.random.Generator) -> list[Numbers]:
    return [random.permutation(groups[at]) for at in random.permutation(len(groups))]


@order("nearest", "farthest", settings=["measure", "weight"])
def _by_distance(inputs: Inputs) -> Numbers:
    return ascending(_sign(inputs) * _distances(inputs))[: inputs.limit]


def _sign(inputs: Inputs) -> int:
    return -1 if inputs.method.name.endswith("farthest") else 1


def _distances(inputs: Inputs) -> Floats:
    from tma.arrange.distances import (
        bigram_divergences,
        row_distances,
        weighted,
        wsd_terms,
    )

    measure, texts, device = inputs.method.measure, inputs.texts, inputs.device
    if measure == "wsd":
        MD, AD = np.concatenate(inputs.X.each(wsd_terms, inputs.Y, device), axis=1)
        return weighted(MD, AD, inputs.method.weight)
    if measure != "bigram_kl":
        return np.concatenate(inputs.X.each(row_distances, inputs.Y, measure, device))
    if texts is None:
        raise wrong("texts", None, "training and test texts with measure='bigram_kl'")
    distances: Floats = bigram_divergences(texts[0], [texts[1]])[0]
    return distances


@order("coarse_nearest", "coarse_farthest", settings=["weight"])
def _coarse(inputs: Inputs) -> Numbers:
    from tma.arrange.distances import task_distances

    groups = _groups(inputs)
    distances = task_distances(inputs.X, inputs.Y, groups, inputs.method.weight)
    sequence = ascending(_sign(inputs) * distances)
    return joined([groups[at] for at in sequence])[: inputs.limit]


@order("tma_min", "tma_max", "tma_rounds[i:j]", settings=_TMA)
def _one_side(inputs: Inputs) -> Numbers:
    near, far = inputs.sides
    return joined(near + far)


@order("tma_nft", settings=_TMA)
def _nft(inputs: Inputs) -> Numbers:
    near, far = inputs.sides
    return first_places(near + _reversed(inputs, far))


@order("tma_fft", settings=_TMA)
def _fft(inputs: Inputs) -> Numbers:
    near, far = inputs.sides
    return first_places(far + _reversed(inputs, near))


@order("tma_rt", settings=_TMA, seeded=True)
def _rt(inputs: Inputs) -> Numbers:
    return inputs.random.permutation(_nft(inputs))


@order("tma_min_rt", "tma_max_rt", settings=_TMA, seeded=True)
def _one_side_rt(inputs: Inputs) -> Numbers:
    return inputs.random.permutation(_one_side(inputs))


def _reversed(inputs: Inputs, rounds: list[Numbers]) -> list[Numbers]:
    """Return rounds from the last to the first; sorted by similarity, each is reversed as well."""
    step = -1 if inputs.method.within == "similarity" else 1
    return [found[::step] for found in rounds[::-1]]


def _groups(inputs: Inputs) -> list[Numbers]:
    """Return each task's row numbers, ascending; tasks by their first row."""
    method, tasks = inputs.method, inputs.tasks
    setting = "pool_by='task'" if method.pool_by == "task" else f"order={method.name!r}"
    if tasks is None:
        raise wrong("tasks", None, f"the task of each row of X: {setting} goes by tasks")
    groups: dict[object, list[int]] = {}
    for number, task in enumerate(tasks):
        if task is None or isinstance(task, float):  # tables mark what is missing by NaN
            raise wrong(f"tasks[{inputs.stored[number]}]", None, f"a task: {setting} goes by it")
        groups.setdefault(task, []).append(number)
    return [np.array(rows, dtype=np.int64) for rows in groups.values()]


def ascending(values: Floats) -> Numbers:
    """Return the sequence that sorts values, (n,); neighbours closer than 1e-10 are equal.

    Equal values stand by ascending position, for `ascending(-values)` too.
    """
    sequence = np.argsort(values, kind="stable")
    apart = np.diff(values[sequence], prepend=values[sequence[:1]]) > TIE
    return sequence[np.lexsort((sequence, np.cumsum(apart)))]
