"""Super-NaturalInstructions: task files of a checkout, or rows of the hub's copy → instances.

A prompt is the task's definition, two solved examples, and the input. As in the reference code of
its authors, each of these that does not end with a punctuation mark gets a full stop, and an
example that would make the prompt too long is left out together with those after it; the input is
never cut. The hub's copy carries no examples: its prompts are definition and input.
"""

from __future__ import annotations

import json
import random
import string
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from tma.data.batches import Batch, batched, named
from tma.data.conversations import Row
from tma.data.split import OWN, SPLITS, Plan
from tma.errors import DataError
from tma.store import digest, known_digest

EXAMPLES = 2
"""Solved examples in a prompt at most."""
PLAN = Plan(by=OWN, per_task=(100, 100), first_test=True)
"""At most 100 instances a task: chosen by seed in training; the first ones in test, which the
authors balanced."""
_KEEP = ("Source", "Categories", "Domains", "Reasoning", "Input_language", "Output_language")
"""Keys of a task file that go into meta."""


@dataclass(frozen=True)
class Prompts:
    """How prompts are made."""

    tokens: Callable[[str], int]
    """Length of a text."""
    most: int
    """Tokens of a prompt at most, where leaving out examples can reach that."""

    def make(self, definition: str, examples: Sequence[tuple[str, str]], text: str) -> str:
        """Return the prompt of one instance."""
        head = f"Definition: {_ended(definition)}\n\n"
        tail = f"Now complete the following example -\nInput: {_ended(text)}\nOutput:"
        shown = ""
        for number, (given, answer) in enumerate(examples[:EXAMPLES], 1):
            one = f" Positive Example {number} -\nInput: {_ended(given)}\n Output: {_ended(answer)}"
            if self.tokens(f"{head}{shown}{one}\n\n{tail}") > self.most:
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


def task_files(root: Path) -> dict[str, list[Path]]:
    """Return the task files of the default (English) track, by split.

    Raises:
        DataError: a list or a file that it names is missing, or a task is named twice.
    """
    out: dict[str, list[Path]] = {}
    for split in SPLITS:
        listed = root / "splits" / "default" / f"{split}_tasks.txt"
        with named(listed):
            names = listed.read_text("utf-8-sig").split()
        out[split] = [root / "tasks" / f"{name}.json" for name in names]
        missing = [file for file in out[split] if not file.is_file()]
        if missing:
            raise DataError(
                f"{listed} names {len(missing)} tasks without a file; expected {missing[0]}."
            )
    counts = Counter(file.stem for files in out.values() for file in files)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise DataError(
            f"{root / 'splits' / 'default'} names {len(twice)} tasks twice, such as {twice[0]}; "
            "expected each once, in training or in test."
        )
    return out


def checkout_key(root: Path) -> str:
    """Return the SHA-256 of the track's names and contents."""
    files = task_files(root)
    parts = ((split, f.name, known_digest(f)) for split in files for f in files[split])
    return digest(*(text for part in parts for text in part))


def checkout(root: Path, prompts: Prompts, plan: Plan) -> Iterator[Batch]:
    """Yield the instances of a checkout, task by task in the order of the lists.

    Raises:
        DataError: a task file is not what it should be; the message names it.
    """
    for split, files in task_files(root).items():
        # Under another split a cap may count only the rows that are then in it.
        most = plan.per_task[SPLITS.index(split)] if plan.by == OWN else None
        for file in files:
            task = _task(file)
            numbers = list(range(len(task["Instances"])))
            if most is not None and len(numbers) > most:
                choice = random.Random(f"{plan.seed}/{file.stem}").sample(numbers, most)
                numbers = numbers[:most] if split == "test" and plan.first_test else sorted(choice)
            rows = ((k + 1, _instance(task, k, file, prompts)) for k in numbers)
            sized = ((place, len(row["prompt"]), row) for place, row in rows)
            left_out = len(task["Instances"]) - len(numbers)
            for batch in batched(sized, str(file), split, "instance"):
                yield replace(batch, left_out=left_out)
                left_out = 0


def _task(file: Path) -> dict[str, Any]:
    """Return the content of a task file whose keys are as they should be."""
    with named(file):
        task = json.loads(file.read_text("utf-8-sig"))
    if not isinstance(task, dict):
        raise DataError(f"{file}: a {type(task).__name__}; expected one object.")
    for key in ("Definition", "Positive Examples", "Instances"):
        if not isinstance(task.get(key), list | str):
            raise DataError(f"{file} has no list {key}; it has {', '.join(task)}.")
    return task


def _instance(task: Mapping[str, Any], number: int, file: Path, prompts: Prompts) -> Row:
    found = task["Definition"]
    try:
        definition = found if isinstance(found, str) else found[0]
        examples = [(e["input"], e["output"]) for e in task["Positive Examples"]]
        own = task["Instances"][number]
        prompt = prompts.make(definition, examples, own["input"])
        response = own["output"]
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise DataError(
            f"{file}, instance {number + 1}: {type(error).__name__} {error}; expected input and "
            "output, and examples with both."
        ) from error
    kept = {key.lower(): task.get(key) for key in _KEEP}
    given = task.get("Source") or []
    source = ", ".join(map(str, given if isinstance(given, list) else [given])) or None
    made = {"prompt": prompt, "response": response, "task": file.stem, "instance": own.get("id")}
    return made | kept | {"dataset": source}


def hub(batches: Iterable[Batch], prompts: Prompts) -> Iterator[Batch]:
    """Yield the rows of the hub's copy; rows that differ only in the target become one.

    Rows without an id cannot be told from other instances that are equal: each stays one. A batch
    counts as left out the rows that became one with another.

    Args:
        batches: rows with task_name, id, definition, inputs, targets, and their split.
        prompts: how prompts are made.

    Raises:
        DataError: a column is missing.
    """
    flat = ((batch, k) for batch in batches for k in range(len(batch.rows)))
    for part, in_part in groupby(flat, key=lambda entry: entry[0].part):
        spare = list[int]()
        rows = (_merged(group, prompts) for group in _instances(in_part, spare))
        sized = ((n, len(row["prompt"]), row) for n, row in enumerate(rows, 1))
        for batch in batched(sized, f"niv2 ({part or 'no split'})", part, "instance"):
            yield replace(batch, left_out=sum(spare))
            spare.clear()


def _instances(entries: Iterable[tuple[Batch, int]], spare: list[int]) -> Iterator[list[Row]]:
    """Yield the rows of each instance; `spare` gets their number beyond the first."""
    for _, group in groupby(entries, key=_same):
        rows = [batch.rows[k] for batch, k in group]
        spare.append(len(rows) - 1)
        yield rows


def _same(entry: tuple[Batch, int]) -> tuple[Any, ...]:
    """Return what rows have in common that are one instance."""
    batch, k = entry
    row = batch.rows[k]
    for column in ("task_name", "definition", "inputs", "targets"):
        if column not in row:
            raise DataError(f"{batch.at(k)} has no {column}; it has {', '.join(row)}.")
    own = row.get("id")
    alone = (batch.file, batch.places[k]) if own is None else None
    return row["task_name"], own, alone, row["definition"], row["inputs"]


def _merged(rows: Sequence[Row], prompts: Prompts) -> Row:
    first = rows[0]
    texts = [first["definition"], first["inputs"]]
    return {
        "prompt": prompts.make(str(texts[0] or ""), (), str(texts[1] or "")),
        "response": [row["targets"] for row in rows],
        "task": first["task_name"],
        "instance": first.get("id"),
    }
