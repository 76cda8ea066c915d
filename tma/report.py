"""What a notebook says about itself and leaves behind: description, numbers for the text, files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from tma.config import SCALES, RunConfig, StudyConfig
from tma.data import texts
from tma.runs import VERSIONS, Run, hardware
from tma.store import new_file

if TYPE_CHECKING:
    from datasets import Dataset
    from matplotlib.figure import Figure


def description(study: StudyConfig, config: RunConfig, train: Dataset, test: Dataset) -> str:
    """Return in words what is run, on which data and on what hardware; Markdown."""
    tasks = [len({task for task in part["task"] if task}) for part in (train, test)]
    words = sum(len(text.split()) for text in texts(train)) / max(1, len(train))
    return (
        f"Scale **{study.scale}** ({SCALES[study.scale].purpose}). Model **{config.model}**, all "
        f"parameters trained. Data **{config.dataset}**: {len(train):,} training instances from "
        f"{tasks[0]} tasks, {words:.0f} words each on average, and {len(test):,} test instances "
        f"from {tasks[1]} other tasks. {study.seeds} seed(s). Hardware: {hardware()}."
    )


def provenance(runs: Sequence[Run]) -> pd.DataFrame:
    """Return settings, fingerprints and versions of runs as rows of name and value.

    A setting in which the runs differ is left out here; it is what the study varies.
    """
    manifests = [run.manifest for run in runs]
    shared: dict[str, Any] = {}
    for group in ("config", "inputs", "versions"):
        for name, value in manifests[0][group].items():
            if all(manifest[group].get(name) == value for manifest in manifests):
                shared[name if group == "config" else f"{group}: {name}"] = value
    shared |= {"hardware": manifests[0]["hardware"], "python": manifests[0]["python"]}
    shared["training seconds"] = sum(manifest["seconds"] for manifest in manifests)
    assert set(VERSIONS) <= {n.removeprefix("versions: ") for n in shared} or len(manifests) > 1
    return pd.DataFrame({"value": {name: str(value) for name, value in shared.items()}})


def save(study: StudyConfig, figure: Figure, table: pd.DataFrame) -> None:
    """Write the figure (curves.svg, curves.png) and the table (summary.csv, summary.txt)."""
    for suffix in ("svg", "png"):
        with new_file(study.out / f"curves.{suffix}") as draft:
            # A fixed date and id seed keep equal results equal byte for byte.
            fixed = {"Date": None} if suffix == "svg" else None
            figure.savefig(draft, dpi=150, metadata=fixed)
    with new_file(study.out / "summary.csv") as draft:
        table.to_csv(draft)
    with new_file(study.out / "summary.txt") as draft:
        draft.write_text(table.to_string(float_format="%.3f") + "\n", encoding="utf-8")


def shown(folder: Path) -> str:
    """Return a folder relative to the working folder, as a reader would type it."""
    return os.path.relpath(folder)


def glue(**values: str | float) -> None:
    """Give numbers to the book under their names, so that none is typed into its text.

    The book's text shows them with the glue role of MyST-NB, whose record format this is; nothing
    of the book's tools is needed to run a notebook.
    """
    from IPython.core import display_functions

    publish: Any = display_functions.publish_display_data
    for name, value in values.items():
        kind = "application/papermill.record/text/plain"
        mark = {"scrapbook": {"name": name, "mime_prefix": "application/papermill.record/"}}
        publish({kind: repr(value)}, metadata=mark)
