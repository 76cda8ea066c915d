"""Names of models and datasets, what each scale sets, and the checks that settings share."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import ConfigDict, Field, ValidationError

from tma.errors import ParameterError, check_count, choices, wrong

BUILT_IN_DATA = ("suite", "pocket")
"""The built-in suite: whole, and with a few instances per task."""
_FOLDS = tuple[int | str, ...](range(5))
FOLDS = {"suite": (*_FOLDS, "validation"), "pocket": (*_FOLDS, "validation"), "p3": _FOLDS}
"""Folds by dataset."""
UNITS = ("task", "source", "instance")
"""What training and test may have to keep apart."""
EMPTY = ("drop", "error")
"""What happens to rows with a blank prompt or response."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")

Caps = tuple[int | None, int | None]
"""Most instances per task, in training and in test; None: no cap."""


@dataclass(frozen=True)
class Scale:
    """What a scale of the study sets where the caller does not; fields as in `RunConfig`."""

    purpose: str
    models: Mapping[str, str]
    """Preset → built-in weights or hub id."""
    model: str
    """Preset of the published results."""
    dataset: str
    steps: int
    early_steps: int
    """`steps` of chapter 1, which asks how early the loss falls."""
    pool: int | None
    eval_every: int
    sampled_every: int
    """`eval_every` of chapters 1 to 3, which ask at which step the loss falls."""
    test_limit: int
    batch_size: int = 16
    max_tokens: int = 256
    micro_tokens: int = 2048
    learning_rate: float = 1e-4
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    """Preset → its own peak rate, chosen on validation data (`benchmarks/learning_rate.py`)."""
    precision: str = "auto"
    folds: int | None = None
    """Seed s tests fold s modulo `folds`; None: all seeds test the same."""
    max_instance_tokens: int | None = None
    per_task: Caps | None = None
    pooled_per_task: Caps | None = None
    """`per_task` where an order selects from a pool; None: the same."""
    max_new_tokens: int = 128
    seeds: int = 3
    """Seeds of a chapter's main comparisons."""
    fewer_seeds: int = 3
    """Seeds of the others."""
    task_size: int | None = None
    """Instances per task in samples of whole tasks (chapters 2 and 3); None: samples of single
    instances are large enough to hold many of each task."""
    blocks: int = 3
    """Most blocks of rounds that are compared."""
    block_rounds: int = 5
    block_limit: int | None = None
    """Instances of each block; None: as many as each holds in every seed's pool."""
    made_before: bool = False
    """Whether chapters only read the runs, which `tma study` makes."""


_SMALL = {"llama": "smollm2-135m-instruct", "gemma": "gemma-3-270m", "qwen": "Qwen/Qwen2.5-0.5B"}
_LARGE = {
    "llama": "meta-llama/Llama-2-7b-hf",
    "gemma": "google/gemma-7b",
    "qwen": "Qwen/Qwen2.5-7B",
}
SCALES: dict[str, Scale] = {
    "pocket": Scale(
        "minutes on two CPU cores",
        _SMALL,
        model="llama",
        dataset="pocket",
        steps=8,
        early_steps=20,
        pool=920,
        eval_every=4,
        sampled_every=2,
        test_limit=19,
        batch_size=4,
        max_new_tokens=20,
        task_size=4,
        block_rounds=2,
    ),
    "study": Scale(
        "the published results: some nights on two CPU cores",
        _SMALL,
        model="gemma",
        dataset="suite",
        steps=64,
        early_steps=64,
        pool=10_000,
        eval_every=16,
        sampled_every=16,
        test_limit=240,
        learning_rates={"gemma": 1e-5},
        folds=5,
        max_instance_tokens=128,
        per_task=(1000, None),
        max_new_tokens=32,
        seeds=5,
        blocks=4,
        block_rounds=3,
        block_limit=256,
        made_before=True,
    ),
    "paper": Scale(
        "the paper's settings",
        _LARGE,
        model="llama",
        dataset="flan-mini",
        steps=1800,
        early_steps=1800,
        pool=None,
        eval_every=10,
        sampled_every=10,
        test_limit=1200,
        max_tokens=1024,
        micro_tokens=16384,
        learning_rate=1e-6,
        precision="bf16",
        # Under Flan-mini's own cap an order would take all there is and select nothing.
        pooled_per_task=(None, 5),
        blocks=6,
    ),
}


def check_model(value: object, names: Sequence[str], setting: str = "model") -> None:
    """Refuse what is neither a known name, a hub id nor an existing folder."""
    with suppress(OSError):  # a name too long for the file system is no folder
        if isinstance(value, str) and value and (value in names or _is_model(value)):
            return
    known = f"{choices(names, value)}, " if names else "None, "
    raise wrong(setting, value, f"{known}a hub id (owner/name), or an existing folder")


