"""The roles `verdict` and `claims`: what prose says of a claim is held against the stored verdict.

``{verdict}`C4: inconclusive` `` shows *inconclusive*, and is a warning, which fails the build, where
`claims.json` says otherwise. ``{claims}`counts` `` shows how the paper's claims stand.
"""

from __future__ import annotations

from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxRole

from tma.study.claims import Verdict, counts, read

FILE = "claims.json"
log = logging.getLogger(__name__)


class _OfVerdicts(SphinxRole):
    def verdicts(self) -> dict[str, Verdict]:
        """Return the verdicts by claim; a change of them makes the page anew."""
        self.env.note_dependency(FILE)
        return {verdict.claim: verdict for verdict in read(Path(self.env.srcdir, FILE))}


class Said(_OfVerdicts):
    """A verdict, as the text around it says it."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Return the word, emphasized; warn where it is not the stored one."""
        claim, _, said = self.text.partition(": ")
        known = self.verdicts().get(claim)
        if known is None or known.verdict != said:
            is_now = "unknown" if known is None else known.verdict
            text = "the page says that %s is %r, and it is %r: rewrite the sentence"
            log.warning(text, claim, said, is_now, location=self.get_location())
        return [nodes.emphasis(said, said)], []


class Counts(_OfVerdicts):
    """How many of the paper's claims have which verdict."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Return them in words."""
        return [nodes.Text(counts(list(self.verdicts().values())))], []


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the roles."""
    app.add_role("verdict", Said())
    app.add_role("claims", Counts())
    return {"parallel_read_safe": True, "parallel_write_safe": True}
