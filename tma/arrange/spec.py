"""The settings of an order, defined once.

`Method` is what a receipt stores: equal methods on equal data give equal orders.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Annotated, Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator
from pydantic.dataclasses import dataclass

from tma.config import STRICT, Count, Number, Positive, refusing
from tma.errors import ParameterError, choices, wrong

Numbers = NDArray[np.int64]
Floats = NDArray[np.float64]
Exchanges = Sequence[Sequence[tuple[str, str]]]
"""Of each row its exchanges: (prompt without system text, response)."""

Measure = Literal[
    "wsd",
    "cosine_avg",
    "cosine_min",
    "cosine_max",
    "cosine_centroid",
    "euclidean_avg",
    "euclidean_min",
    "euclidean_max",
    "euclidean_centroid",
    "bigram_kl",
]
MEASURES: tuple[str, ...] = get_args(Measure)[1:]
"""The nine similarity distances."""
Collision = Literal["set", "each"]
Within = Literal["row", "similarity", "shuffled"]

_ROUNDS = re.compile(r"tma_rounds\[(\d{0,9}):(\d{0,9})\]")


class Order(NamedTuple):
    """A named order: its function of `tma.arrange.rounds.Inputs`, and what it depends on."""

    function: Callable[..., Numbers]
    settings: tuple[str, ...]
    """Those of `OrderSettings` that not every order has, and this one has."""
    seeded: bool
    embeds: bool


ORDERS: dict[str, Order] = {}
"""The orders by name, as `tma.arrange.orders` registers them."""


def find_order(name: str) -> Order:
    """Return the order of a name; refuse an unknown name, and blocks of rounds without a round."""
    match = _ROUNDS.fullmatch(name) if isinstance(name, str) else None
    if match is None:
        known = [known for known in ORDERS if "[" not in known]
        if name not in known:
            raise wrong("order", name, choices([*known, "tma_rounds[0:5] and the like"], name))
        return ORDERS[name]
    first, stop = match.groups()
    if stop and int(stop) <= int(first or 0):
        raise ParameterError(f"order={name!r} has no rounds; expected [i:j] with i < j.")
    return ORDERS["tma_rounds[i:j]"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OrderSettings:
    """Every setting that decides an order, beside its name."""

    limit: Count | None = None
    """N, rows in the order; None: all. TMA takes whole rounds and so may exceed N by less than one
    round a side. Where the near and the far half share rows, fewer than N come out."""
    seed: Count = 0
    """Seed of the random choices."""
    measure: Measure = "wsd"
    """What `nearest` and `farthest` sort by: wsd, or one of the nine distances."""
    weight: Number | None = None
    """w of WSD; None: mean(MD)/mean(AD), the paper's."""
    collision: Collision = "set"
    """TMA: set (two test rows may take the same row, as in the paper) or each (test rows choose in
    turn, by ascending number, each its own row)."""
    within: Within = "row"
    """TMA, inside a round: row (ascending row number, as in the paper; where data is stored task by
    task, that is cluster order), similarity (nearest first, in a farthest round farthest first), or
    shuffled by the seed."""
    exact_limit: bool = False
    """TMA: cut the last round, so that each side takes exactly its share of N."""
    exclude_near_duplicates: Annotated[Number, Field(gt=0, le=1)] | None = None
    """Leave out training rows with at least this cosine similarity to a test row."""
    drop_leaks: bool = False
    """Leave out training rows that hold a test text, as `tma.leaks` finds them."""
    pool: Positive | None = None
    """Rows that the seed draws; only these are arranged. One seed draws one pool for every order;
    rows that tie stand in the sequence drawn. None: all rows."""
    pool_by: Literal["row", "task"] = "row"
    """What is drawn: row (single rows) or task (whole tasks, the last one cut)."""


@refusing
@dataclass(frozen=True, config=STRICT)
class Method(OrderSettings):
    """The name of an order and its settings.

    Raises:
        ParameterError: a value cannot be used, or belongs to another kind of order.
    """

    name: str
    """Name of the order (see `tma.arrange`)."""

    @field_validator("name", mode="before")
    @classmethod
    def _check_name(cls, name: Any) -> Any:
        find_order(name)
        return name

    @model_validator(mode="after")
    def _check_together(self) -> Method:
        """Refuse a setting without influence: the caller expects one."""
        specific = {setting for order in ORDERS.values() for setting in order.settings}
        idle = specific.difference(find_order(self.name).settings)
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in idle and value != field.default:
                users = ", ".join(name for name in ORDERS if field.name in ORDERS[name].settings)
                expected = f"no {field.name} with order={self.name!r}; it belongs to {users}"
                raise wrong(field.name, value, expected)
        if self.weight is not None and self.measure != "wsd":
            raise wrong("weight", self.weight, f"None with measure={self.measure!r}: w is of WSD")
        if self.pool is None and self.pool_by != "row":
            raise wrong("pool_by", self.pool_by, "a pool with it: how many rows are drawn")
        return self

    @property
    def embeds(self) -> bool:
        """Whether the order depends on embeddings."""
        guarded = self.exclude_near_duplicates is not None or self.drop_leaks
        return guarded or find_order(self.name).embeds

    @property
    def seeded(self) -> bool:
        """Whether the order depends on the seed."""
        drawn = self.pool is not None or self.within == "shuffled"
        return drawn or find_order(self.name).seeded

    @property
    def rounds(self) -> tuple[int, int | None]:
        """The first round and the one behind the last; (0, None): all."""
        match = _ROUNDS.fullmatch(self.name)
        first, stop = match.groups() if match else ("", "")
        return int(first or 0), int(stop) if stop else None
