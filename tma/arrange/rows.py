"""Embeddings on their way into the arithmetic: read in blocks, in order, and checked once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

BLOCK = 2**22
"""Numbers in one block."""

Numbers = NDArray[np.int64]


class UnitRows:
    """Embeddings that are read in blocks, in order; the first reading of all rows checks them.

    Args:
        rows: (n, d) floating-point unit rows, in memory or memory-mapped; rounded to float32.
        name: the argument that an error names.

    Raises:
        ValueError: no rows, no matrix, or no floating-point numbers; when read: a row that is not
            finite or whose Euclidean length is not 1 within 0.001.
    """

    def __init__(self, rows: NDArray[np.floating], name: str) -> None:
        rows = np.asanyarray(rows)
        if rows.ndim != 2 or not len(rows) or not rows.shape[1]:
            raise ValueError(
                f"{name} has shape {rows.shape}; expected at least one row, (rows, d)."
            )
        if not np.issubdtype(rows.dtype, np.floating):
            raise ValueError(
                f"{name} has dtype {rows.dtype}; expected floating-point unit rows, best float32."
            )
        self.array, self.name, self._checked = rows, name, False

    def __len__(self) -> int:
        return len(self.array)

    @property
    def width(self) -> int:
        """Columns, d."""
        return int(self.array.shape[1])

    @property
    def float32(self) -> NDArray[np.float32]:
        """All rows as one float32 array; for test rows, which fit memory."""
        return np.asarray(self.array, np.float32)

    def blocks(
        self, size: int, numbers: Numbers | None = None, *, first: int | None = None
    ) -> Iterator[tuple[Numbers, torch.Tensor]]:
        """Yield (row numbers, float32 rows) in ascending order, `size` rows at a time.

        Given `first`, the blocks begin with that size and double until `size` is reached.
        """
        count = len(self) if numbers is None else len(numbers)
        start, step = 0, min(size, first or size)
        while start < count:
            stop = min(start + step, count)
            chosen = np.arange(start, stop) if numbers is None else numbers[start:stop]
            block = self.take(chosen)
            if not self._checked:
                self._check(chosen, block)
            yield chosen, block
            start, step = stop, min(size, 2 * step)
        self._checked = self._checked or count == len(self)

    def take(self, numbers: Numbers) -> torch.Tensor:
        """Return the rows of these numbers, float32 on the CPU; without a copy where possible."""
        first, last = int(numbers[0]), int(numbers[-1])
        run = last - first == len(numbers) - 1 and bool((np.diff(numbers) == 1).all())
        rows = self.array[first : last + 1] if run else self.array[numbers]
        # torch shares memory only with contiguous arrays that it may write to.
        return torch.from_numpy(np.require(rows, np.float32, ["C", "W"]))

    def check(self) -> None:
        """Read and check all rows, unless that has been done."""
        if not self._checked:
            for _ in self.blocks(max(1, BLOCK // self.width)):
                pass

    def _check(self, numbers: Numbers, block: torch.Tensor) -> None:
        length = torch.linalg.vector_norm(block, dim=1).numpy()
        bad = np.flatnonzero(~(np.abs(length - 1) < 1e-3))
        if bad.size:
            raise ValueError(
                f"{self.name}[{numbers[bad[0]]}] has length {length[bad[0]]:.6g}; expected 1. "
                "Divide each row by its Euclidean length (tma.embed does)."
            )


def unit_pair(
    X: NDArray[np.floating] | UnitRows, Y: NDArray[np.floating] | UnitRows
) -> tuple[UnitRows, UnitRows]:
    """Return training and test rows, wrapped; the test rows are checked at once.

    Raises:
        ValueError: rows that cannot be used, or of unequal width.
    """
    left, right = (
        rows if isinstance(rows, UnitRows) else UnitRows(rows, name)
        for rows, name in ((X, "X"), (Y, "Y"))
    )
    right.check()
    if left.width != right.width:
        raise ValueError(
            f"X has {left.width} columns and Y {right.width}; embed both with one encoder."
        )
    return left, right
