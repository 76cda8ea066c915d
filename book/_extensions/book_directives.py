"""What directives of this book share: verdicts read from a file, and figures with a caption."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from tma.study.claims import Verdict, read


class OfVerdicts(SphinxDirective):
    """A directive whose argument is a file of verdicts."""

    required_arguments = 1

    def verdicts(self) -> list[Verdict]:
        """Return the verdicts of the file named; a change of it makes the page anew."""
        relative, path = self.env.relfn2path(self.arguments[0])
        self.env.note_dependency(relative)
        return read(Path(path))


class Drawing(SphinxDirective):
    """A directive that draws a figure, whose content is the caption."""

    has_content = True
    option_spec: ClassVar = {"name": str}

    def figure(self, svg: str) -> list[nodes.Node]:
        """Return a figure that can be referred to by its name."""
        figure = nodes.figure("", nodes.raw("", svg, format="html"))
        caption = nodes.caption()
        children, _ = self.state.inline_text(" ".join(self.content), self.lineno)
        caption += children
        figure += caption
        self.add_name(figure)
        return [figure]
