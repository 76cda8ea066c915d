"""What the paper shows for each claim, and the test losses of its orders, read off its figures.

He et al. (2025), LLaMA-2-7B; one run a curve.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

ROUNDS = {"tma_nft": {0.5: 0.50}, "tma_rt": {0.5: 0.63}, "tma_fft": {0.5: 0.84}}
"""TMA on Flan-mini, halfway through 1,800 steps: order → share of the steps → loss (nats)."""
SORTED = {"nearest": {1.0: 0.62}, "random": {1.0: 0.66}, "farthest": {1.0: 0.70}}
"""Single instances sorted by weighted similarity distance, Flan-mini, after 1,090 steps."""
GRAIN = {"nearest": {1.0: 0.94}, "coarse_nearest": {1.0: 1.06}}
"""The same data in fine and in coarse order, after about 1,100 steps."""

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


class Reported(NamedTuple):
    """What the paper shows for a claim."""

    found: str
    effect: float | None = None
    """The same difference as our measure, in nats a token; None: it has no such number."""


def _reported(told: str, losses: Losses, order: str, baseline: str) -> Reported:
    """Return the losses in words, by order, and the difference of two of them."""
    shown = {name: next(iter(own.values())) for name, own in losses.items()}
    [effect] = gaps(losses, baseline)[order].values()
    return Reported(told.format(**shown), round(effect, 2))


REPORTED = {
    "C1": Reported("nearly all of the fall within 50 of 1,800 steps"),
    "C2": Reported("ROUGE and exact match jump by 5 to 10 points between checkpoints"),
    "C3": Reported("the loss of a task drops at the step at which data like it arrives"),
    "C4": _reported(
        "final loss: nearest {nearest:.2f}, random {random:.2f}, farthest {farthest:.2f}",
        *(SORTED, "nearest", "random"),
    ),
    "C5": _reported(
        "final loss: single instances {nearest:.2f}, whole tasks {coarse_nearest:.2f}",
        *(GRAIN, "nearest", "coarse_nearest"),
    ),
    "C6": _reported(
        "loss halfway: NFT {tma_nft:.2f}, RT {tma_rt:.2f}, FFT {tma_fft:.2f}",
        *(ROUNDS, "tma_nft", "tma_rt"),
    ),
    "C7": Reported(
        "loss of six blocks of five rounds, in turn: 0.61, 0.61, 0.65, 0.675, 0.69, 0.68"
    ),
    "C8": Reported("follows from the others; not measured by itself"),
}
"""By claim of the paper."""
