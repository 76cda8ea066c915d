"""Take the executed chapters, their verdicts and a figure from `out/published` into the book.

The README gets the answers of the book's first page, and its figure. A picture's alternative text
is the one that its cell made, with the result. What depends on the moment or the
machine is left out (progress bars, times, the paths papermill notes, the name it draws for its
cell), so that the same runs give the same files. What the runs measured stays as it is; a notebook
with a stored error is refused, and then nothing is written.
"""

from __future__ import annotations

import ast
import re
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat

from tma.errors import DataError
from tma.study.claims import Verdict, check_same_run, counts, read

ROOT = Path(__file__).resolve().parent.parent
FIGURE = "04_tma"
"""The notebook whose comparison stands in the README."""
GLUED = "application/papermill.record/text/plain"
FILL: Any = {"subsequent_indent": "  ", "break_long_words": False, "break_on_hyphens": False}
INJECTED = "injected-parameters"
"""Papermill's tag of the cell with the parameters given."""


def names(root: Path) -> list[str]:
    """Return the names of the notebooks, in the sequence of the book."""
    return sorted(path.stem for path in (root / "notebooks").glob("*.ipynb"))


def publishable(notebook: nbformat.NotebookNode, name: str) -> nbformat.NotebookNode:
    """Return the notebook without progress bars, times and paths, its pictures with their text.

    Raises:
        SystemExit: a cell stored an error, or did not run.
    """
    for moment in ("papermill", "widgets"):  # widgets are bars, and would load scripts from outside
        notebook.metadata.pop(moment, None)
    for cell in notebook.cells:
        for moment in ("papermill", "execution"):
            cell.metadata.pop(moment, None)
        if INJECTED in cell.metadata.get("tags", ()):
            cell.id = INJECTED  # papermill draws one each time
        if cell.cell_type != "code":
            continue
        for output in cell.outputs:
            if alt := output.get("metadata", {}).pop("alt", None):
                cell.metadata.mystnb.image.alt = alt
        if any(output.output_type == "error" for output in cell.outputs):
            sys.exit(f"{name}: a cell stored an error; run the notebook again before publishing")
        if not cell.execution_count:
            sys.exit(f"{name}: a cell did not run; run the notebook again before publishing")
        cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    return notebook


def glued(notebook: nbformat.NotebookNode) -> dict[str, str | float]:
    """Return the numbers and words that a notebook's cells gave to the text, by name."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    marked = [output for output in outputs if "scrapbook" in output.get("metadata", {})]
    return {one.metadata.scrapbook.name: ast.literal_eval(one.data[GLUED]) for one in marked}


def resolved(
    text: str, notebooks: Mapping[str, nbformat.NotebookNode], verdicts: Sequence[Verdict]
) -> str:
    """Return a list of the book with the values of its roles in their place, as plain Markdown."""
    found = {f"notebooks/{name}.ipynb": glued(notebook) for name, notebook in notebooks.items()}

    def value(match: re.Match[str]) -> str:
        return format(found[match["notebook"]][match["key"]], match["format"]).replace("-", "−")

    text = text.replace("{claims}`counts`", counts(verdicts))
    role = r"\{glue:text\}`(?P<notebook>[^:`]+)::(?P<key>\w+):(?P<format>[^`]+)`"
    items = re.split(r"^- ", re.sub(role, value, text), flags=re.MULTILINE)[1:]
    return "\n".join(textwrap.fill("- " + " ".join(item.split()), 128, **FILL) for item in items)


def with_result(readme: str, result: str) -> str:
    """Return the README's text with what stands between its two marks replaced."""
    return re.sub(
        r"(<!-- result: [^>]*-->\n).*?(<!-- /result -->)",
        lambda marks: f"{marks[1]}{result}\n{marks[2]}",
        readme,
        flags=re.DOTALL,
    )


def _gives_verdicts(notebook: Path) -> bool:
    """Return whether a notebook judges claims; the one on a user's own data does not."""
    return "saved_verdicts" in notebook.read_text("utf-8")


def publish(root: Path) -> None:
    """Publish all notebooks of a checkout, their verdicts, the figure and the result.

    Raises:
        SystemExit: a notebook was not run, stored an error, or its results are of a later run.
    """
    out, book = root / "out" / "published", root / "book"
    ready = {}
    for name in names(root):
        if not (out / f"{name}.ipynb").is_file():
            sys.exit(f"{name}: {out / name}.ipynb is missing; run `make publish`")
        if _gives_verdicts(root / "notebooks" / f"{name}.ipynb"):
            if not (out / name / "claims.json").is_file():
                claims = out / name / "claims.json"
                sys.exit(f"{name}: {claims} is missing; run `make publish`")
            try:
                check_same_run(out / name)
            except DataError as error:
                sys.exit(f"{name}: {error}")
        ready[name] = publishable(nbformat.read(out / f"{name}.ipynb", as_version=4), name)
    answers = (book / "_include" / "answers.md").read_text("utf-8")
    result = resolved(answers, ready, read(out / "claims.json")).strip()
    for folder in ("notebooks", "images"):
        (book / folder).mkdir(exist_ok=True)
    for name, notebook in ready.items():
        nbformat.write(notebook, book / "notebooks" / f"{name}.ipynb")
    shutil.copy(out / "claims.json", book / "claims.json")
    shutil.copy(out / FIGURE / "curves.svg", book / "images" / f"{FIGURE}.svg")
    readme = root / "README.md"
    readme.write_text(with_result(readme.read_text("utf-8"), result), encoding="utf-8")


if __name__ == "__main__":
    publish(ROOT)
