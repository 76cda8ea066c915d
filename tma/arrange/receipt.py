"""An order of a dataset with its receipt, which tells later whether the order was kept."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tma.arrange.orders import ordered, pool_rows, prepared
from tma.arrange.spec import Method, Numbers
from tma.data import load as data
from tma.embed import embed_pair
from tma.encoders import AnyEncoder, find_encoder
from tma.errors import DataError, OrderError
from tma.store import write_json

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Receipt:
    """What an order was made of, and the order's own digest."""

    method: Method
    train: str
    """SHA-256 of the training instances' ids in stored order (`tma.data.load.fingerprint`)."""
    test: str
    encoder: str
    """Name and version of the embedding model."""
    left_out: int
    """Training instances left out as near-duplicates of test instances."""
    instances: int
    """Instances in the order."""
    sha256: str
    """SHA-256 of the ids in their order, as `ids_digest` computes it."""

    def check(self, ids: Sequence[str]) -> None:
        """Raise an `OrderError` unless the ids are those of the order, in its sequence."""
        actual = ids_digest(ids)
        if actual != self.sha256:
            raise OrderError(
                f"the {len(ids)} ids have the SHA-256 {actual}; the receipt of {self.method.name} "
                f"is for {self.instances} ids with {self.sha256}. The order was not kept, or the "
                "receipt belongs to another one."
            )

    def to_json(self) -> dict[str, Any]:
        """Return values that JSON can hold."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, eq=False)
class Arranged:
    """The order of a dataset, with the receipt of what made it."""

    rows: Numbers
    """Row numbers of the training set, (k,)."""
    ids: tuple[str, ...]
    """Ids of those instances, (k,)."""
    receipt: Receipt

    def save(self, path: Path | str) -> None:
        """Write the ids to `path` as JSON, and the receipt beside it as `<name>.receipt.json`."""
        write_json(Path(path), {"ids": list(self.ids)})
        write_json(receipt_path(path), self.receipt.to_json())


def receipt_path(path: Path | str) -> Path:
    """Return the path of the receipt of an order stored at `path`."""
    return Path(path).with_name(f"{Path(path).name.removesuffix('.json')}.receipt.json")


def read_receipt(path: Path | str) -> Receipt:
    """Return the receipt of the order stored at `path`, after checking the ids against it.

    Raises:
        DataError: a file is missing or is not what `Arranged.save` wrote.
        OrderError: the ids are not those of the receipt.
    """
    return read_order(path)[1]


def read_order(path: Path | str) -> tuple[list[str], Receipt]:
    """Return the ids of the order stored at `path`, and its receipt; see `read_receipt`."""
    try:
        ids = json.loads(Path(path).read_text("utf-8"))["ids"]
        stored = json.loads(receipt_path(path).read_text("utf-8"))
        receipt = Receipt(**(stored | {"method": Method(**stored["method"])}))
        if not isinstance(ids, list):
            raise TypeError(f"ids is a {type(ids).__name__}; expected a list")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} and its receipt cannot be read: {error}") from error
    receipt.check(ids)
    return ids, receipt


def ids_digest(ids: Sequence[str]) -> str:
    """Return the SHA-256 of the ids as one JSON array: no spaces, UTF-8, nothing escaped."""
    text = json.dumps(list(ids), ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def arrange_dataset(
    train: Dataset, test: Dataset, method: Method, *, encoder: AnyEncoder | None = None
) -> Arranged:
    """Return the order of a training set for a test set, with its receipt.

    Args:
        train: training instances, as `tma.load` gives them.
        test: test instances.
        method: name and settings of the order, e.g. `Method("tma_min", limit=30_000)`.
        encoder: see `tma.encoders.find_encoder`; None: all-MiniLM-L6-v2.

    Raises:
        ParameterError: the order needs tasks that the training set does not have.
        AssetError: a built-in encoder cannot be fetched.
    """
    found = find_encoder(encoder)
    pool = pool_rows(method, len(train))
    source = train if pool is None else train.select(pool)
    # An order that goes by no similarity gets rows of one number: embedding takes minutes.
    if method.embeds:
        X, Y = embed_pair(train, test, found, rows=pool)
    else:
        X, Y = (np.ones((len(part), 1), np.float32) for part in (source, test))
    tasks: list[str | None] = list(source["task"])
    inputs = prepared(
        method,
        X,
        Y,
        tasks=tasks if any(task is not None for task in tasks) else None,
        # Only one measure reads words; the others need no second copy of all texts.
        texts=(data.texts(source), data.texts(test)) if method.measure == "bigram_kl" else None,
        pool=pool,
    )
    rows, known = inputs.stored[ordered(inputs)], train["id"]
    ids = tuple(known[row] for row in rows.tolist())
    receipt = Receipt(
        method,
        data.fingerprint(train),
        data.fingerprint(test),
        found.name,
        inputs.left_out,
        len(ids),
        ids_digest(ids),
    )
    return Arranged(rows, ids, receipt)
