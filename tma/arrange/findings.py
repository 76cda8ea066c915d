"""What an audit lists: rows of both sets by number, id, place and text, one table a subject."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tma.arrange.audit_rows import RowsAudit
from tma.arrange.duplicates import leaks as find_leaks
from tma.arrange.exact_knn import Product, slices
from tma.arrange.rounds import Inputs
from tma.arrange.spec import Floats, Numbers
from tma.data import load as data
from tma.data.describe import token_counts
from tma.encoders import Encoder

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

ALIKE = 0.95
"""Cosine similarity from which two training rows are near-duplicates."""
COMPARED = 20_000
"""Rows from the start of an order that are compared with each other."""
_BLOCK = 1024


def _named(dataset: Dataset, rows: Numbers, prefix: str = "", *, text: bool = True) -> pd.DataFrame:
    """Return number, id, place and text of some rows, in columns `prefix` + row, id, …."""
    import pandas as pd

    part = dataset.select(rows)
    columns: dict[str, Any] = {"row": rows, "id": part["id"][:]}
    columns["place"] = part["place"][:] if "place" in part.column_names else None
    if text:
        columns["text"] = data.texts(part)
    return pd.DataFrame(columns).add_prefix(prefix)


def first_rows(
    found: RowsAudit, inputs: Inputs, train: Dataset, test: Dataset, most: int
) -> pd.DataFrame:
    """Return the rows that an order begins with, their round, and the nearest test row of each."""
    import pandas as pd

    order = found.order[:most]
    rounds = [
        (f"{side} {number}", set(inputs.stored[rows].tolist()))
        for side, own in zip(("near", "far"), inputs.sides, strict=True)
        for number, rows in enumerate(own, 1)
    ]
    of = [next((name for name, rows in rounds if row in rows), None) for row in order.tolist()]
    columns = {"position": np.arange(1, len(order) + 1), "round": of}
    own = pd.DataFrame(columns | {"similarity": found.similarity[:most]})
    tests = _named(test, found.nearest[:most], "test_")
    return pd.concat([own, _named(train, order), tests], axis=1)


def leaks(inputs: Inputs, train: Dataset, test: Dataset) -> pd.DataFrame:
    """Return what `tma.leaks` finds among the rows to choose from, with ids and places."""
    import pandas as pd

    found = inputs.leaks
    if found is None:
        source = train if len(inputs.stored) == len(train) else train.select(inputs.stored)
        both = data.exchanges(source), data.exchanges(test)
        found = find_leaks(*both, inputs.X, inputs.Y)
        found["row"] = inputs.stored[found["row"]]
    tests = _named(test, found["test_row"].to_numpy(), "test_", text=False)
    named = [_named(train, found["row"].to_numpy(), text=False), tests]
    return pd.concat([*named, found.drop(columns=["row", "test_row"])], axis=1)


def duplicates(inputs: Inputs, order: Numbers, ids: Sequence[str], train: Dataset) -> pd.DataFrame:
    """Return the rows of an order like an earlier one: of equal content, or near by embedding."""
    import pandas as pd

    codes, _ = pd.factorize(np.array([name.partition("-")[0] for name in ids], dtype=object))
    first = np.unique(codes, return_index=True)[1][codes]  # where each content first stands
    equal = np.flatnonzero(first != np.arange(len(order)))
    place = np.empty(inputs.stored.max(initial=0) + 1, dtype=np.int64)
    place[inputs.stored] = np.arange(len(inputs.stored))
    at, of, cosine = _near(inputs, place[order[:COMPARED]])
    new = first[at] == at
    at, of, cosine = at[new], of[new], cosine[new]
    return pd.concat(
        [
            _named(train, order[np.append(equal, at)]),
            _named(train, order[np.append(first[equal], of)], "of_"),
            pd.DataFrame({"kind": ["equal"] * len(equal) + ["near"] * len(at)}),
            pd.DataFrame({"cosine": np.append(np.ones(len(equal)), cosine)}),
        ],
        axis=1,
    )


def _near(inputs: Inputs, rows: Numbers) -> tuple[Numbers, Numbers, Floats]:
    """Return places in an order, the earlier place each is most like, and the cosine, ≥ 0.95."""
    if len(rows) < 2:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
    X: NDArray[np.float32] = inputs.X.take(rows).numpy()
    at = _perhaps_near(X)
    most, of = np.full(len(at), -1.0), np.zeros(len(at), dtype=np.int64)
    for part in slices(len(at), _BLOCK):
        scores = X[at[part]] @ X.T
        scores[at[part, None] <= np.arange(len(X))] = -1  # itself, and later
        of[part], most[part] = scores.argmax(axis=1), scores.max(axis=1)
    kept = most >= ALIKE
    return at[kept], of[kept], most[kept].astype(np.float64).round(6)


def _perhaps_near(X: NDArray[np.float32]) -> Numbers:
    """Return which rows may reach 0.95 with an earlier one: by the fast product and its error."""
    import torch

    product, rows = Product.on(None), torch.from_numpy(X)
    every, found = product.factor(rows), [np.empty(0, dtype=np.int64)]
    for part in slices(len(X), _BLOCK):
        own, earlier = (every[0][part], every[1]), (every[0][: part.stop], every[1])
        scores, error = product.scores(own, earlier)
        later = torch.ones(2 * (part.stop - part.start,), dtype=torch.bool).triu()
        scores[:, part.start :].masked_fill_(later.to(scores.device), -1)
        best = scores.amax(dim=1).float().cpu().numpy()
        found.append(part.start + np.flatnonzero(best >= ALIKE - error - product.rounding))
    return np.concatenate(found)


def badly_covered(found: RowsAudit, train: Dataset, test: Dataset, most: int) -> pd.DataFrame:
    """Return the test rows with the lowest similarity of their nearest row, the lowest first."""
    import pandas as pd

    rows = np.argsort(found.coverage, kind="stable")[:most]
    tests = _named(test, rows, "test_").assign(similarity=found.coverage[rows])
    if not len(found.order):
        return tests
    return pd.concat([tests, _named(train, found.nearest_train[rows])], axis=1)


def truncated(
    sets: dict[str, tuple[Dataset, Numbers]],
    encoder: Encoder,
    text: str,
    tokenizer: PreTrainedTokenizerBase | None,
    max_tokens: int | None,
) -> tuple[pd.DataFrame, dict[str, dict[str, int]]]:
    """Return the texts that are cut, and what was looked at: by what → set → number of texts."""
    import pandas as pd

    found, checked = list[pd.DataFrame](), dict[str, dict[str, int]]()
    for name, (dataset, rows) in sets.items():
        part = dataset.select(rows)
        for by, cut, tokens in _cut(part, encoder, text, tokenizer, max_tokens):
            at = np.flatnonzero(cut)
            own = {"set": name, "by": by, "tokens": None if tokens is None else tokens[at]}
            found.append(_named(dataset, rows[at]).assign(**own))
            checked.setdefault(by, {})[name] = len(part)
    columns = ["row", "id", "place", "text", "set", "by", "tokens"]
    kept = [one for one in found if len(one)]
    return pd.concat(kept) if kept else pd.DataFrame(columns=columns), checked


def _cut(
    part: Dataset,
    encoder: Encoder,
    text: str,
    tokenizer: PreTrainedTokenizerBase | None,
    max_tokens: int | None,
) -> Iterator[tuple[str, NDArray[np.bool_], Numbers | None]]:
    cuts = getattr(encoder, "truncated", None)  # not every encoder cuts, or says so
    if cuts is not None:
        given = part["prompt"][:] if text == "prompt" else data.texts(part)
        yield "encoder", np.asarray(cuts(given)), None
    if tokenizer is not None and max_tokens is not None:
        tokens = token_counts(part, tokenizer).sum(axis=1)
        yield "max_tokens", tokens > max_tokens, tokens


def dropped(train: Dataset, test: Dataset) -> pd.DataFrame:
    """Return set, place and reason of the rows that were left out when the sets were read."""
    import pandas as pd

    sets = {"train": data.dropped(train), "test": data.dropped(test)}
    rows = [{"set": name, **row} for name, listed in sets.items() for row in listed]
    return pd.DataFrame(rows, columns=["set", "place", "reason"])


def groups(train: Dataset, order: Numbers) -> Sequence[str | None]:
    """Return the task of each row of an order; where none has one, its source dataset."""
    tasks: list[str | None] = train["task"][:]  # selecting each row takes longer
    known = tasks if any(task is not None for task in tasks) else data.sources(train)
    return [known[row] for row in order.tolist()]
