"""The command `tma`: order data and hand it over, verify, train, study; each a public function.

`accelerate launch -m tma.cli train …` trains with several processes.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from textwrap import fill
from typing import Annotated, Any

import typer

from tma import cli_runs
from tma.cli_options import (
    Cluster,
    Columns,
    Data,
    Encode,
    Json,
    Leaks,
    Limit,
    MaxTokens,
    Order,
    Prompts,
    Quiet,
    Seed,
    Test,
    Tokenizer,
    Train,
    View,
    What,
    counted,
    lengths_of,
    limit_of,
    load,
    log,
    rules_of,
    show,
    silence,
    tokenizer_of,
)
from tma.errors import DataError, OrderError, ParameterError, TmaError, wrong

app = typer.Typer(
    help="Order fine-tuning data for a test set, train in that order, measure.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

INTERRUPTED = 130
"""What a shell says of a command that Ctrl-C ended."""
Format = Annotated[
    str, typer.Option("--format", help="as-is, or a trainer such as trl or axolotl.")
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status.

    0: done; 1: training went wrong, or an order was not kept; 2: a mistake in the arguments or the
    data; 130: Ctrl-C.
    """
    try:
        with _logging():
            status = app(arguments, prog_name="tma", standalone_mode=False)
    except typer.TyperException as error:
        sys.stderr.write(f"{error.format_message()}\n")
        return 2
    except (TmaError, ValueError, OSError) as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 2 if isinstance(error, ParameterError | DataError) else 1
    if status == INTERRUPTED:
        told = "Interrupted. A run goes on from its last state; nothing else was written."
        sys.stderr.write(f"{told}\n")
    return status or 0


@contextmanager
def _logging() -> Iterator[None]:
    """Write what the package logs to stderr, as plain lines."""
    handler, level = logging.StreamHandler(), log.level
    handler.setFormatter(logging.Formatter("%(message)s"))
    bars = os.environ.get("TQDM_DISABLE")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        os.environ.pop("TQDM_DISABLE", None)
        os.environ.update({} if bars is None else {"TQDM_DISABLE": bars})


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"tma {version('tma')}")
        raise typer.Exit


@app.callback()
def _top(
    *,
    told: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version.")
    ] = False,
) -> None:
    """Order fine-tuning data for a test set, train in that order, measure."""


