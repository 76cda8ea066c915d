"""An audit as a folder: one self-contained page, its numbers, and its lists as JSONL."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import rc_context
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tma.arrange.audit import Audit
from tma.arrange.spec import Floats
from tma.store import result_folder, write_json
from tma.study.figures import BLUE, STYLES, drawing

if TYPE_CHECKING:
    import pandas as pd

LISTS = {
    "first_rows": "What is trained on first, with the nearest test row.",
    "leaks": "Training rows that hold a test text: the loss on that test row says little.",
    "duplicates": "Rows of the order that are like an earlier one.",
    "badly_covered": "Test rows with the lowest similarity: the order has little like them.",
    "truncated": "What is cut off is neither embedded nor trained on.",
    "dropped": "Rows that were not read; the order has none of them.",
}
"""Table of an audit → what it means."""
TEXTS = {"text": "training", "test_text": "test", "of_text": "the earlier row"}
WORDS = {
    "position": "",
    "place": "",
    "test_place": "test:",
    "of_place": "like",
    "set": "",
    "kind": "",
}
"""Column → what it is called on the page, where not by its name."""
SHOWN, BEGINNING = 20, 400
"""Most entries of a list on the page, and most characters of a text; the JSONL files have all."""
GROUPS, BINS = 12, 40
"""Tasks, and parts of the order, in a figure."""
ORANGE = STYLES["tma_fft"].colour
COLOURS = {"#262626": "currentColor", BLUE.lower(): "var(--blue)", ORANGE.lower(): "var(--orange)"}
"""Colour of a figure, the first that of text and axes → that of the page, light or dark."""
SIZE, LABEL = (5.2, 2.9), 18
"""Inches of a figure: on a narrow screen it is hardly scaled. Most characters of a label."""
STYLE = """
:root{color-scheme:light dark;--ink:#1d1d1f;--quiet:#5c6066;--paper:#fff;--line:#d9dce0;
--warn:#fff4d6;--blue:#0072b2;--orange:#c65500}
@media(prefers-color-scheme:dark){:root{--ink:#e6e7e9;--quiet:#a2a7ae;--paper:#17191c;
--line:#3a3e44;--warn:#3d3213;--blue:#4aa8e8;--orange:#f28e5c}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:76rem;padding:1rem;color:var(--ink);background:var(--paper);
font:16px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.6rem;line-height:1.2;margin:.5rem 0}h2{font-size:1.2rem;margin:2rem 0 .25rem}
p{margin:.25rem 0 .75rem}.quiet{color:var(--quiet)}
.warn{background:var(--warn);padding:.6rem .8rem;border-radius:6px}
.two{display:grid;gap:1rem 2rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,25rem),1fr))}
dl{display:grid;grid-template-columns:fit-content(42%) 1fr;margin:1rem 0}
dt,dd{margin:0;padding:.3rem .6rem .3rem 0;border-bottom:1px solid var(--line)}
dt{color:var(--quiet)}figure{margin:0}figcaption{font-size:.9rem;color:var(--quiet)}
svg{width:100%;height:auto;max-width:36rem}
details{border-bottom:1px solid var(--line);padding:.35rem 0}summary{cursor:pointer}
details p{margin:.4rem 0 0 1rem;font-size:.85rem}
pre{white-space:pre-wrap;font:.85rem/1.45 ui-monospace,monospace;margin:0 0 .4rem 1rem;
unicode-bidi:plaintext}
a{color:inherit}
"""


def save_audit(audit: Audit, folder: Path | str) -> None:
    """Write an audit as a new folder.

    `report.html` is one page that needs nothing else; `summary.json` has the figures, and
    `first_rows`, `leaks`, `duplicates`, `badly_covered`, `truncated` and `dropped` as `.jsonl` the
    lists, with all of their texts.

    Raises:
        ParameterError: there is such a folder.
        StateError: it cannot be written.
    """
    with result_folder(Path(folder), "folder") as draft:
        write_audit(audit, draft)


def write_audit(audit: Audit, folder: Path) -> None:
    """Write the files of an audit into a folder that is there."""
    for name in LISTS:
        lines = (json.dumps(row, ensure_ascii=False) for row in _records(getattr(audit, name)))
        (folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines), "utf-8")
    write_json(folder / "summary.json", audit.summary())
    (folder / "report.html").write_text("".join(_page(audit)), "utf-8")


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return lines as JSON values: what is missing as null."""
    found = table.astype(object).where(table.notna(), None)
    names, rows = found.columns.tolist(), found.itertuples(index=False, name=None)
    return [dict(zip(names, row, strict=True)) for row in rows]


def _page(audit: Audit) -> Iterator[str]:
    title = f"Audit of the order {audit.method.name}"
    yield '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width,initial-scale=1">'
    yield f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>"
    yield f"<h1>{escape(title)}</h1>"
    yield from (f'<p class="warn">{escape(text)}</p>' for text in audit.warnings)
    pairs = (f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in audit.table())
    yield f"<dl>{''.join(pairs)}</dl>"
    if len(audit.order):
        yield f'<div class="two">{"".join(_figures(audit))}</div>'
    for name, meaning in LISTS.items():
        yield from _section(name, meaning, getattr(audit, name))
    yield "</main></body></html>\n"


def _section(name: str, meaning: str, table: pd.DataFrame) -> Iterator[str]:
    heading = name.replace("_", " ").capitalize()
    yield f"<section><h2>{heading}: {len(table):,}</h2>"
    rest = f" The first {SHOWN} of them; the file has all." if len(table) > SHOWN else ""
    file = f'<a href="{name}.jsonl">{name}.jsonl</a>'
    yield f'<p class="quiet">{meaning}{rest} {file}</p>'
    for row in _records(table.head(SHOWN)):
        shown = "".join(
            f'<p class="quiet">{of}</p><pre dir="auto">{_beginning(row[key])}</pre>'
            for key, of in TEXTS.items()
            if row.get(key)
        )
        told = escape(" · ".join(_told(row)))
        yield f"<details><summary>{told}</summary>{shown}</details>" if shown else f"<p>{told}</p>"
    yield "</section>"


