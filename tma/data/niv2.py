"""Super-NaturalInstructions: task files of a checkout, or rows of the hub's copy → instances.

A prompt is the task's definition, two solved examples, and the input, as in the authors' code: a
text that does not end with punctuation gets a full stop, and an example that would make the prompt
too long is left out with those after it. The hub's copy has no examples.
"""

from __future__ import annotations

import json
import string
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from tma.data.batches import ENCODER, Batch, Row, batched, file_errors
from tma.data.split import OWN, SPLITS, SplitSpec, under_cap
from tma.errors import DataError

EXAMPLES = 2
"""Most solved examples in a prompt."""
CHARACTERS = 4
"""Characters that count as one token."""
SPLIT = SplitSpec(by=OWN, per_task=(100, 100), first_test=True)
"""At most 100 instances a task; in test the first ones, which the authors balanced."""
_KEEP = ("Source", "Categories", "Domains", "Reasoning", "Input_language", "Output_language")
"""Keys of a task file that go into a row."""


def prompt(definition: str, examples: Sequence[tuple[str, str]], text: str, most: int) -> str:
    """Return a prompt of at most `most` tokens, where leaving out examples reaches that."""
    head = f"Definition: {_ended(definition)}\n\n"
    tail = f"Now complete the following example -\nInput: {_ended(text)}\nOutput:"
    shown = ""
    for number, (given, answer) in enumerate(examples[:EXAMPLES], 1):
        one = f" Positive Example {number} -\nInput: {_ended(given)}\n Output: {_ended(answer)}"
        if len(f"{head}{shown}{one}\n\n{tail}") > CHARACTERS * most:
            break
        shown += f"{one}\n\n"
    return head + shown + tail


def _ended(text: str) -> str:
    """Return a text with a full stop, unless it ends with punctuation or is empty."""
    text = text.strip()
    return text if not text or text[-1] in string.punctuation else f"{text}."


def is_checkout(path: Path) -> bool:
    """Return whether a folder is a checkout of the authors' repository."""
    return (path / "tasks").is_dir() and (path / "splits" / "default").is_dir()


def task_files(root: Path) -> list[tuple[Path, str]]:
    """Return (task file, split) of the default (English) track, in the sequence of its lists."""
    out = list[tuple[Path, str]]()
    for split in SPLITS:
        listed = root / "splits" / "default" / f"{split}_tasks.txt"
        with file_errors(listed):
            names = listed.read_text("utf-8-sig").split()
        files = [root / "tasks" / f"{name}.json" for name in names]
        if missing := [file for file in files if not file.is_file()]:
            raise DataError(
                f"{listed} names {len(missing)} tasks without a file; expected {missing[0]}."
            )
        out += [(file, split) for file in files]
    counts = Counter(file.stem for file, _ in out)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise DataError(
            f"{root / 'splits' / 'default'} names {len(twice)} tasks twice, such as {twice[0]}; "
            "expected each once, in training or in test."
        )
    return out


def checkout(root: Path, most_tokens: int, spec: SplitSpec) -> Iterator[Batch]:
    """Yield the instances of a checkout, task by task in the sequence of its lists."""
    for file, split in task_files(root):
        task = _task(file)
        count, first = len(task["Instances"]), split == "test" and spec.first_test
        # Another split may only cap the rows that are then in it.
        most = spec.per_task[SPLITS.index(split)] if spec.by == OWN else None
        numbers = under_cap(count, most, f"{spec.seed}/{file.stem}", first)
        rows = ((k + 1, _instance(task, k, file, most_tokens)) for k in numbers)
        sized = ((place, ENCODER.encode(row), row) for place, row in rows)
        left_out = count - len(numbers)
        for batch in batched(sized, str(file), split, "instance"):
            yield replace(batch, left_out=left_out)
            left_out = 0


def _task(file: Path) -> dict[str, Any]:
    with file_errors(file):
        task = json.loads(file.read_text("utf-8-sig"))
    if not isinstance(task, dict):
        raise DataError(f"{file}: a {type(task).__name__}; expected one object.")
    for key in ("Definition", "Positive Examples", "Instances"):
        if not isinstance(task.get(key), list | str):
            raise DataError(f"{file} has no list {key}; it has {', '.join(task)}.")
    return task


def _instance(task: Mapping[str, Any], number: int, file: Path, most: int) -> Row:
    given, source = task["Definition"], task.get("Source") or []
    try:
        definition = given if isinstance(given, str) else given[0]
        examples = [(e["input"], e["output"]) for e in task["Positive Examples"]]
        own = task["Instances"][number]
        text, response = prompt(definition, examples, own["input"], most), own["output"]
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise DataError(
            f"{file}, instance {number + 1}: {type(error).__name__} {error}; expected input and "
            "output, and examples with both."
        ) from error
    return {
        "prompt": text,
        "response": response,
        "task": file.stem,
        "instance": own.get("id"),
        **{key.lower(): task.get(key) for key in _KEEP},
        "dataset": ", ".join(map(str, source if isinstance(source, list) else [source])) or None,
    }


def from_hub(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yield the rows of the hub's copy; rows that differ only in the target become one, and count
    as left out. Rows without an id cannot be told from equal instances, and are not merged.
    """
    flat = ((batch, k) for batch in batches for k in range(len(batch.rows)))
    for part, in_part in groupby(flat, key=lambda entry: entry[0].part):
        merged = list[int]()
        rows = (_merged(group, merged) for _, group in groupby(in_part, key=_same))
        sized = ((n, ENCODER.encode(row), row) for n, row in enumerate(rows, 1))
        for batch in batched(sized, f"niv2 ({part or 'no split'})", part, "instance"):
            yield replace(batch, left_out=sum(merged))
            merged.clear()


def _same(entry: tuple[Batch, int]) -> tuple[Any, ...]:
    batch, k = entry
    row = batch.rows[k]
    for column in ("task_name", "definition", "inputs", "targets"):
        if column not in row:
            raise DataError(f"{batch.at(k)} has no {column}; it has {', '.join(row)}.")
    own = row.get("id")
    place = (batch.file, batch.places[k]) if own is None else None
    return row["task_name"], own, place, row["definition"], row["inputs"]


def _merged(group: Iterable[tuple[Batch, int]], merged: list[int]) -> Row:
    """Return the rows of one instance as one; add how many were merged into the first."""
    rows = [batch.rows[k] for batch, k in group]
    merged.append(len(rows) - 1)
    first = rows[0]
    return {
        "prompt": prompt(str(first["definition"] or ""), (), str(first["inputs"] or ""), 0),
        "response": [row["targets"] for row in rows],
        "task": first["task_name"],
        "instance": first.get("id"),
    }
