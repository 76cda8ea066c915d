"""One look an order: its label, colour and dashes, the same in every figure.

The colours are Okabe and Ito's, told apart with any colour vision, and darker and lighter shades of
them for the fine and the coarse orders; the dashes carry the difference into grey print. Rounds of
TMA are steps of one scale from dark to light.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tma.errors import check_choice

LABELS = {
    "tma_nft": "NFT, nearest first",
    "tma_rt": "RT, random",
    "tma_fft": "FFT, farthest first",
    "tma_nft, shuffled": "NFT, shuffled in rounds",
    "tma_fft, shuffled": "FFT, shuffled in rounds",
    "tma_min": "MIN, nearest only",
    "tma_max": "MAX, farthest only",
    "tma_min_rt": "MIN shuffled",
    "tma_max_rt": "MAX shuffled",
    "random": "random",
    "round_robin": "round-robin",
    "cluster": "cluster",
    "nearest": "nearest first, fine",
    "farthest": "farthest first, fine",
    "coarse_nearest": "nearest first, coarse",
    "coarse_farthest": "farthest first, coarse",
}
PALETTE = {
    "tma_nft": "#0072B2",
    "tma_rt": "#444444",
    "tma_fft": "#D55E00",
    "tma_nft, shuffled": "#1B9CE0",
    "tma_fft, shuffled": "#F28E5C",
    "tma_min": "#56B4E9",
    "tma_max": "#E69F00",
    "tma_min_rt": "#2C7FA8",
    "tma_max_rt": "#A87400",
    "random": "#999999",
    "round_robin": "#009E73",
    "cluster": "#CC79A7",
    "nearest": "#004D7A",
    "farthest": "#8F3F00",
    "coarse_nearest": "#7FB8D9",
    "coarse_farthest": "#EAAE7F",
}
DASHES: dict[str, Any] = {
    "tma_nft": "",
    "tma_rt": (1, 1.2),
    "tma_fft": (5, 2),
    "tma_nft, shuffled": (10, 1, 1, 1),
    "tma_fft, shuffled": (5, 1, 1, 1, 1, 1, 1, 1),
    "tma_min": (7, 2, 1, 2),
    "tma_max": (3, 1),
    "tma_min_rt": (7, 1, 1, 1, 1, 1),
    "tma_max_rt": (4, 1, 1, 1),
    "random": (1, 3),
    "round_robin": (5, 1, 1, 1, 1, 1),
    "cluster": (9, 2),
    "nearest": (12, 1),
    "farthest": (2, 2),
    "coarse_nearest": (12, 3, 3, 3),
    "coarse_farthest": (2, 4),
}
_ROUNDS_DASHES = ("", (4, 1.5), (1.5, 1.5), (6, 1.5, 1.5, 1.5), (10, 2), (2, 1, 2, 4))
_ROUNDS = re.compile(r"tma_rounds\[(\d*):(\d*)\]")


@dataclass(frozen=True)
class Style:
    """How an order is drawn."""

    label: str
    """Its name in the legend."""
    colour: str
    """As #RRGGBB."""
    dashes: Any
    """Lengths of line and gap in points; "": a solid line."""

    @property
    def short(self) -> str:
        """The label's first words, for an axis: RT of "RT, random"."""
        return self.label.partition(",")[0]

    @property
    def line(self) -> dict[str, Any]:
        """Arguments of matplotlib's `plot`."""
        return {"color": self.colour, "dashes": self.dashes or (None, None), "linewidth": 2}


def styles(names: Sequence[str]) -> dict[str, Style]:
    """Return how each of the names is drawn, so that all can be told apart.

    Args:
        names: orders, and rounds such as tma_rounds[0:5].

    Raises:
        ParameterError: a name is no order.
    """
    rounds = sorted((name for name in {*names} if _ROUNDS.fullmatch(name)), key=_first_round)
    found = dict[str, Style]()
    for name in dict.fromkeys(names):
        if name in rounds:
            found[name] = _rounds_style(name, rounds.index(name), len(rounds))
        else:
            check_choice("order", name, tuple(LABELS))
            found[name] = Style(LABELS[name], PALETTE[name], DASHES[name])
    return found


def _first_round(name: str) -> int:
    found = _ROUNDS.fullmatch(name)
    return int(found[1] or 0) if found else 0


def _rounds_style(name: str, number: int, count: int) -> Style:
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    first, stop = name[len("tma_rounds[") : -1].split(":")
    label = f"rounds {first or 0} to {int(stop) - 1}" if stop else f"rounds from {first or 0}"
    colour = to_hex(colormaps["viridis"](0.85 * number / max(1, count - 1)))
    return Style(label, colour, _ROUNDS_DASHES[number % len(_ROUNDS_DASHES)])
