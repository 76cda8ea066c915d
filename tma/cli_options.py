"""What the commands share: options, and what their values stand for."""

from __future__ import annotations

import json
import logging
import os
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tma.config import SCALES
from tma.errors import ParameterError, first_line, wrong

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("tma")

Data = Annotated[str, typer.Argument(metavar="DATA", help="File, folder, hub id, or known name.")]
Train = Annotated[str, typer.Argument(metavar="TRAIN", help="File, folder, hub id, known name.")]
Test = Annotated[str, typer.Option(help="Test set; prompts will do.")]
Order = Annotated[str, typer.Option(help="Name of the order.")]
Limit = Annotated[str | None, typer.Option(help="Rows to take, such as 10000 or 20%.")]
Seed = Annotated[int, typer.Option(help="Seed of random choices.")]
Leaks = Annotated[bool, typer.Option("--drop-leaks", help="Leave out rows that hold a test text.")]
Encode = Annotated[
    str | None, typer.Option(help="Name, hub id, folder, or TRAIN.npy,TEST.npy; default: minilm.")
]
What = Annotated[
    Literal["both", "prompt"], typer.Option("--text", help="What is embedded of a row.")
]
View = Annotated[
    Literal["first", "last", "all"], typer.Option(help="Which exchanges of a conversation.")
]
Columns = Annotated[
    str | None, typer.Option(metavar="FIELD=COLUMN,…", help="Such as prompt=q,response=a.")
]
Prompts = Annotated[
    bool, typer.Option("--prompts", help="Keep rows without a response, as a test set does.")
]
Tokenizer = Annotated[str | None, typer.Option(help="The model's: preset, hub id, or folder.")]
MaxTokens = Annotated[int | None, typer.Option(help="Most tokens of a row; longer ones are told.")]
Scale = Annotated[str, typer.Option(help=" | ".join(SCALES))]
Cluster = Annotated[
    str | None, typer.Option(metavar="ray[:ADDRESS]", help="Work on a Ray cluster (tma[ray]).")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No messages but errors.")]


def silence(*, quiet: bool) -> None:
    """Log nothing and draw no bar, if the user wants it so: called before tqdm is imported."""
    if quiet:
        log.setLevel(logging.CRITICAL)
        os.environ["TQDM_DISABLE"] = "1"


def show(value: Any, lines: str, *, as_json: bool) -> None:
    """Print a result: its lines, or its value as JSON."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False) if as_json else lines)


def counted(count: int, name: str) -> str:
    """Return a number with its noun, such as "1 run"."""
    return f"{count:,} {name}" + "s" * (count != 1)


def load(name: str, columns: str | None, view: str, *, optional: bool = False) -> Dataset:
    """Return every row of a dataset; `columns` as FIELD=COLUMN pairs."""
    from tma.data.load import load as loaded
    from tma.data.registry import check_dataset

    check_dataset(name, "data")
    pairs = [pair.partition("=") for pair in columns.split(",")] if columns else []
    if not all(field and column for field, _, column in pairs):
        raise wrong("columns", columns, "FIELD=COLUMN,…, such as prompt=q,response=a")
    mapped = {field.strip(): column.strip() for field, _, column in pairs} or None
    answers = "optional" if optional else "required"
    return loaded(name, columns=mapped, view=view, answers=answers)


def rules_of(order: str, *, seed: int, drop_leaks: bool) -> dict[str, Any]:
    """Return the settings of an order; of TMA's the last round is cut, so that a limit is exact."""
    from tma.arrange.spec import Method, find_order

    rules: dict[str, Any] = {"seed": seed, "drop_leaks": drop_leaks}
    if "exact_limit" in find_order(order).settings:
        rules["exact_limit"] = True
    Method(order, **rules)
    return rules


def limit_of(text: str | None, rows: int) -> int | None:
    """Return a number of rows from 10000 or 20%."""
    if text is None:
        return None
    try:
        if not text.endswith("%") and int(text) > 0:
            return int(text)
        if text.endswith("%") and 0 < float(text[:-1]) <= 100:
            return max(1, round(rows * float(text[:-1]) / 100))
    except ValueError:
        pass
    raise wrong("limit", text, "a number of rows, such as 10000, or a share, such as 20%")


def tokenizer_of(name: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a preset, hub id or folder."""
    from transformers import AutoTokenizer

    from tma.data.assets import BUILT_IN
    from tma.train import models

    source = SCALES["pocket"].models.get(name, name)
    source = str(models.converted(source)) if source in BUILT_IN else source
    try:
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, ImportError) as error:
        raise ParameterError(f"tokenizer={name!r} cannot be loaded: {first_line(error)}") from error
    return found


def lengths_of(tokenizer: str | None, max_tokens: int | None) -> dict[str, Any]:
    """Return the arguments of `tma.audit` that find texts of too many tokens."""
    if (tokenizer is None) != (max_tokens is None):
        raise ParameterError("--tokenizer and --max-tokens belong together; give both or neither.")
    if tokenizer is None:
        return {}
    return {"tokenizer": tokenizer_of(tokenizer), "max_tokens": max_tokens}