def _is_model(value: str) -> bool:
    return HUB_ID.fullmatch(value) is not None or Path(value).is_dir()


def expanded(text: str) -> Path:
    """Return a path with `~` expanded, or as written where there is no such user."""
    return Path(os.path.expanduser(text))  # noqa: PTH111  (that of Path raises)


def check_fold(dataset: str, fold: object) -> None:
    """Refuse a fold that the dataset does not have."""
    known = FOLDS.get(re.split("[@:]", dataset)[0], ())
    # 1.0 and True equal 1, but are no folds.
    if fold is None or (type(fold) in (int, str) and fold in known):
        return
    if known:
        raise wrong("fold", fold, f"one of: {', '.join(map(str, known))}")
    expected = f"None: dataset={dataset!r} has no folds, only {', '.join(FOLDS)} have. Name tasks "
    raise wrong("fold", fold, expected + "or source datasets in held_out")


def check_one_split(every: str | None, **given: object) -> None:
    """Refuse two settings of what is held out, or one beside `every`, which holds out nothing."""
    asked = [f"{name}={value!r}" for name, value in given.items() if value is not None]
    if every is not None and asked:
        raise ParameterError(
            f"{every} takes every row and holds none out, which {asked[0]} asks for. Leave out one "
            "of the two."
        )
    if len(asked) > 1:
        raise ParameterError(
            f"{' and '.join(asked)} each say what is held out. Give only one of them."
        )


def checked_names(value: Any) -> tuple[str, ...] | None:
    """Return the names in `held_out`, sorted and each once."""
    if value is None:
        return None
    names = list(value) if isinstance(value, Sequence | Set) and not isinstance(value, str) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise wrong("held_out", value, 'names of tasks or source datasets, such as ["imdb"]')
    return tuple(sorted(set(names)))


def checked_columns(value: Any) -> dict[str, str] | None:
    """Return a mapping of fields to columns as a dict."""
    if value is None:
        return None
    if not isinstance(value, Mapping) or not all(
        isinstance(name, str) for name in (*value, *value.values())
    ):
        raise wrong("columns", value, 'names, such as {"prompt": "q", "response": "a"}')
    return dict(value)


def checked_caps(value: Any) -> Caps | None:
    """Return the caps for training and test from one number or two."""
    if value is None:
        return None
    pair = tuple(value) if isinstance(value, list | tuple) else (value, value)
    for cap in pair:
        if cap is not None:
            check_count("per_task", cap, 1)
    if len(pair) != 2:
        raise wrong("per_task", value, "one number, or two")
    return pair


Class = TypeVar("Class")

STRICT = ConfigDict(strict=True, extra="forbid")
"""Settings of the right type only: no text for a number, no unknown name."""
Count = Annotated[int, Field(ge=0)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[int, Field(ge=1)]

_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "True or False",
    "string_type": "a text",
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "a number of at least {ge:g}",
    "less_than_equal": "a number of at most {le:g}",
    "unexpected_positional_argument": "each setting by its name",
}
"""Kind of pydantic's complaint → what was expected."""


def plain(value: Any) -> Any:
    """Return NumPy numbers, alone or in a sequence, as those of Python, which JSON can hold."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return type(value)(map(plain, value)) if type(value) in (list, tuple) else value


def refusing(cls: type[Class]) -> type[Class]:
    """Let a pydantic dataclass take NumPy numbers, and refuse values by `ParameterError`."""
    fill: Callable[..., None] = cls.__init__

    @wraps(fill)
    def fill_or_refuse(self: Class, *args: Any, **settings: Any) -> None:
        try:
            fill(self, *plain(args), **{name: plain(value) for name, value in settings.items()})
        except ValidationError as error:
            raise _parameter_error(error) from None

    type.__setattr__(cls, "__init__", fill_or_refuse)  # an assignment does not pass mypy
    return cls


def _parameter_error(error: ValidationError) -> ParameterError:
    """Return the first of pydantic's complaints: the setting, what came, what was expected."""
    first = error.errors()[0]
    kind, context = first["type"], first.get("ctx", {})
    if isinstance(context.get("error"), ParameterError):
        raised: ParameterError = context["error"]
        return raised
    name, value = str(first["loc"][0]), first["input"]
    if kind == "literal_error":
        return wrong(name, value, choices(re.findall("'([^']*)'", context["expected"]), value))
    if kind == "unexpected_keyword_argument":
        return ParameterError(f"{name}={value!r} cannot be used: there is no such setting.")
    if kind.startswith("missing"):
        return ParameterError(f"{name} is missing; give it a value.")
    return wrong(name, value, _EXPECTED.get(kind, first["msg"]).format(**context))
