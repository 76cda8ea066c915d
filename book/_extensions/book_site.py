"""What the site says of itself: when its results changed, where its source is, the book as a PDF.

No address is written down here. A workflow on GitHub tells that of the repository in variables of
its own; BOOK_URL is that of the site. Without them there is no such button and no such link.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.config import Config

GITHUB = ("GITHUB_SERVER_URL", "GITHUB_REPOSITORY", "GITHUB_REF_NAME")
COLAB = "https://colab.research.google.com"
# A chapter is edited where it is written, not where its outputs are stored.
EDIT = (
    "{{ github_url }}/{{ github_user }}/{{ github_repo }}/edit/{{ github_version }}/"
    "{% if pagename.startswith('notebooks/') %}{{ pagename }}.md"
    "{% else %}{{ doc_path }}{{ file_name }}{% endif %}"
)
PDF = "tma.pdf"
LINK = f'<p class="book-pdf">The whole book as one file: <a href="{PDF}">{PDF}</a></p>\n'


def updated(runs: Path) -> str:
    """Return the day of the newest published run, and how many runs there are."""
    manifests = [json.loads(path.read_text("utf-8")) for path in runs.glob("*/manifest.json")]
    if not manifests:
        return "No results yet"
    newest = datetime.fromisoformat(max(told["finished"] for told in manifests))
    plural = "" if len(manifests) == 1 else "s"
    date = f"{newest.day} {newest:%B %Y}"
    return f"Results last updated: {date}, {len(manifests):,} run{plural}"


def buttons(told: Mapping[str, str]) -> dict[str, Any]:
    """Return the theme's options for the repository in GitHub's variables; none without them."""
    server, repository, branch = (told.get(name, "") for name in GITHUB)
    if not (server and repository and branch):
        return {}
    options: dict[str, Any] = {
        "repository_url": f"{server}/{repository}",
        "repository_provider": "github",
        "repository_branch": branch,
        "path_to_docs": "book",
        "use_repository_button": True,
        "use_issues_button": True,
        "use_edit_page_button": True,
    }
    if server == "https://github.com":  # Colab opens notebooks from no other server
        options["launch_buttons"] = {"colab_url": COLAB}
    return options


def configure(app: Sphinx, config: Config) -> None:
    """Set the foot of the pages, the buttons, and the address of the site."""
    found = buttons(os.environ)
    footer = f"<p>{updated(Path(app.srcdir) / 'runs')}</p>"
    config.html_theme_options.update(found, extra_footer=footer)
    if found:
        config.html_context.update(edit_page_url_template=EDIT, edit_page_provider_name="GitHub")
    if address := os.environ.get("BOOK_URL"):
        config.html_baseurl = address.rstrip("/") + "/"


def printed(app: Sphinx) -> Path | None:
    """Return the PDF that `make pdf` has left beside this output, if there is one."""
    path = Path(app.outdir).parent / "pdf" / PDF
    return path if app.builder.name == "html" and path.is_file() else None


def link_pdf(
    app: Sphinx, page: str, _template: str, context: dict[str, Any], _doctree: object
) -> None:
    """Put a link at the end of the first page."""
    if page == app.config.root_doc and printed(app):
        context["body"] += LINK


def copy_pdf(app: Sphinx, error: Exception | None) -> None:
    """Put the PDF beside the pages."""
    if error is None and (path := printed(app)):
        shutil.copyfile(path, Path(app.outdir) / PDF)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the steps with the build."""
    app.connect("config-inited", configure)
    app.connect("html-page-context", link_pdf)
    app.connect("build-finished", copy_pdf)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
