"""The directive `claims-table`: one row a claim, from the verdicts that the notebooks stored."""

from __future__ import annotations

from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from tma.study.claims import CLAIMS, REPORTED, VERDICTS, Verdict, cells, read, untested

HEADER = ("", "claim", "the paper", *list(cells(untested("C1", "")))[:-1])


def row(verdict: Verdict) -> list[str]:
    """Return the cells of a claim, whose name leads to its chapter; a dash where nothing is."""
    short = verdict.claim if len(verdict.claim) < 4 else "open"
    *told, _ = cells(verdict).values()
    chapter = f"{{doc}}`{short} </notebooks/{verdict.notebook}>`"
    paper = REPORTED[verdict.claim].found if verdict.claim in REPORTED else "–"
    return [chapter, CLAIMS[verdict.claim], paper, *told]


def markdown(verdicts: list[Verdict]) -> list[str]:
    """Return a table for each verdict that there is, as lines of Markdown."""
    groups = dict[str, list[Verdict]]()
    for verdict in sorted(verdicts, key=lambda v: (VERDICTS.index(v.verdict), not v.generalizes)):
        groups.setdefault(cells(verdict)["verdict"], []).append(verdict)
    lines = list[str]()
    for word, own in groups.items():
        rows = [list(HEADER), ["---"] * len(HEADER), *(row(verdict) for verdict in own)]
        lines += ["", f"**{word[0].upper()}{word[1:]}**", ""]
        lines += ["| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in rows]
    return lines


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
