"""Take the executed notebook and its figure from `out/` into the book, its result into the README.

What depends on the moment or the machine is left out: progress bars, times, the paths papermill
notes. What the run measured stays as it is; a notebook with a stored error is refused.
"""

from __future__ import annotations

import ast
import re
import shutil
import sys
from pathlib import Path
from typing import Any

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


def glued(notebook: nbformat.NotebookNode) -> dict[str, Any]:
    """Return the numbers that the notebook gives to the book, by name."""
    found = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            name = output.get("metadata", {}).get("scrapbook", {}).get("name")
            if name:
                [text] = output.data.values()
                found[name] = ast.literal_eval(text)
    return found


def sentence(values: dict[str, Any]) -> str:
    """Return the study's result in one sentence."""
    return (
        "*Nearest-first ends {nft_gap:+.3f} nats a token from random ({nft_low:+.3f} to "
        "{nft_high:+.3f}), farthest-first {fft_gap:+.3f} ({fft_low:+.3f} to {fft_high:+.3f}; 95 % "
        "intervals over test tasks), after {steps} steps of SmolLM2-135M on {instances} instances: "
        "at this size the claim that nearest-first wins is {verdict}. The loss falls by "
        "{least_fall:.0f} % or more in every order.*"
    ).format(**values)


def with_result(readme: str, result: str) -> str:
    """Return the README's text with the sentence between its two marks replaced."""
    return re.sub(
        r"(<!-- result: [^>]*-->\n).*?(<!-- /result -->)",
        lambda marks: f"{marks[1]}{result}\n{marks[2]}",
        readme,
        flags=re.DOTALL,
    )


def main() -> None:
    """Publish the study's notebook, figure and result."""
    for folder in ("notebooks", "images"):
        (ROOT / "book" / folder).mkdir(exist_ok=True)
    notebook = nbformat.read(ROOT / "out" / f"{NAME}.ipynb", as_version=4)
    nbformat.write(publishable(notebook), ROOT / "book" / "notebooks" / f"{NAME}.ipynb")
    shutil.copy(ROOT / "out" / NAME / "curves.svg", ROOT / "book" / "images" / f"{NAME}.svg")
    readme = ROOT / "README.md"
    text = with_result(readme.read_text(encoding="utf-8"), sentence(glued(notebook)))
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
