"""The role `fact`: numbers about the study, from its plan and the published runs.

`` {fact}`runs-made` `` is how many of the planned runs `book/runs` holds, and
`` {fact}`runs-made-1b` `` how many of arm 1b. What only the runs know, such as the test instances,
is read from those of RT in arm 1, which test every fold once.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxRole

from tma.config import SCALES
from tma.runs.published import INDEX
from tma.runs.store import Run, portable, runs_in
from tma.store import canonical_json
from tma.study import arms

log = logging.getLogger(__name__)

BASE = SCALES["study"]
NUMBERS = {
    "seeds": BASE.seeds,
    "seeds-repeated": 2 * (BASE.folds or 0),
    "seeds-fewer": BASE.fewer_seeds,
    "steps": BASE.steps,
    "instances-a-step": BASE.batch_size,
    "instances": BASE.steps * BASE.batch_size,
    "pool": BASE.pool or 0,
    "tests-a-fold": BASE.test_limit,
}
"""Facts that the scale sets."""


class Progress(NamedTuple):
    """The plan, and how much of it is published."""

    planned: Counter[str]
    """Runs by arm, in the sequence of the plan."""
    made: Counter[str]
    runs: Mapping[tuple[str, str], list[Run]]
    """Published runs by arm and label."""

    def of(self, names: str) -> tuple[int, int]:
        """Return how many runs of arms, such as "1,1b", are published and how many planned."""
        own = [arm.name for arm in arms.chosen(names)]
        return sum(self.made[name] for name in own), sum(self.planned[name] for name in own)


def _settings(config: Mapping[str, Any]) -> str:
    return canonical_json(portable(config))


@cache
def progress(folder: Path) -> Progress:
    """Return what is planned, and what of it a folder of published runs holds."""
    plan = {_settings(config.to_json()): (arm.name, label) for arm, label, config in arms.plan()}
    found = dict[tuple[str, str], list[Run]]()
    for run in runs_in(folder):
        if place := plan.get(_settings(run.config.to_json())):
            found.setdefault(place, []).append(run)
    made = Counter({name: 0 for name, _ in plan.values()})
    for (name, _), own in found.items():
        made[name] += len(own)
    return Progress(Counter(name for name, _ in plan.values()), made, found)


def _tested(runs: list[Run]) -> dict[str, int]:
    """Return how many instances, tasks and source datasets runs were tested on."""
    import pandas as pd

    names = {"test-instances": "id", "tasks": "task", "sources": "source"}
    tables = [
        pd.read_parquet(run.folder / "losses.parquet", columns=[*names.values()]) for run in runs
    ]
    rows = pd.concat([pd.DataFrame(columns=[*names.values()]), *tables])
    return {name: rows[column].nunique() for name, column in names.items()}


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names) or "none"


def _arms(found: Progress) -> Iterator[tuple[str, str]]:
    """Yield how far each arm is, and which ones are complete, begun or not begun."""
    kinds: dict[str, list[str]] = {"complete": [], "begun": [], "not-begun": []}
    for name, planned in found.planned.items():
        made = found.made[name]
        yield f"runs-made-{name}", f"{made:,}"
        yield f"runs-planned-{name}", f"{planned:,}"
        kind = "complete" if made == planned else "begun" if made else "not-begun"
        kinds[kind].append(f"{name} ({made} of {planned})" if kind == "begun" else name)
    for kind, names in kinds.items():
        yield f"arms-{kind}", _listed(names)


@cache
def facts(folder: Path) -> dict[str, str]:
    """Return every fact about a folder of published runs, by name."""
    found = progress(folder)
    numbers = NUMBERS | _tested(found.runs.get(("1", "tma_rt"), []))
    numbers |= {"runs-made": found.made.total(), "runs-planned": found.planned.total()}
    told = {name: f"{value:,}" for name, value in numbers.items()}
    for preset, model in BASE.models.items():
        if size := re.search(r"-([\d.]+)(m|b)\b", model.lower()):
            unit = {"m": "million", "b": "billion"}[size[2]]
            told[f"parameters-{preset}"] = f"{size[1]} {unit}"
    dates = [run.manifest["finished"][:10] for own in found.runs.values() for run in own]
    return told | dict(_arms(found)) | {"newest-run": max(dates, default="none")}


class Fact(SphinxRole):
    """Write a fact by its name; an unknown name is a warning of the build."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Return the fact as text; a new run makes the page anew."""
        known = facts(Path(self.env.srcdir) / "runs")
        self.env.note_dependency(f"runs/{INDEX}")
        if self.text not in known:
            text = "no fact is named %r; known: %s"
            log.warning(text, self.text, ", ".join(known), location=self.get_location())
        return [nodes.Text(known.get(self.text, self.text))], []


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the role."""
    app.add_role("fact", Fact())
    return {"parallel_read_safe": True, "parallel_write_safe": True}
