"""Interactive charts: the picture stays for readers without script, the chart goes over it.

A notebook stores a chart as Vega-Lite JSON beside an SVG. The page shows the SVG, with its caption
and alt text; the JSON is put at the end of the page, and a script of the site's own draws the chart
in the picture's place. The script is bundled from the installed chart library when the build ends,
and only pages with a chart load it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.util import osutil

from tma.study.interactive import LIBRARY, VEGALITE

SCRIPT = "_charts/charts.js"
"""The script's place in the site: not under `_static`, whose scripts are put on every page."""


@dataclass(frozen=True)
class Chart:
    """One chart of a page."""

    image: str
    """File name that MyST-NB gives the picture: the digest of its text."""
    spec: str
    """The chart, as JSON."""


def _joined(text: str | list[str]) -> str:
    return text if isinstance(text, str) else "".join(text)


def _outputs(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the data of every output that holds a chart and its picture."""
    found = [o.get("data", {}) for c in notebook["cells"] for o in c.get("outputs", [])]
    return [data for data in found if VEGALITE in data and "image/svg+xml" in data]


def charts(notebook: dict[str, Any]) -> list[Chart]:
    """Return the charts of a notebook, in its sequence."""
    made = []
    for data in _outputs(notebook):
        lines = _joined(data["image/svg+xml"]).splitlines()
        digest = hashlib.sha256("\n".join(lines).encode("utf-8")).hexdigest()
        made.append(Chart(f"{digest}.svg", json.dumps(data[VEGALITE], sort_keys=True)))
    return made


def leave_pictures(_app: Sphinx, _page: str, source: list[str]) -> None:
    """Take the charts out of a notebook that is read: MyST-NB warns of outputs it cannot show."""
    if VEGALITE not in source[0]:
        return
    notebook = json.loads(source[0])
    for data in _outputs(notebook):
        del data[VEGALITE]
    source[0] = json.dumps(notebook)


def put_charts(
    app: Sphinx, page: str, _template: str, context: dict[str, Any], doctree: object
) -> None:
    """Put the charts of a page at its end, and the script that draws them."""
    path = Path(app.env.doc2path(page)) if doctree else Path()
    if path.suffix != ".ipynb":
        return
    found = charts(json.loads(path.read_text(encoding="utf-8")))
    if not found:
        return
    # "</" would end the script element early; JSON may write the slash with a backslash.
    data = [
        f'<script type="application/json" class="tma-chart" data-image="{chart.image}">'
        + chart.spec.replace("</", "<\\/")
        + "</script>"
        for chart in found
    ]
    address = osutil.relative_uri(app.builder.get_target_uri(page), SCRIPT)
    context["body"] += "\n".join([*data, f'<script defer src="{address}"></script>'])
    app.env.metadata[page]["tma_charts"] = len(found)


def write_script(app: Sphinx, exception: Exception | None) -> None:
    """Write the chart library and what calls it as one file, where a page of the site needs it."""
    needed = any("tma_charts" in told for told in app.env.metadata.values())
    if exception or not needed:
        return
    import vl_convert

    call = Path(__file__).with_name("charts.js").read_text(encoding="utf-8")
    bundle = vl_convert.javascript_bundle(call, vl_version=LIBRARY)
    target = Path(app.outdir) / SCRIPT
    target.parent.mkdir(parents=True, exist_ok=True)
    # Without the wrapper the library's names would be those of the whole page.
    target.write_text(f"(function () {{\n{bundle}\n}})();\n", encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the steps with the build."""
    app.connect("source-read", leave_pictures)
    app.connect("html-page-context", put_charts)
    app.connect("build-finished", write_script)
    return {"parallel_read_safe": True, "parallel_write_safe": False}
