"""Similarities of unit rows: approximate ones with a proven error, and exact ones.

The approximate product runs in bfloat16 where the CPU multiplies in it, else in float32. The exact
similarity of a pair is a whole number of 1e-10, the same on every machine and device.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from tma.arrange.rows import Numbers

DECIMALS = 10
"""Decimals of a cosine similarity that count."""
PAIRS = 2**10
"""Pairs computed again at once; their rows stay in a core's cache."""
UNIT = 10**DECIMALS
"""A similarity of 1 as an exact key: keys are whole numbers of 1e-10."""


def best_device() -> str:
    """Return where products are computed when the caller does not say: a GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Product:
    """A matrix product of unit rows with a proven error."""

    device: str
    dtype: torch.dtype
    """bfloat16 or float32: how the factors, and the similarities, are rounded."""

    @classmethod
    def on(cls, device: str) -> Product:
        """Return the fastest product of a device: bfloat16 where the CPU multiplies in it."""
        fast = device == "cpu" and bool(torch.cpu.get_capabilities().get("avx512_bf16"))
        return cls(device, torch.bfloat16 if fast else torch.float32)

    @property
    def rounding(self) -> float:
        """Largest relative error of rounding to `dtype`."""
        return 2.0**-8 if self.dtype == torch.bfloat16 else 2.0**-24

    def factor(self, rows: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Return unit rows as a factor, and the largest distance between a row and its rounding."""
        rows = rows.to(self.device)
        rounded = rows.to(self.dtype)
        if self.dtype == rows.dtype:
            return rounded, 0.0
        return rounded, float(torch.linalg.vector_norm(rows - rounded, dim=1).max())

    def scores(
        self, block: torch.Tensor, tests: tuple[torch.Tensor, float]
    ) -> tuple[torch.Tensor, float]:
        """Return block · testsᵀ, (b, m), and its largest error before it was rounded to `dtype`.

        |x̂·ŷ - x·y| ≤ |x̂ - x||ŷ| + |x||ŷ - y|, and the sum in float32 adds at most 2d · 2⁻²⁴ of
        Σ|x_i y_i| ≤ |x||y|. Lengths are 1 within 0.005, for which 1.02 leaves room.
        """
        rows, moved = self.factor(block)
        error = 1.02 * (moved + tests[1] + 2 * block.shape[1] * 2.0**-24)
        return self._multiplied(rows, tests[0]), error

    def _multiplied(self, rows: torch.Tensor, tests: torch.Tensor) -> torch.Tensor:
        """Return rows · testsᵀ in `dtype`, whatever precision the caller allows torch elsewhere."""
        if self.device == "cpu" and self.dtype == torch.float32:
            return torch.from_numpy(rows.numpy() @ tests.numpy().T)
        matmul = torch.backends.cuda.matmul
        allowed, matmul.fp32_precision = matmul.fp32_precision, "ieee"  # TF32 errs by more
        try:
            with torch.autocast(self.device, enabled=False):
                return rows @ tests.T
        finally:
            matmul.fp32_precision = allowed


def reaching(scores: torch.Tensor, threshold: torch.Tensor) -> Numbers:
    """Return the places in the flattened scores, ascending, that are not below the threshold."""
    if scores.device.type != "cpu":
        found: Numbers = (scores >= threshold).flatten().nonzero()[:, 0].cpu().numpy()
        return found
    if scores.dtype == torch.bfloat16 and bool((threshold > 0).all()):
        # Bits of positive numbers compare as the numbers do, negative ones below them, and numpy
        # compares whole numbers four times as fast as torch compares bfloat16.
        scores, threshold = scores.view(torch.int16), threshold.view(torch.int16)
    elif scores.dtype == torch.bfloat16:
        return np.flatnonzero((scores >= threshold).numpy())
    return np.flatnonzero(scores.numpy() >= threshold.numpy())


def exact_keys(x: torch.Tensor, y: torch.Tensor) -> Numbers:
    """Return the keys of pairs of rows: out[p] = rint(1e10 · x[p]·y[p]), exact up to d · 2⁻⁵².

    Products of float32 numbers are exact in float64. Adding and subtracting 3 rounds them to
    multiples of 2⁻⁵², whose sums are exact as long as they stay below 2, in any order and with or
    without fused operations: every device finds the same key.

    Args:
        x: (p, d) float32 unit rows.
        y: (p, d) float64 unit rows that hold float32 numbers, on the device where x belongs.
    """
    products = x.to(y.device).double().mul_(y).add_(3).sub_(3)
    keys: Numbers = torch.round(products.sum(1) * UNIT).long().cpu().numpy()
    return keys
