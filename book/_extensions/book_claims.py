"""The directives `claims-table` and `claims-commands`: each claim's verdict, and how it is made."""

from __future__ import annotations

from pathlib import Path

from book_directives import OfVerdicts
from book_facts import Progress, progress
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from tma.runs.published import INDEX
from tma.study.claims import (
    ARMS,
    CLAIMS,
    VERDICTS,
    Verdict,
    cells,
    commands,
    untested,
)
from tma.study.paper import REPORTED

HEADER = ("", "claim", "the paper", *list(cells(untested("C1", "")))[:-1], "made from")
COMMANDS = ("claim", "runs published", "make them", "read them")


def source(verdict: Verdict) -> str:
    """Return the model, steps and runs of a verdict, and the commands that make it."""
    steps = None if verdict.steps is None else f"{verdict.steps:,} steps"
    told = [part for part in (verdict.model, steps, verdict.runs) if part is not None]
    make, read = commands(verdict.claim)
    return f"{'; '.join(told) or '–'}; `{make}`, then `{read}`"


def row(verdict: Verdict) -> list[str]:
    """Return the cells of a claim, whose name leads to its chapter; a dash where nothing is."""
    short = verdict.claim if len(verdict.claim) < 4 else "open"
    *told, _ = cells(verdict).values()
    chapter = f"{{doc}}`{short} </notebooks/{verdict.notebook}>`"
    paper = REPORTED[verdict.claim].found if verdict.claim in REPORTED else "–"
    return [chapter, CLAIMS[verdict.claim], paper, *told, source(verdict)]


def lines(header: tuple[str, ...], rows: list[list[str]]) -> list[str]:
    """Return a table as lines of Markdown."""
    every = [list(header), ["---"] * len(header), *rows]
    return ["| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in every]


def markdown(verdicts: list[Verdict]) -> list[str]:
    """Return a table for each verdict that there is, as lines of Markdown."""
    groups = dict[str, list[Verdict]]()
    for verdict in sorted(verdicts, key=lambda v: (VERDICTS.index(v.verdict), not v.generalizes)):
        groups.setdefault(cells(verdict)["verdict"], []).append(verdict)
    told = list[str]()
    for word, own in groups.items():
        told += ["", f"**{word[0].upper()}{word[1:]}**", "", *lines(HEADER, [*map(row, own)])]
    return told


def steps_to_make(found: Progress) -> list[str]:
    """Return for each claim its runs and commands, as lines of Markdown; equal ones in one row."""
    groups = dict[tuple[str, str], list[str]]()
    for claim in CLAIMS:
        groups.setdefault(commands(claim), []).append(claim)
    rows = [
        [
            ", ".join(names),
            "{} of {}".format(*found.of(ARMS[names[0]])),
            *(f"`{command}`" for command in pair),
        ]
        for pair, names in groups.items()
    ]
    return lines(COMMANDS, rows)


def parsed(directive: SphinxDirective, told: list[str], *classes: str) -> list[nodes.Node]:
    """Return lines of Markdown as they are in a page."""
    holder = nodes.container(classes=[*classes])
    directive.state.nested_parse(StringList(told, source=directive.env.docname), 0, holder)
    return [holder]


class ClaimsTable(OfVerdicts):
    """Show the verdicts of a file, named from the page."""

    def run(self) -> list[nodes.Node]:
        """Return a table a verdict, cards on a phone."""
        return parsed(self, markdown(self.verdicts()), "claims-table")


class ClaimsCommands(SphinxDirective):
    """Show how the numbers of each claim are made."""

    def run(self) -> list[nodes.Node]:
        """Return the table; a new run makes the page anew."""
        self.env.note_dependency(f"runs/{INDEX}")
        return parsed(self, steps_to_make(progress(Path(self.env.srcdir) / "runs")))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directives."""
    app.add_directive("claims-table", ClaimsTable)
    app.add_directive("claims-commands", ClaimsCommands)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
