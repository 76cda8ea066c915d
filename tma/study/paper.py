"""What the paper's figures show, read off them: the test loss of orders along the training.

He et al. (2025), LLaMA-2-7B; one run a curve. `claims.REPORTED` says the same in words.
"""

from __future__ import annotations

from collections.abc import Mapping

ROUNDS = {"tma_nft": {0.5: 0.50}, "tma_rt": {0.5: 0.63}, "tma_fft": {0.5: 0.84}}
"""TMA on Flan-mini, halfway through 1,800 steps: order → share of the steps → loss (nats)."""
SORTED = {"nearest": {1.0: 0.62}, "random": {1.0: 0.66}, "farthest": {1.0: 0.70}}
"""Single instances sorted by weighted similarity distance, Flan-mini, after 1,090 steps."""

Losses = Mapping[str, Mapping[float, float]]
"""Order → share of the steps → loss, nats a token."""


def gaps(losses: Losses, baseline: str) -> dict[str, dict[float, float]]:
    """Return order → share of the steps → its loss minus the baseline's, where both are known."""
    base = losses[baseline]
    return {
        order: {share: loss - base[share] for share, loss in own.items() if share in base}
        for order, own in losses.items()
        if order != baseline
    }
