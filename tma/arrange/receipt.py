"""An order of a dataset with its receipt, which tells later whether the order was kept."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tma.arrange.orders import check_for_cluster, ordered, pool_rows, prepared
from tma.arrange.rounds import Inputs
from tma.arrange.spec import Method, Numbers
from tma.data import load as data
from tma.embed import Rows, Text, embed_pair
from tma.encoders import AnyEncoder, Encoder, find_encoder
from tma.errors import DataError, OrderError, check_count
from tma.store import write_json

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

VERSIONS = ("tma", "numpy", "torch", "sentence-transformers")
"""Packages whose versions a receipt names."""


class Departure(NamedTuple):
    """The first place at which other instances were consumed than a receipt says."""

    position: int
    """In its epoch, from 1."""
    epoch: int
    """From 1."""
    expected: str | None
    """Id; None: the order had ended."""
    actual: str | None
    """Id; None: nothing more was consumed."""

    def told(self, texts: Mapping[str, str] | None = None) -> str:
        """Return it in words, with the beginnings of texts by id."""

        def named(one: str | None) -> str:
            if one is None:
                return "the end"
            text = (texts or {}).get(one)
            return one if text is None else f"{one} ({text!r})"

        return (
            f"position {self.position} of epoch {self.epoch}: expected {named(self.expected)}, "
            f"got {named(self.actual)}. The order was not kept, or the receipt is of another one."
        )


@dataclass(frozen=True)
class Receipt:
    """What an order was made of, and the order itself."""

    method: Method
    train: str
    """SHA-256 of the training instances' ids in stored order (`tma.data.load.fingerprint`)."""
    test: str
    encoder: str
    """Name and version of the embedding model."""
    left_out: int
    """Training instances left out as near-duplicates of test instances."""
    ids: tuple[str, ...] = field(repr=False)
    """Ids in their order, (k,)."""
    encoder_content: str | None = None
    """Digest of the embedding model's files; None: it tells none."""
    embeddings: Mapping[str, str] | None = None
    """SHA-256 of the rows X and Y that were compared; None: the order compares none."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of `VERSIONS`."""
    text: Text = "both"
    """What was embedded of an instance, as in `tma.embed`."""

    @property
    def instances(self) -> int:
        """Instances in the order."""
        return len(self.ids)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the ids in their order, as `ids_digest` computes it."""
        return ids_digest(self.ids)

    def departure(
        self, ids: Sequence[str], *, epochs: int = 1, prefix: bool = False
    ) -> Departure | None:
        """Return the first place at which ids are not those of the order; None: they are.

        Args:
            ids: in the sequence in which they were consumed, epoch after epoch.
            epochs: how often the order was gone through.
            prefix: whether the ids may end early.
        """
        check_count("epochs", epochs, 1)
        once, place = self.ids, 0
        for start in range(0, len(once) * epochs, len(once) or 1):
            part = ids[start : start + len(once)]
            if tuple(part) != once[: len(part)]:
                place = next(k for k, (a, b) in enumerate(zip(part, once, strict=False)) if a != b)
                return Departure(place + 1, start // len(once) + 1, once[place], part[place])
        total = len(once) * epochs
        if len(ids) > total:
            return Departure(len(once) + 1, epochs, None, ids[total])
        if len(ids) < total and not prefix:
            epoch, place = divmod(len(ids), len(once))
            return Departure(place + 1, epoch + 1, once[place], None)
        return None

    def check(self, ids: Sequence[str], *, epochs: int = 1, prefix: bool = False) -> None:
        """Raise an `OrderError` that names the first place at which `departure` finds one."""
        found = self.departure(ids, epochs=epochs, prefix=prefix)
        if found is not None:
            raise OrderError(found.told())

    def to_json(self) -> dict[str, Any]:
        """Return values that JSON can hold: all but the ids, which `sha256` stands for."""
        known = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        own = {"method": dataclasses.asdict(self.method), "instances": self.instances}
        return {k: v for k, v in (known | own).items() if k != "ids"} | {"sha256": self.sha256}

    def save(self, path: Path | str) -> None:
        """Write the receipt, ids and all, to `path` as one JSON file."""
        write_json(Path(path), self.to_json() | {"ids": list(self.ids)})


@dataclass(frozen=True, eq=False)
class Arranged:
    """The order of a dataset, with the receipt of what made it."""

    rows: Numbers
    """Row numbers of the training set, (k,)."""
    receipt: Receipt
    inputs: Inputs = field(repr=False)
    """What the order was made from; an audit finds nothing again."""
    encoder: Encoder = field(repr=False)

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of those instances, (k,)."""
        return self.receipt.ids

    def save(self, path: Path | str) -> None:
        """Write the receipt, with the ids in their order, to `path` as one JSON file."""
        self.receipt.save(path)


