"""Take the executed notebook and its figure from `out/` into the book.

What depends on the moment or the machine is left out: progress bars, times, the paths papermill
notes. What the run measured stays as it is; a notebook with a stored error is refused.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
NAME = "04_tma"


def publishable(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Return the notebook without progress bars, times and paths.

    Raises:
        SystemExit: a cell stored an error.
    """
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        for moment in ("papermill", "execution"):
            cell.metadata.pop(moment, None)
        if cell.cell_type != "code":
            continue
        if any(output.output_type == "error" for output in cell.outputs):
            sys.exit(f"{NAME}: a cell stored an error; run the study again before publishing")
        cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    return notebook


def main() -> None:
    """Publish the study's notebook and figure."""
    notebook = nbformat.read(ROOT / "out" / f"{NAME}.ipynb", as_version=4)
    nbformat.write(publishable(notebook), ROOT / "book" / "notebooks" / f"{NAME}.ipynb")
    shutil.copy(ROOT / "out" / NAME / "curves.svg", ROOT / "book" / "images" / f"{NAME}.svg")


if __name__ == "__main__":
    main()
