"""Keep pages free of scripts that fail offline: thebe (never used here) and doubled entries."""

from __future__ import annotations

from typing import Any

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


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the filter, after every extension that adds scripts."""
    app.connect("html-page-context", keep_needed_scripts, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
