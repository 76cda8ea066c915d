"""What all pages need: no scripts that fail offline (thebe, doubled entries), a proper minus."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx


def _name(script: object) -> str:
    return str(getattr(script, "filename", script))


def keep_needed_scripts(
    _app: Sphinx, _page: str, _template: str, context: dict[str, Any], _doctree: object
) -> None:
    """Drop thebe's scripts and every later entry of a script that is already on the page."""
    kept: dict[str, object] = {}
    for script in context.get("script_files", []):
        name = _name(script)
        if "thebe" not in name:
            kept.setdefault(name or str(id(script)), script)
    context["script_files"] = list(kept.values())


def set_minus(_app: Sphinx, doctree: nodes.document, _page: str) -> None:
    """Give numbers that a notebook glued the minus that figures and tables have."""
    for number in doctree.findall(nodes.inline):
        if "pasted-text" in number["classes"]:
            text = number.astext().replace("-", "−")
            number.children = [nodes.Text(text)]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register both; the filter comes after every extension that adds scripts."""
    app.connect("doctree-resolved", set_minus)
    app.connect("html-page-context", keep_needed_scripts, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
