"""The orders by name and the one definition of their settings.

`Method` is what a receipt stores: equal methods on equal data give equal orders.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from typing import Annotated, Any, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, ConfigDict, Field, ValidationError, field_validator
from pydantic import model_validator as validator
from pydantic.dataclasses import dataclass

from tma.errors import ParameterError, check_choice, choices, wrong

Numbers = NDArray[np.int64]
Floats = NDArray[np.float64]
Class = TypeVar("Class")

_TMA = ("collision", "within", "exact_limit")
ORDERS: dict[str, tuple[str, ...]] = {
    "random": (),
    "round_robin": (),
    "cluster": (),
    "nearest": ("measure", "weight"),
    "farthest": ("measure", "weight"),
    "coarse_nearest": ("weight",),
    "coarse_farthest": ("weight",),
    "tma_min": _TMA,
    "tma_max": _TMA,
    "tma_nft": _TMA,
    "tma_fft": _TMA,
    "tma_rt": _TMA,
    "tma_min_rt": _TMA,
    "tma_max_rt": _TMA,
    "tma_rounds[i:j]": _TMA,
}
"""Names that `tma.arrange` knows, each with the settings of its kind of order."""
SHUFFLED = ("random", "round_robin", "cluster", "tma_rt", "tma_min_rt", "tma_max_rt")
"""The orders that depend on the seed."""

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

_ROUNDS = re.compile(r"tma_rounds\[(\d{0,9}):(\d{0,9})\]")

STRICT = ConfigDict(strict=True, extra="forbid")
"""Settings of the right type only: no text for a number, no unknown name."""


def refusing(cls: type[Class]) -> type[Class]:
    """Let a pydantic dataclass raise `ParameterError` instead of pydantic's own error."""
    fill: Callable[..., None] = cls.__init__

    @wraps(fill)
    def fill_or_refuse(self: Class, *args: Any, **settings: Any) -> None:
        try:
            fill(self, *args, **settings)
        except ValidationError as error:
            raise parameter_error(error) from None

    type.__setattr__(cls, "__init__", fill_or_refuse)
    return cls


def parameter_error(error: ValidationError) -> ParameterError:
    """Return the first of pydantic's complaints: the setting, what came, what was expected."""
    first = error.errors()[0]
    context = first.get("ctx", {})
    if isinstance(context.get("error"), ParameterError):
        raised: ParameterError = context["error"]
        return raised
    name, value = ".".join(map(str, first["loc"])), first["input"]
    if first["type"] == "literal_error":
        return wrong(name, value, choices(re.findall("'([^']*)'", context["expected"]), value))
    if first["type"].startswith("missing"):
        return ParameterError(f"{name} is missing; give it a value.")
    expected = first["msg"].replace("Input should", "it should")
    return ParameterError(f"{name}={value!r} cannot be used: {expected}.")


def _plain(value: Any) -> Any:
    """Return a number of numpy's as Python's own, which JSON can hold."""
    return value.item() if isinstance(value, np.generic) else value


Count = Annotated[int, Field(ge=0), BeforeValidator(_plain)]
Number = Annotated[float, Field(allow_inf_nan=False), BeforeValidator(_plain)]


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
    collision: Literal["set", "each"] = "set"
    """TMA: set (two test rows may take the same row, as in the paper) or each (test rows choose in
    turn, by ascending number, each its own row)."""
    within: Literal["row", "similarity", "shuffled"] = "row"
    """TMA, inside a round: row (ascending row number, as in the paper; where data is stored task by
    task, that is cluster order), similarity (nearest first, in a farthest round farthest first), or
    shuffled by the seed."""
    exact_limit: bool = False
    """TMA: cut the last round, so that each side takes exactly its share of N."""
    exclude_near_duplicates: Annotated[Number, Field(gt=0, le=1)] | None = None
    """Leave out training rows with at least this cosine similarity to a test row."""
    pool: Annotated[Count, Field(ge=1)] | None = None
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
        order_name(name)
        return name

    @validator(mode="after")
    def _check_together(self) -> Method:
        """Refuse a setting without influence: the caller expects one."""
        used = ORDERS[order_name(self.name)]
        specific = {setting for settings in ORDERS.values() for setting in settings}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in specific.difference(used) and value != field.default:
                users = ", ".join(name for name, its in ORDERS.items() if field.name in its)
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
        without = ("random", "round_robin", "cluster")
        return self.name not in without or self.exclude_near_duplicates is not None

    @property
    def rounds(self) -> tuple[int, int | None]:
        """The first round and the one behind the last; (0, None): all."""
        match = _ROUNDS.fullmatch(self.name)
        first, stop = match.groups() if match else ("", "")
        return int(first or 0), int(stop) if stop else None


def order_name(name: str) -> str:
    """Return the name under which an order stands in `ORDERS`.

    Raises:
        ParameterError: there is no such order, or it has no rounds.
    """
    match = _ROUNDS.fullmatch(name) if isinstance(name, str) else None
    if match is None:
        known = [known for known in ORDERS if "[" not in known] + ["tma_rounds[0:5] and the like"]
        check_choice("order", name, known)
        return name
    first, stop = match.groups()
    if stop and int(stop) <= int(first or 0):
        raise ParameterError(f"order={name!r} has no rounds; expected [i:j] with i < j.")
    return "tma_rounds[i:j]"
