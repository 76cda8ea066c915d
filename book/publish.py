"""Take the executed notebooks, their verdicts and a figure from `out/` into the book.

The README gets the verdicts in a sentence, and its figure. What depends on the moment or the
machine is left out (progress bars, times, the paths papermill notes, the name it draws for its
cell), so that the same runs give the same files. What the runs measured stays as it is; a notebook
with a stored error is refused, and then nothing is written.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import nbformat

from tma.errors import DataError
from tma.study.claims import Verdict, answers, check_same_run, read

ROOT = Path(__file__).resolve().parent.parent
FIGURE = "04_tma"
"""The notebook whose comparison stands in the README."""
INJECTED = "injected-parameters"
"""Papermill's tag of the cell with the parameters given."""


def names(root: Path) -> list[str]:
    """Return the names of the notebooks, in the sequence of the book."""
    return sorted(path.stem for path in (root / "notebooks").glob("*.ipynb"))


def publishable(notebook: nbformat.NotebookNode, name: str) -> nbformat.NotebookNode:
    """Return the notebook without progress bars, times and paths.

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
        if any(output.output_type == "error" for output in cell.outputs):
            sys.exit(f"{name}: a cell stored an error; run the notebook again before publishing")
        if not cell.execution_count:
            sys.exit(f"{name}: a cell did not run; run the notebook again before publishing")
        cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    return notebook


def sentence(verdicts: Sequence[Verdict]) -> str:
    """Return the results for the README, with a link to the table."""
    first, *others = answers(verdicts)
    return f"*{first.removesuffix('.')} ([table](book/claims.md)). {' '.join(others)}*"


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
    out, book = root / "out", root / "book"
    ready = {}
    for name in names(root):
        if not (out / f"{name}.ipynb").is_file():
            sys.exit(f"{name}: out/{name}.ipynb is missing; run `make notebooks` first")
        if _gives_verdicts(root / "notebooks" / f"{name}.ipynb"):
            if not (out / name / "claims.json").is_file():
                claims = out / name / "claims.json"
                sys.exit(f"{name}: {claims} is missing; run `make notebooks` first")
            try:
                check_same_run(out / name)
            except DataError as error:
                sys.exit(f"{name}: {error}")
        ready[name] = publishable(nbformat.read(out / f"{name}.ipynb", as_version=4), name)
    result = sentence(read(out / "claims.json"))
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
