"""The directive `tma-picture`: two rounds of TMA and three orders, as `tma` returns them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

import numpy as np
from book_directives import Drawing
from docutils import nodes
from numpy.typing import NDArray
from sphinx.application import Sphinx

TRAIN = np.array(
    [
        [-0.66, 0.38],
        [-0.66, -0.16],
        [-0.36, 0.40],
        [-0.22, -0.22],
        [0.06, 0.12],
        [0.44, -0.34],
        [0.66, 0.34],
        [0.84, -0.04],
    ]
)
TEST = np.array([[-0.56, 0.22], [-0.42, -0.08], [-0.18, 0.16]])
NAMES = "abcdefgh"
LIMIT = 6
"""N of the orders drawn."""
PANEL, HEIGHT, SCALE = 330, 250, 190
"""Width and height of a panel, and pixels of length 1."""
LABEL = (
    "Eight training instances, a to h, and three test instances, drawn as squares, in two panels. "
    "Round 1: {first}. Round 2, from what is left: {second}. Below, as rows of boxes: {orders}."
)


def unit(points: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return points of the disc as unit rows, (n, 3): those above them on the sphere."""
    height = np.sqrt(1 - (points**2).sum(axis=1, keepdims=True))
    return np.hstack([points, height]).astype(np.float32)


def taken(left: Sequence[int]) -> list[tuple[int, int]]:
    """Return, for each test instance, its nearest training instance that is left."""
    X, Y = unit(TRAIN), unit(TEST)
    return [(test, max(left, key=lambda row: float(X[row] @ Y[test]))) for test in range(len(Y))]


def rounds() -> list[list[int]]:
    """Return the rows of each round."""
    import tma

    return [r.tolist() for r in tma.test_centric_rounds(unit(TRAIN), unit(TEST))]


def orders() -> dict[str, list[int]]:
    """Return the rows of NFT, RT and FFT."""
    import tma

    X, Y = unit(TRAIN), unit(TEST)
    names = {"NFT": "tma_nft", "RT": "tma_rt", "FFT": "tma_fft"}
    return {
        label: tma.arrange(name, X, Y, limit=LIMIT, exact_limit=True).tolist()
        for label, name in names.items()
    }


def at(points: NDArray[np.float64], row: int, left: float) -> tuple[float, float]:
    """Return where a point stands in a panel that begins at `left`."""
    x, y = points[row]
    return left + PANEL / 2 - 15 + SCALE * x, 45 + HEIGHT / 2 - SCALE * y - 15


def panel(
    number: int, left: float, gone: Sequence[int], pairs: list[tuple[int, int]]
) -> Iterator[str]:
    """Yield a round: what is gone is faint, each test instance has a line to what it takes."""
    picked = {row for _, row in pairs}
    yield f'<text class="title" x="{left + 8}" y="22">Round {number}</text>'
    for test, row in pairs:
        (x1, y1), (x2, y2) = at(TEST, test, left), at(TRAIN, row, left)
        yield f'<line class="near" x1="{x1:.0f}" y1="{y1:.0f}" x2="{x2:.0f}" y2="{y2:.0f}"/>'
    for row, name in enumerate(NAMES):
        x, y = at(TRAIN, row, left)
        kind = "gone" if row in gone else "near" if row in picked else "left"
        yield f'<circle class="{kind}" cx="{x:.0f}" cy="{y:.0f}" r="13"/>'
        yield f'<text class="{kind}" x="{x:.0f}" y="{y + 5:.0f}">{name}</text>'
    for test in range(len(TEST)):
        x, y = at(TEST, test, left)
        yield f'<rect class="test" x="{x - 7:.0f}" y="{y - 7:.0f}" width="14" height="14"/>'


def boxes(made: dict[str, list[int]], near: Sequence[int]) -> Iterator[str]:
    """Yield a row of boxes an order; what the nearest rounds hold is filled."""
    for line, (label, rows) in enumerate(made.items()):
        y = HEIGHT + 85 + 44 * line
        yield f'<text class="title" x="8" y="{y + 21}">{label}</text>'
        for place, row in enumerate(rows):
            x, kind = 80 + 46 * place, "near" if row in near else "left"
            yield f'<rect class="{kind}" x="{x}" y="{y}" width="40" height="32" rx="4"/>'
            yield f'<text class="{kind}" x="{x + 20}" y="{y + 21}">{NAMES[row]}</text>'
    y = HEIGHT + 75
    yield f'<text class="note" x="80" y="{y}">first step → last step</text>'


def svg() -> str:
    """Return the picture, with a label for those who do not see it."""
    found, made = rounds(), orders()
    first, second = taken(range(len(TRAIN))), taken([r for r in range(8) if r not in found[0]])
    near = [*found[0], *found[1]][: LIMIT // 2]
    letters = ["".join(NAMES[row] for row in rows) for rows in found]
    label = LABEL.format(
        first="the test instances take " + ", ".join(letters[0]),
        second=", ".join(letters[1]),
        orders="; ".join(f"{k} is {', '.join(NAMES[r] for r in rows)}" for k, rows in made.items()),
    )
    parts = [*panel(1, 0, (), first), *panel(2, PANEL + 20, found[0], second), *boxes(made, near)]
    width, height = 2 * PANEL + 20, HEIGHT + 85 + 44 * len(made)
    return (
        f'<svg class="tma-picture" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


class Picture(Drawing):
    """Draw the picture."""

    def run(self) -> list[nodes.Node]:
        """Return the figure."""
        return self.figure(svg())


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("tma-picture", Picture)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
