"""The directive `claims-table`: one row a claim, from the verdicts that the notebooks stored."""

from __future__ import annotations

from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from tma.claims import CLAIMS, Verdict, read
from tma.intervals import ends, written

HEADER = ("", "claim", "measured here", "estimate (95 % interval)", "n · seeds", "verdict")


def row(verdict: Verdict) -> list[str]:
    """Return the cells of a claim, whose name leads to its chapter; a dash where nothing is."""
    short = verdict.claim if len(verdict.claim) < 4 else "open"
    number, size = "–", "–"
    if verdict.estimate is not None:
        number = written(verdict.estimate, verdict.low, verdict.high)
        size = f"{verdict.n} · {verdict.seeds}"
    if verdict.others_low is not None and verdict.others_high is not None:
        number += f"; other datasets {ends(verdict.others_low, verdict.others_high)}"
    return [
        f"{{doc}}`{short} </notebooks/{verdict.notebook}>`",
        CLAIMS[verdict.claim],
        verdict.measure,
        number,
        size,
        f"**{verdict.verdict}**" + (", generalizes" if verdict.generalizes else ""),
    ]


def markdown(verdicts: list[Verdict]) -> list[str]:
    """Return the table as lines of Markdown."""
    rows = [list(HEADER), ["---"] * len(HEADER), *(row(verdict) for verdict in verdicts)]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in rows]


class ClaimsTable(SphinxDirective):
    """Show the verdicts of a file, named from the page."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the table; a change of the file makes the page anew."""
        relative, path = self.env.relfn2path(self.arguments[0])
        self.env.note_dependency(relative)
        lines = markdown(read(Path(path)))
        holder = nodes.container(classes=["claims-table"])
        self.state.nested_parse(StringList(lines, source=path), self.content_offset, holder)
        return [holder]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("claims-table", ClaimsTable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
