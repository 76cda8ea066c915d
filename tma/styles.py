"""One look an order: its label, colour and dashes, the same in every figure.

The colours are Okabe and Ito's, told apart with any colour vision, and darker and lighter shades of
them for the fine and the coarse orders; the dashes carry the difference into grey print. A variant
of an order keeps its colour in another shade, with dashes of its own; rounds of TMA are steps of
one scale from dark to light.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tma.errors import ParameterError, choices

Variants = Mapping[str, tuple[str, str]]
"""Name of a variant → its label, and the order that it is a variant of."""

LABELS = {
    "tma_nft": "NFT, nearest first",
    "tma_rt": "RT, random",
    "tma_fft": "FFT, farthest first",
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
_SHADES = ((0.45, 1.0), (0.4, 0.0), (0.7, 1.0), (0.7, 0.0))
"""Of each variant of one order, how much of white (1) or black (0) is mixed in."""
_VARIANT_DASHES = ((4, 1.5), (1.5, 1.5), (6, 1.5, 1.5, 1.5), (10, 2), (2, 1, 2, 4))
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
        """The label's first words, for an axis: RT of "RT, random"; all of a variant's."""
        return self.label.partition(",")[0] if self.label in LABELS.values() else self.label

    @property
    def line(self) -> dict[str, Any]:
        """Arguments of matplotlib's `plot`."""
        return {"color": self.colour, "dashes": self.dashes or (None, None), "linewidth": 2}


def styles(names: Sequence[str], variants: Variants | None = None) -> dict[str, Style]:
    """Return how each of the names is drawn, so that all can be told apart.

    Args:
        names: orders, rounds such as tma_rounds[0:5], and variants.
        variants: label and order of variants; one named "order, what differs" needs none.

    Raises:
        ParameterError: a name is no order, and no variant of one.
    """
    rounds = sorted((name for name in names if _ROUNDS.fullmatch(name)), key=_first_round)
    found, taken = dict[str, Style](), dict[str, int]()
    for name in dict.fromkeys(names):
        if name in rounds:
            found[name] = _rounds_style(name, rounds.index(name), len(rounds))
        elif name in LABELS and name not in (variants or {}):
            found[name] = Style(LABELS[name], PALETTE[name], DASHES[name])
        else:
            label, order = _variant(name, variants or {})
            number = taken[order] = taken.get(order, -1) + 1
            dashes = _VARIANT_DASHES[number % len(_VARIANT_DASHES)]
            found[name] = Style(label, _shade(PALETTE[order], number), dashes)
    return found


def _variant(name: str, variants: Variants) -> tuple[str, str]:
    order, _, rest = name.partition(", ")
    label, order = variants.get(name, (f"{LABELS.get(order, order)}, {rest}", order))
    if order not in LABELS:
        raise ParameterError(
            f"{name!r} cannot be drawn: {order!r} is not {choices(tuple(LABELS), order)}. Give "
            "variants={name: (label, order)}."
        )
    return label, order


def _shade(colour: str, number: int) -> str:
    from matplotlib.colors import to_hex, to_rgb

    part, towards = _SHADES[number % len(_SHADES)]
    red, green, blue = ((1 - part) * channel + part * towards for channel in to_rgb(colour))
    return to_hex((red, green, blue))


def _first_round(name: str) -> int:
    found = _ROUNDS.fullmatch(name)
    return int(found[1] or 0) if found else 0


def _rounds_style(name: str, number: int, count: int) -> Style:
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    first, stop = name[len("tma_rounds[") : -1].split(":")
    label = f"rounds {first or 0} to {int(stop) - 1}" if stop else f"rounds from {first or 0}"
    colour = to_hex(colormaps["cividis"](0.85 * number / max(1, count - 1)))
    return Style(label, colour, ("", *_VARIANT_DASHES)[number % (1 + len(_VARIANT_DASHES))])