def _told(row: dict[str, Any]) -> Iterator[str]:
    """Yield the cells of a line in words, without ids, and without numbers of rows with places."""
    for key, value in row.items():
        place = key.removesuffix("row") + "place"
        if value is None or key.endswith("id") or key in TEXTS or (key != place and row.get(place)):
            continue
        shown = f"{value:.3f}" if isinstance(value, float) else str(value)
        yield f"{WORDS.get(key, key.replace('_', ' '))} {shown}".strip()


def _beginning(text: str) -> str:
    return escape(text[:BEGINNING] + "…" * (len(text) > BEGINNING))


def _figures(audit: Audit) -> Iterator[str]:
    part = "a fortieth" if len(audit.order) >= BINS else "a part"
    yield _drawn(
        "coverage",
        _histogram(audit.coverage),
        "How near the order comes to each test row: cosine similarity of its nearest row.",
    )
    yield _drawn(
        "course",
        similarity_figure(audit.similarity),
        "How near the rows of the order are to their nearest test row, from its start to its end: "
        f"mean of {part} of the order, the band holds its middle half.",
    )
    if audit.near_sizes or audit.far_sizes:
        yield _drawn(
            "rounds",
            _rounds(audit.near_sizes, audit.far_sizes),
            "Rows that each round takes; a test row takes one of them at most.",
        )
    if any(audit.groups):
        yield _drawn(
            "groups",
            _places(audit.groups),
            f"Where the largest tasks stand, at most {GROUPS}: the stronger the colour, the more "
            f"of a task's rows are in {part} of the order; on top what comes early.",
        )


def _drawn(name: str, figure: Figure, caption: str) -> str:
    """Return a figure as inline SVG, whose text and axes have the colour of the page's text."""
    stream = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    for drawn, shown in COLOURS.items():
        svg = svg.replace(drawn, shown)
    # An id stands once in a page; matplotlib's begin anew in each figure.
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    named = f'<svg role="img" aria-label="{escape(caption)}"'
    svg = svg.replace("<svg", named, 1)
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def _histogram(coverage: Floats) -> Figure:
    with drawing(1, 1, *SIZE) as (figure, grid):
        axes = grid[0, 0]
        axes.hist(
            coverage, bins=min(BINS, max(5, len(coverage) // 10)), color=BLUE, rwidth=0.92, lw=0
        )
        axes.axvline(np.median(coverage), color=ORANGE, linewidth=2)
        label = {"rotation": 90, "va": "top", "ha": "right", "color": ORANGE}
        axes.text(np.median(coverage), axes.get_ylim()[1], "median ", **label)
        axes.set(xlabel="cosine similarity", ylabel="test rows")
    return figure


def similarity_figure(similarity: Floats) -> Figure:
    """Return how similar each row of an order, (k,), is to its nearest test row, by its place."""
    parts = [part for part in np.array_split(similarity, BINS) if len(part)]
    middle = np.cumsum([len(part) for part in parts]) - np.array([len(p) / 2 for p in parts])
    low, high = np.array([np.quantile(part, (0.25, 0.75)) for part in parts]).T
    with drawing(1, 1, *SIZE) as (figure, grid):
        axes = grid[0, 0]
        axes.fill_between(middle, low, high, color=BLUE, alpha=0.25, linewidth=0)
        axes.plot(middle, [part.mean() for part in parts], color=BLUE, linewidth=2)
        axes.set(xlabel="place in the order", ylabel="cosine similarity")
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    return figure


def _rounds(near: Sequence[int], far: Sequence[int]) -> Figure:
    with drawing(1, 1, *SIZE) as (figure, grid):
        axes = grid[0, 0]
        for sizes, colour, label in ((near, BLUE, "nearest"), (far, ORANGE, "farthest")):
            if sizes:
                dot = {"marker": "o" if len(sizes) < BINS else None, "markersize": 4}
                axes.plot(np.arange(1, len(sizes) + 1), sizes, color=colour, label=label, **dot)
        axes.set(xlabel="round", ylabel="rows", ylim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.legend(frameon=False)
    return figure


def _places(groups: Sequence[str | None]) -> Figure:
    largest = [name for name, _ in Counter(filter(None, groups)).most_common(GROUPS)]
    bins = min(BINS, len(groups))
    part = np.arange(len(groups)) * bins // len(groups)
    named = np.array([name or "" for name in groups])
    largest.sort(key=lambda name: np.flatnonzero(named == name).mean())  # earliest on top
    share = np.array([np.bincount(part[named == name], minlength=bins) for name in largest], float)
    share /= share.sum(axis=1, keepdims=True)
    clear = LinearSegmentedColormap.from_list("clear", [(*to_rgb(BLUE), a) for a in (0.04, 1)])
    with drawing(1, 1, SIZE[0], 0.9 + 0.26 * len(largest)) as (figure, grid):
        axes = grid[0, 0]
        edges = np.linspace(0, len(groups), bins + 1), np.arange(len(largest) + 1)
        axes.pcolormesh(*edges, share, cmap=clear, vmin=0)
        shown = [name if len(name) <= LABEL else f"{name[: LABEL - 1]}…" for name in largest]
        axes.set_yticks(
            np.arange(len(largest)) + 0.5, [label.replace("$", r"\$") for label in shown]
        )
        axes.set(xlabel="place in the order", ylim=(len(largest), 0))
        axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
    return figure
