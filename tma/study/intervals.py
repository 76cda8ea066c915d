"""What is known of a number: an estimate with its interval, how it is widened, and how written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Floats = NDArray[np.float64]

TAILS = (0.025, 0.975)
"""Where a 95 % interval ends."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval."""

    estimate: float
    """Value of the sample itself."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end of the 95 % interval."""
    n: int
    """Test instances."""
    seeds: int
    """Seeds (of a comparison: pairs of runs)."""
    step: int | None = None
    """Training step it belongs to; None: it is of the whole course."""
    clusters: int | None = None
    """Source datasets (else tasks, or instances) that it is clustered by; None: it is not."""
    freedom: float | None = None
    """Degrees of freedom of its Student's t; None: so many that it does not matter."""

    @property
    def clear(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0

    def among(self, count: int) -> Interval:
        """Return the interval widened for being one of `count` that are looked at together.

        One of several 95 % intervals excludes zero by chance more often than one does. Each end
        moves away from the estimate by the ratio of the quantiles at 1 - 0.025/count and at 0.975,
        those of Student's t, so that all of them together hold their values as often as one does
        (Bonferroni).
        """
        return self._wider(self._quantile(1 - TAILS[0] / count) / self._quantile(TAILS[1]))

    def _quantile(self, share: float) -> float:
        from scipy.stats import t

        return float(t.ppf(share, math.inf if self.freedom is None else max(1, self.freedom)))

    def within(self, least: float, most: float) -> Interval:
        """Return the interval without what its quantity cannot be; an endless one stays so."""
        if not math.isfinite(self.estimate):
            return self
        return replace(self, low=max(self.low, least), high=min(self.high, most))

    def _wider(self, factor: float) -> Interval:
        if not math.isfinite(self.estimate):
            return self
        low, high = (self.estimate + factor * (e - self.estimate) for e in (self.low, self.high))
        return replace(self, low=low, high=high)

    def minus(self, value: float) -> Interval:
        """Return the interval of the estimate minus a fixed value, such as what a claim says."""
        return replace(
            self, estimate=self.estimate - value, low=self.low - value, high=self.high - value
        )


def written(estimate: float, low: float | None, high: float | None) -> str:
    """Return an estimate with its interval, if it has one, as tables and sentences write it.

    Each number is signed, with three decimals under ten and one above.
    """
    near, *ends = (
        f"{value:+.3f}" if abs(value) < 10 else f"{value:+.1f}"
        for value in (estimate, low, high)
        if value is not None
    )
    return f"{near} ({' to '.join(ends)})" if len(ends) == 2 else near


def ends(low: float, high: float) -> str:
    """Return the ends of an interval as tables write them."""
    return f"{low:+.3f} to {high:+.3f}"


def table(intervals: Mapping[str, Interval]) -> pd.DataFrame:
    """Return named intervals as rows for display: estimate, low, high, n, seeds."""
    columns = ["estimate", "low", "high", "n", "seeds"]
    rows = [[getattr(found, column) for column in columns] for found in intervals.values()]
    return pd.DataFrame(rows, index=list(intervals), columns=columns)
