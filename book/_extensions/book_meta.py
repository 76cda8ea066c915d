"""What a search engine or a message shows of a page: its description, and the book's card."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

from tma.study.claims import SHORT, Verdict, counts, read
from tma.study.paper import REPORTED

LENGTH = 200
"""Characters of a description."""
CARD = "card.png"
WIDTH, HEIGHT = 1200, 630
"""Pixels of the card, as previews of links want it."""
FILLS = {"supported": "#1f77b4", "not supported": "#c44e52"}
"""Of the marks; all other verdicts have an open one."""


def described(doctree: nodes.document) -> str | None:
    """Return the description that the page's front matter gives."""
    found = [tag for tag in doctree.findall(nodes.meta) if tag.get("name") == "description"]
    return str(found[0]["content"]) if found else None


def opening(doctree: nodes.document) -> str:
    """Return the beginning of the first paragraph; "": there is none."""
    for paragraph in doctree.findall(nodes.paragraph):
        if isinstance(paragraph.parent, nodes.section):
            return textwrap.shorten(paragraph.astext(), LENGTH, placeholder=" …")
    return ""


def tags(told: dict[str, str]) -> str:
    """Return meta elements; Open Graph calls their name "property"."""
    return "".join(
        f'<meta {"property" if name.startswith("og:") else "name"}="{name}" '
        f'content="{escape(text)}" />\n'
        for name, text in told.items()
    )


def put_tags(app: Sphinx, page: str, _template: str, context: dict[str, Any], doctree: Any) -> None:
    """Describe a page; the card has to be named by its whole address, so without one it is not."""
    book, own, words = app.config.html_title, None, ""
    title = app.env.titles[page].astext() if page in app.env.titles else page.capitalize()
    if doctree:
        own = described(doctree)
        words = own or opening(doctree)
    words = words or f"{title}: {book}"
    told = {} if own else {"description": words}
    told |= {"og:type": "website", "og:site_name": book, "og:title": title, "og:description": words}
    if address := app.config.html_baseurl:
        stand = f"Of the paper's {len(REPORTED)} claims, {counts(verdicts(app))}."
        told |= {"og:image": address + CARD, "og:image:alt": stand}
        told |= {"og:image:width": f"{WIDTH}", "og:image:height": f"{HEIGHT}"}
        told |= {"twitter:card": "summary_large_image"}
    context["metatags"] = context.get("metatags", "") + "\n" + tags(told)


def verdicts(app: Sphinx) -> list[Verdict]:
    """Return the published verdicts."""
    return read(Path(app.srcdir) / "claims.json")


def rows(found: Sequence[Verdict]) -> Iterator[str]:
    """Yield the paper's claims in two columns: a mark, the claim in a few words, its verdict."""
    for number, verdict in enumerate(v for v in found if v.claim in REPORTED):
        column, line = divmod(number, 4)
        x, y = 80 + 560 * column, 300 + 84 * line
        mark = f'fill="{FILLS.get(verdict.verdict, "none")}" stroke="#555" stroke-width="3"'
        yield f'<circle cx="{x}" cy="{y - 10}" r="11" {mark}/>'
        name = f"{verdict.claim} {SHORT[verdict.claim]}"
        yield f'<text x="{x + 36}" y="{y}" font-size="32">{escape(name)}</text>'
        yield (
            f'<text x="{x + 36}" y="{y + 31}" font-size="24" fill="#555">'
            f"{escape(verdict.verdict)}</text>"
        )


def card(title: str, found: Sequence[Verdict]) -> str:
    """Return the card as SVG: the book's title above the paper's claims and their verdicts."""
    bold = 'font-size="56" font-weight="bold"'
    lines = "".join(
        f'<text x="68" y="{102 + 66 * number}" {bold}>{escape(line)}</text>'
        for number, line in enumerate(textwrap.wrap(title, 36)[:2])
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="Liberation Sans, Arial, sans-serif" fill="#222">'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
        f'<rect width="{WIDTH}" height="14" fill="#1f77b4"/>'
        f'{lines}<text x="68" y="226" font-size="28">The claims of a study, run again</text>'
        f"{''.join(rows(found))}</svg>"
    )


def write_card(app: Sphinx, error: Exception | None) -> None:
    """Draw the card beside the pages."""
    if error is not None or app.builder.name != "html":
        return
    import vl_convert

    picture = vl_convert.svg_to_png(card(app.config.html_title, verdicts(app)), scale=1)
    (Path(app.outdir) / CARD).write_bytes(picture)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the steps with the build."""
    app.connect("html-page-context", put_tags)
    app.connect("build-finished", write_card)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
