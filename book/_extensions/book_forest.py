"""The directive `forest-plot`: the verdicts of a file, drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from book_directives import Drawing, OfVerdicts
from docutils import nodes
from sphinx.application import Sphinx

from tma.study.claims import SHORT, Verdict
from tma.study.paper import REPORTED

POWER = (1.96 + 0.84) / 1.96
"""Half-widths of a 95% interval that an effect needs to be detected with 80% power."""
LABELS, PLOT, ROW = 190, 370, 34
"""Width of the labels and of the axis, and height of a row."""
CORRELATED = ("C1", "C2", "C3", "C8")
GROUPS = {
    "shares and correlations": CORRELATED,
    "nats a token": tuple(claim for claim in SHORT if claim not in CORRELATED),
}


def shown(verdict: Verdict) -> tuple[float, float, float] | None:
    """Return estimate and interval, to the right where the claim holds; None: no number."""
    low, high = verdict.low, verdict.high
    if low is None or high is None:  # that for these tasks waits for more seeds
        low, high = verdict.others_low, verdict.others_high
    if verdict.estimate is None or low is None or high is None:
        return None
    if verdict.side == "negative":
        return -verdict.estimate, -high, -low
    return verdict.estimate, low, high


def paper(verdict: Verdict) -> float | None:
    """Return the paper's effect, to the right where the claim holds."""
    effect = REPORTED[verdict.claim].effect if verdict.claim in REPORTED else None
    return None if effect is None else abs(effect)


def reach(verdicts: Sequence[Verdict]) -> float:
    """Return how far an axis goes to either side."""
    found = [one for one in map(shown, verdicts) if one]
    marks = [mark for mark in map(paper, verdicts) if mark]
    return 1.05 * max((abs(x) for x in [*marks, *(x for one in found for x in one)]), default=1.0)


def row(verdict: Verdict, y: float, scale: float) -> Iterator[str]:
    """Yield a claim's label, interval, estimate, and what the paper reports."""
    name = verdict.claim if len(verdict.claim) < 4 else ""
    label = f'<tspan class="name">{name}</tspan> {SHORT[verdict.claim]}'
    yield f'<text x="0" y="{y + 5}">{label}</text>'
    middle = LABELS + PLOT / 2
    found = shown(verdict)
    if found is None:
        yield f'<text class="none" x="{LABELS + 8}" y="{y + 5}">{verdict.verdict}</text>'
        return
    at, low, high = (middle + scale * x for x in found)
    wide = POWER * (high - low)
    left = middle - wide / 2
    yield f'<rect class="power" x="{left:.1f}" y="{y - 9}" width="{wide:.1f}" height="18"/>'
    yield f'<line class="interval" x1="{low:.1f}" y1="{y}" x2="{high:.1f}" y2="{y}"/>'
    yield f'<circle class="{verdict.verdict.replace(" ", "-")}" cx="{at:.1f}" cy="{y}" r="6"/>'
    if (mark := paper(verdict)) is not None:
        x = middle + scale * mark
        yield f'<path class="paper" d="M{x:.1f} {y - 8}l6 8l-6 8l-6 -8z"/>'


def axis(unit: str, y: float, top: float, limit: float, scale: float) -> Iterator[str]:
    """Yield the zero line, the ends of an axis and its unit."""
    middle = LABELS + PLOT / 2
    yield f'<line class="zero" x1="{middle}" y1="{top}" x2="{middle}" y2="{y}"/>'
    step = next(s for s in (2, 1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01) if s < limit)
    for value in (-step, 0, step):
        x = middle + scale * value
        yield f'<text class="tick" x="{x:.1f}" y="{y + 16}">{value:+g}</text>'.replace(
            "+0<", "0<"
        ).replace(">-", ">−")
    yield f'<text class="unit" x="{LABELS + PLOT}" y="{y + 34}">{unit}, as claimed →</text>'


def svg(verdicts: Sequence[Verdict]) -> str:
    """Return the forest plot, with the verdicts as its label."""
    parts, y = list[str](), 20.0
    by = {verdict.claim: verdict for verdict in verdicts}
    for unit, names in GROUPS.items():
        own, top = [by[name] for name in names], y - 14
        limit = reach(own)
        scale = PLOT / 2 / limit
        for verdict in own:
            parts += ["<g>", *row(verdict, y, scale), "</g>"]
            y += ROW
        parts += axis(unit, y - 12, top, limit, scale)
        y += 52
    told = "; ".join(f"{SHORT[v.claim]}: {v.verdict}" for v in verdicts)
    return (
        f'<svg class="forest" viewBox="0 0 {LABELS + PLOT} {y - 20:.0f}" role="img" '
        f'aria-label="{escape(f"Verdicts on the claims. {told}.")}">{"".join(parts)}</svg>'
    )


class Forest(OfVerdicts, Drawing):
    """Draw the results."""

    def run(self) -> list[nodes.Node]:
        """Return the figure."""
        return self.figure(svg(self.verdicts()))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("forest-plot", Forest)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
