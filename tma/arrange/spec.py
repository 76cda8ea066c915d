"""The orders by name, and every setting that decides one; nothing here imports numpy.

`Method` is what an order's receipt stores: two equal methods on equal data give the same order.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import re
import sys
from dataclasses import dataclass
from numbers import Real

from tma.errors import ParameterError, check_choice, check_count, wrong

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
"""Names that `tma.arrange` knows, each with the settings that belong to its kind of order."""
SHUFFLED = ("random", "round_robin", "cluster", "tma_rt", "tma_min_rt", "tma_max_rt")
"""Those among them that depend on the seed."""

MEASURES = (
    "cosine_avg",
    "cosine_min",
    "cosine_max",
    "cosine_centroid",
    "euclidean_avg",
    "euclidean_min",
    "euclidean_max",
    "euclidean_centroid",
    "bigram_kl",
)
"""The nine similarity distances."""
COLLISIONS = ("set", "each")
"""What happens when two test rows want the same training row in one round of TMA."""
POOLS = ("row", "task")
"""What a pool is drawn by."""
WITHIN = ("row", "similarity", "shuffled")
"""The sequence inside a round of TMA."""

_ROUNDS = re.compile(r"tma_rounds\[(\d{0,9}):(\d{0,9})\]")


@dataclass(frozen=True)
class Method:
    """The name of an order and every setting that decides it.

    Raises:
        ParameterError: a value cannot be used, or belongs to another kind of order; the message
            names the setting and what was expected.
    """

    name: str
    """Name of the order (see `tma.arrange`)."""
    limit: int | None = None
    """N, rows wanted; None: all."""
    seed: int = 0
    """Seed of the random choices."""
    measure: str = "wsd"
    """What `nearest` and `farthest` sort by: wsd, or one of the nine measures."""
    weight: float | None = None
    """w of WSD; None: mean(MD)/mean(AD), the paper's."""
    collision: str = "set"
    """TMA: set (two test rows may take the same row) or each (every test row its own)."""
    within: str = "row"
    """TMA, inside a round: row (ascending row number), similarity (in the round's own sense), or
    shuffled (by the seed)."""
    exact_limit: bool = False
    """TMA: cut the last round, so that each side takes just the rows wanted of it."""
    exclude_near_duplicates: float | None = None
    """Leave out training rows with at least this cosine similarity to a test row."""
    pool: int | None = None
    """Rows that the seed draws; only these are arranged. None: all."""
    pool_by: str = "row"
    """What is drawn: row (rows), or task (tasks, whole but for the last)."""

    def __post_init__(self) -> None:
        for name in ("limit", "seed", "pool"):  # numpy's whole numbers are as good
            value = getattr(self, name)
            if hasattr(value, "__index__") and not isinstance(value, bool):
                object.__setattr__(self, name, operator.index(value))
        self._check_uses({*ORDERS[order_name(self.name)]})
        check_choice("measure", self.measure, ("wsd", *MEASURES))
        check_choice("collision", self.collision, COLLISIONS)
        check_choice("within", self.within, WITHIN)
        check_count("seed", self.seed, 0)
        if self.limit is not None:
            check_count("limit", self.limit, 0)
        if self.pool is not None:
            check_count("pool", self.pool, 1)
        check_choice("pool_by", self.pool_by, POOLS)
        if self.pool is None and self.pool_by != "row":
            raise wrong("pool_by", self.pool_by, "a pool with it: how many rows are drawn")
        check_choice("exact_limit", self.exact_limit, (False, True))
        self._check_number("weight", -math.inf, "a finite number, or None for mean(MD)/mean(AD)")
        self._check_number("exclude_near_duplicates", 0, "a cosine similarity in (0, 1]", most=1)

    def _check_number(
        self, name: str, above: float, expected: str, most: float = sys.float_info.max
    ) -> None:
        value = getattr(self, name)
        if value is None:
            return
        number = float(value) if isinstance(value, Real) else math.nan
        if isinstance(value, bool) or not above < number <= most:
            raise wrong(name, value, expected)
        object.__setattr__(self, name, number)  # a receipt holds plain numbers

    def _check_uses(self, uses: set[str]) -> None:
        """Refuse a setting that would have no influence: the caller expects one."""
        specific = {setting for settings in ORDERS.values() for setting in settings}
        for field in dataclasses.fields(self):
            given = getattr(self, field.name)
            if field.name in specific and field.name not in uses and given != field.default:
                users = ", ".join(name for name, its in ORDERS.items() if field.name in its)
                expected = f"no {field.name} with order={self.name!r}; it belongs to {users}"
                raise wrong(field.name, given, expected)
        if self.weight is not None and self.measure != "wsd":
            raise wrong("weight", self.weight, f"None with measure={self.measure!r}: w is of WSD")

    @property
    def embeds(self) -> bool:
        """Whether the order depends on embeddings."""
        without = ("random", "round_robin", "cluster")
        return self.name not in without or self.exclude_near_duplicates is not None

    @property
    def rounds(self) -> tuple[int, int | None]:
        """First round wanted and the one behind the last; (0, None): all."""
        found = _ROUNDS.fullmatch(self.name)
        first, stop = found.groups() if found else ("", "")
        return int(first or 0), int(stop) if stop else None


def order_name(name: str) -> str:
    """Return the name under which an order stands in `ORDERS`.

    Raises:
        ParameterError: there is no such order, or the rounds are none.
    """
    found = _ROUNDS.fullmatch(name) if isinstance(name, str) else None
    if found is None:
        known = [known for known in ORDERS if "[" not in known] + ["tma_rounds[0:5] and the like"]
        check_choice("order", name, known)
        return name
    first, stop = found.groups()
    if stop and int(stop) <= int(first or 0):
        raise ParameterError(f"order={name!r} has no rounds; expected [i:j] with i < j.")
    return "tma_rounds[i:j]"