def receipt_of(given: Receipt | Arranged | Path | str) -> Receipt:
    """Return a receipt, that of an order, or the one stored in a file."""
    if isinstance(given, Arranged):
        return given.receipt
    return given if isinstance(given, Receipt) else read_receipt(given)


def read_receipt(path: Path | str) -> Receipt:
    """Return the receipt stored at `path`, after checking its ids against its digest.

    Runs published before receipts held the ids have them in another file, `<name>.receipt.json`
    beside that of the ids.

    Raises:
        DataError: a file is missing or is not what `Arranged.save` wrote.
        OrderError: the ids are not those of the digest.
    """
    path = Path(path)
    try:
        stored = json.loads(path.read_text("utf-8"))
        if "sha256" not in stored:
            beside = path.with_name(f"{path.name.removesuffix('.json')}.receipt.json")
            stored |= json.loads(beside.read_text("utf-8"))
        if not isinstance(ids := stored.pop("ids"), list):
            raise TypeError(f"ids is a {type(ids).__name__}; expected a list")
        sha256, _ = stored.pop("sha256"), stored.pop("instances")
        receipt = Receipt(**(stored | {"method": Method(**stored["method"]), "ids": tuple(ids)}))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read as a receipt: {error}") from error
    if receipt.sha256 != sha256:
        raise OrderError(
            f"{path}: the {len(ids)} ids have the SHA-256 {receipt.sha256}; the receipt says "
            f"{sha256}. The file was changed after it was written."
        )
    return receipt


def ids_digest(ids: Sequence[str]) -> str:
    """Return the SHA-256 of the ids as one JSON array: no spaces, UTF-8, nothing escaped."""
    text = json.dumps(list(ids), ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _rows_digest(rows: Rows) -> str:
    """Return the SHA-256 of an embedding matrix, its type and shape."""
    sha = hashlib.sha256(f"{rows.dtype} {rows.shape} ".encode())
    sha.update(np.ascontiguousarray(rows).data)
    return sha.hexdigest()


def _versions() -> dict[str, str]:
    found = dict[str, str]()
    for name in VERSIONS:
        with suppress(PackageNotFoundError):  # tma itself may be on the path alone
            found[name] = version(name)
    return found


def arrange_dataset(
    train: Dataset,
    test: Dataset,
    method: Method | str,
    *,
    encoder: AnyEncoder | None = None,
    text: Text = "both",
    cluster: str | None = None,
) -> Arranged:
    """Return the order of a training set for a test set, with its receipt.

    Args:
        train: training instances, as `tma.load` gives them.
        test: test instances.
        method: name of the order, or name and settings, e.g. `Method("tma_min", limit=30_000)`.
        encoder: see `tma.encoders.find_encoder`; None: all-MiniLM-L6-v2.
        text: what is embedded of an instance, as in `tma.embed`.
        cluster: "ray" or "ray:ADDRESS": where texts are encoded and rows are searched; no influence
            on the order.

    Raises:
        ParameterError: the order is unknown, needs tasks that the training set does not have, or
            does not run on a cluster.
        AssetError: a built-in encoder cannot be fetched.
    """
    method = method if isinstance(method, Method) else Method(method)
    if cluster is not None:
        check_for_cluster(method, cluster)
    found = find_encoder(encoder)
    pool = pool_rows(method, len(train))
    source = train if pool is None else train.select(pool)
    # An order that goes by no similarity gets rows of one number: embedding takes minutes.
    if method.embeds:
        X, Y = embed_pair(train, test, found, rows=pool, text=text, cluster=cluster)
    else:
        X, Y = (np.ones((len(part), 1), np.float32) for part in (source, test))
    tasks: list[str | None] = source["task"][:]
    inputs = prepared(
        method,
        X,
        Y,
        tasks=tasks if any(task is not None for task in tasks) else None,
        # Only one measure reads words; the others need no second copy of all texts.
        texts=(data.texts(source), data.texts(test)) if method.measure == "bigram_kl" else None,
        exchanges=(data.exchanges(source), data.exchanges(test)) if method.drop_leaks else None,
        pool=pool,
    )
    known = train["id"][:]  # a lazy column reads each anew
    if not method.drop_leaks and (shared := len({*known} & {*test["id"][:]})):
        log.warning("%d training rows are test rows, too; drop_leaks leaves them out", shared)
    rows = inputs.stored[ordered(inputs, cluster)]
    receipt = Receipt(
        method,
        data.fingerprint(train),
        data.fingerprint(test),
        found.name,
        inputs.left_out,
        tuple(known[row] for row in rows.tolist()),
        getattr(found, "content", None),
        {"X": _rows_digest(X), "Y": _rows_digest(Y)} if method.embeds else None,
        _versions(),
        text,
    )
    return Arranged(rows, receipt, inputs, found)
