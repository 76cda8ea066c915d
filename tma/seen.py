"""What a run saw between two evaluations, and what its losses did: the two sides of C8 and C3."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tma.bootstrap import by_instance
from tma.errors import ParameterError, check_length
from tma.intervals import Floats
from tma.runs import Run

_BLOCK = 4096
"""Training rows whose similarities are held at once."""
Embeddings = NDArray[np.floating]


def drops(run: Run) -> pd.DataFrame:
    """Return how much each test instance's loss falls between consecutive evaluations.

    Returns:
        Rows (task, id), sorted, an instance without a task being one of its own; columns the steps
        at which the intervals end; nats a token, positive where the loss falls.

    Raises:
        ParameterError: the run was evaluated at fewer than two steps.
    """
    return falls(by_instance(run.losses))


def seen_similarity(
    run: Run,
    X: Embeddings,
    Y: Embeddings,
    train_ids: Sequence[str],
    test_ids: Sequence[str],
) -> pd.DataFrame:
    """Return how similar the training instances just seen are to each test instance.

    Args:
        run: a finished run, all of whose instances are among the ids.
        X: (n, d) unit embeddings of the training instances.
        Y: (m, d) unit embeddings of the test instances.
        train_ids: n ids, row by row of X.
        test_ids: m ids, row by row of Y.

    Returns:
        Rows and columns as of `drops`: out[j, k] is the mean cosine similarity of test
        instance j to the training instances that were consumed in interval k.

    Raises:
        ParameterError: ids that are not one a row, or an id of the run that is not among them.
    """
    table = by_instance(run.losses)
    names = table.index.get_level_values("id").tolist()
    tested = np.asarray(Y)[_rows("test_ids", test_ids, names, len(Y))].astype(np.float64)
    seen = _rows("train_ids", train_ids, run.order, len(X))
    stops = _consumed(run, len(seen), [int(step) for step in table.columns])
    found = [_similarity(X, seen[start:stop], tested) for start, stop in itertools.pairwise(stops)]
    return pd.DataFrame(np.array(found).T, index=table.index, columns=table.columns[1:])


def distance_curves(
    run: Run,
    X: Embeddings,
    Y: Embeddings,
    train_ids: Sequence[str],
    test_ids: Sequence[str],
    *,
    measures: Sequence[str] = ("cosine_avg",),
    texts: tuple[Sequence[str], Sequence[str]] | None = None,
) -> pd.DataFrame:
    """Return how far the data seen so far is from each test task, over the evaluated steps.

    Args:
        run: a finished run, all of whose instances are among the ids.
        X: (n, d) unit embeddings of the training instances.
        Y: (m, d) unit embeddings of the test instances.
        train_ids: n ids, row by row of X.
        test_ids: m ids, row by row of Y.
        measures: some of the nine distances (`tma.method.MEASURES`).
        texts: the n and the m texts, for `bigram_kl` only.

    Returns:
        One row a (task, step, measure): task, step, measure, distance. Steps begin at the first
        evaluation behind step 0, before which nothing was seen.

    Raises:
        ParameterError: an unknown measure, no texts for `bigram_kl`, or ids that do not fit.

    Source: the paper's section on similarity distances (`tma.prefix_distances`).
    """
    from tma.similarity import several_prefix_distances

    seen = _rows("train_ids", train_ids, run.order, len(X))
    index = by_instance(run.losses).index
    steps = [step for step in sorted(run.losses["step"].unique()) if step > 0]
    stops = _consumed(run, len(seen), steps)
    tasks = index.to_frame(index=False).groupby("task")["id"]
    rows = {task: _rows("test_ids", test_ids, ids.tolist(), len(Y)) for task, ids in tasks}
    parts = []
    for measure in measures:
        from_train, from_test = _measured(measure, X, Y, texts)
        tests = [_taken(from_test, of_task) for of_task in rows.values()]
        found = several_prefix_distances(_taken(from_train, seen), tests, stops, measure)
        parts += [
            pd.DataFrame({"task": task, "step": steps, "measure": measure, "distance": distances})
            for task, distances in zip(rows, found, strict=True)
        ]
    return pd.concat(parts, ignore_index=True)


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


def _rows(name: str, ids: Sequence[str], wanted: Sequence[str], rows: int) -> NDArray[np.int64]:
    """Return the row of each wanted id."""
    check_length(name, ids, "the embeddings", rows)
    row = {one: number for number, one in enumerate(ids)}
    missing = [one for one in wanted if one not in row]
    if missing:
        raise ParameterError(
            f"{name} lacks {len(missing)} ids of the run, {missing[0]!r} first; expected all of "
            "them. Embed the data that the run was made with."
        )
    return np.array([row[one] for one in wanted], dtype=np.int64)


def _similarity(X: Embeddings, seen: NDArray[np.int64], Y: Floats) -> Floats:
    """Return the similarity of each row of Y to the training rows seen in one interval."""
    blocks = (seen[at : at + _BLOCK] for at in range(0, len(seen), _BLOCK))
    rows: Iterator[Floats] = (np.asarray(X[block]).astype(np.float64) for block in blocks)
    mean: Floats = Y @ sum((block.sum(axis=0) for block in rows), np.zeros(Y.shape[1]))
    return mean / len(seen)


def _measured(
    measure: str,
    X: Embeddings,
    Y: Embeddings,
    texts: tuple[Sequence[str], Sequence[str]] | None,
) -> tuple[Embeddings | Sequence[str], Embeddings | Sequence[str]]:
    """Return what a distance is computed from: embeddings, or texts."""
    if measure != "bigram_kl":
        return X, Y
    if texts is None:
        raise ParameterError(
            "texts=None cannot be used with the measure bigram_kl; expected the training and the "
            "test texts."
        )
    check_length("texts[0]", texts[0], "X", len(X))
    check_length("texts[1]", texts[1], "Y", len(Y))
    return texts


def _taken(rows: Embeddings | Sequence[str], numbers: NDArray[np.int64]) -> Embeddings | list[str]:
    if isinstance(rows, np.ndarray):
        return rows[numbers]
    return [rows[number] for number in numbers]