@app.command()
def arrange(
    train: Train,
    *,
    test: Test,
    out: Annotated[Path, typer.Option(help="New folder.")],
    order: Order = "tma_nft",
    limit: Limit = None,
    drop_leaks: Leaks = False,
    seed: Seed = 0,
    encoder: Encode = None,
    text: What = "both",
    view: View = "first",
    columns: Columns = None,
    test_columns: Columns = None,
    trainer: Format = "as-is",
    tokenizer: Tokenizer = None,
    max_tokens: MaxTokens = None,
    no_audit: Annotated[bool, typer.Option("--no-audit", help="Write no audit.")] = False,
    cluster: Cluster = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Order training data for a test set.

    OUT gets train.jsonl, order.json, receipt.json, the trainer's settings, and the audit.
    """
    silence(quiet=quiet)
    from tma.arrange.audit import audit as audited
    from tma.arrange.receipt import arrange_dataset
    from tma.arrange.spec import Method
    from tma.data.save import save
    from tma.export.handover import export
    from tma.export.trainers import check_trainer
    from tma.store import result_folder

    check_trainer(trainer, "as-is", setting="--format")
    rules = rules_of(order, seed=seed, drop_leaks=drop_leaks)  # refused before data is read
    with result_folder(out) as draft:
        rows, tests = load(train, columns, view), load(test, test_columns, view, optional=True)
        method = Method(order, limit=limit_of(limit, len(rows)), **rules)
        given: dict[str, Any] = {"encoder": encoder, "text": text, "cluster": cluster}
        made = arrange_dataset(rows, tests, method, **given)
        lengths, settings = lengths_of(tokenizer, max_tokens), list[str]()
        if trainer == "as-is":
            save(rows, made.rows, draft / "train.jsonl")
            made.save(draft / "receipt.json")
        else:
            most: dict[str, Any] = {"max_length": max_tokens} if max_tokens else {}
            most |= {"tokenizer": lengths.get("tokenizer")}
            files = export(made, rows, trainer, draft, **most).files
            settings = [name for name in files if name.endswith(".yaml")]
        places, numbers = rows["place"][:], made.rows.tolist()
        placed = {"rows": numbers, "places": [places[row] for row in numbers]}
        (draft / "order.json").write_text(json.dumps(placed, ensure_ascii=False), "utf-8")
        found = None if no_audit else audited(rows, tests, made, **lengths)
        if found is not None:
            from tma.study.audit_page import write_audit

            (draft / "audit").mkdir()
            write_audit(found, draft / "audit")
    result = {"out": str(out), "rows": len(made.rows), "of": len(rows)}
    result |= {"sha256": made.receipt.sha256, "audit": None if found is None else found.summary()}
    told = [f"{len(made.rows):,} of {len(rows):,} rows in the order {order}: {out / 'train.jsonl'}"]
    told += [f"{trainer}: {', '.join(settings)}"] if settings else []
    told.append(f"receipt {made.receipt.sha256[:12]}: {out / 'receipt.json'}")
    if found is not None:
        told += [f"audit: {out / 'audit' / 'report.html'}", "", str(found)]
    show(result, "\n".join(told), as_json=as_json)


@app.command()
def audit(
    train: Train,
    *,
    test: Test,
    out: Annotated[Path | None, typer.Option(help="New folder for page and lists.")] = None,
    order: Order = "tma_nft",
    limit: Limit = None,
    drop_leaks: Leaks = False,
    seed: Seed = 0,
    encoder: Encode = None,
    other: Annotated[str | None, typer.Option(help="Another encoder, to compare.")] = None,
    text: What = "both",
    view: View = "first",
    columns: Columns = None,
    test_columns: Columns = None,
    tokenizer: Tokenizer = None,
    max_tokens: MaxTokens = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say what an order does, and what to mend.

    Coverage, leaks, duplicates, texts that are cut, rows that were not read.
    """
    silence(quiet=quiet)
    from tma.arrange.audit import audit as audited
    from tma.arrange.spec import Method

    rules = rules_of(order, seed=seed, drop_leaks=drop_leaks)
    if out is not None and out.exists():
        raise wrong("out", str(out), "the name of a new folder")
    rows, tests = load(train, columns, view), load(test, test_columns, view, optional=True)
    method = Method(order, limit=limit_of(limit, len(rows)), **rules)
    given = lengths_of(tokenizer, max_tokens) | {"encoder": encoder, "other": other, "text": text}
    found = audited(rows, tests, method, **given)
    if out is not None:
        from tma.study.audit_page import save_audit

        save_audit(found, out)
    where = "" if out is None else f"\n{out / 'report.html'}"
    show(found.summary(), f"{found}{where}", as_json=as_json)


@app.command()
def verify(
    receipt: Annotated[Path, typer.Argument(help="receipt.json.")],
    consumed: Annotated[Path, typer.Argument(help="consumed.jsonl, as tma.OrderGuard writes it.")],
    *,
    epochs: Annotated[int, typer.Option(help="Times that the order was gone through.")] = 1,
    prefix: Annotated[
        bool, typer.Option("--prefix", help="Training may have ended early.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check that a trainer kept an order.

    Else exit with 1, and say the first place that differs.
    """
    silence(quiet=quiet)
    from tma.export.consumed import verify as verified

    try:
        count = verified(receipt, consumed, epochs=epochs, prefix=prefix)
    except OrderError as error:
        if as_json:
            show({"kept": False, "reason": str(error)}, "", as_json=True)
        raise
    told = f"{counted(count, 'row')} in the order of the receipt"
    show({"kept": True, "rows": count}, told, as_json=as_json)


@app.command()
def embed(
    data: Data,
    *,
    out: Annotated[Path, typer.Option(help="FILE.npy.")],
    encoder: Encode = None,
    text: What = "both",
    view: View = "first",
    columns: Columns = None,
    prompts: Prompts = False,
    cluster: Cluster = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write the embeddings of a dataset."""
    silence(quiet=quiet)
    import numpy as np

    from tma.embed import embed as embedded
    from tma.store import new_file

    if out.suffix != ".npy":
        raise wrong("out", str(out), "a file with the suffix .npy")
    loaded = load(data, columns, view, optional=prompts)
    rows = embedded(loaded, encoder, text=text, cluster=cluster)
    with new_file(out) as draft:
        np.save(draft, rows)
    told = f"{counted(len(rows), 'row')} of {rows.shape[1]} columns: {out}"
    show({"out": str(out), "shape": list(rows.shape)}, told, as_json=as_json)


@app.command()
def describe(
    data: Data,
    *,
    tokenizer: Annotated[str, typer.Option(help="Preset, hub id, or folder.")] = "llama",
    max_tokens: Annotated[int, typer.Option(help="Longer rows are counted.")] = 1024,
    view: View = "first",
    columns: Columns = None,
    prompts: Prompts = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say what a dataset holds.

    Rows read and left out, tasks, duplicates, and how many tokens the texts have.
    """
    silence(quiet=quiet)
    from tma.data.describe import describe as described

    found = described(
        load(data, columns, view, optional=prompts), tokenizer_of(tokenizer), max_tokens=max_tokens
    )["value"]
    show(found.to_dict(), found.to_string(), as_json=as_json)


@app.command()
def doctor(*, as_json: Json = False) -> None:
    """Say whether this machine has what it takes."""
    from tma.doctor import doctor as examined

    checks = examined()
    lines = [
        fill(
            f"{'ok' if one.ok else '!':<3}{one.name:<22}{one.found}", 80, subsequent_indent=" " * 25
        )
        for one in checks
    ]
    show([one._asdict() for one in checks], "\n".join(lines), as_json=as_json)
    if any(one.needed and not one.ok for one in checks):
        raise typer.Exit(1)


app.add_typer(cli_runs.app)


if __name__ == "__main__":
    sys.exit(main())
