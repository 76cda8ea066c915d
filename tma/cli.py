"""The command `tma`: train a run; list, export and import runs; make the runs of the study.

`accelerate launch -m tma.cli train …` trains with several processes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from tma.config import SCALES
from tma.errors import ParameterError, TmaError, check_choice, check_count

app = typer.Typer(
    help="Order fine-tuning data for a test set, train in that order, measure.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
_runs = typer.Typer(rich_markup_mode=None)
app.add_typer(_runs, name="runs", help="List runs, or carry them to another machine.")

INTERRUPTED = 130
"""What a shell says of a command that Ctrl-C ended."""
_SCALE = typer.Option(help=" | ".join(SCALES))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status.

    0: done; 1: data or training went wrong; 2: a mistake in the arguments; 130: Ctrl-C.
    """
    try:
        status = app(arguments, prog_name="tma", standalone_mode=False)
    except typer.TyperException as error:
        sys.stderr.write(f"{error.format_message()}\n")
        return 2
    except TmaError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 2 if isinstance(error, ParameterError) else 1
    if status == INTERRUPTED:
        sys.stderr.write("Interrupted: the same command goes on from the last saved state.\n")
    return status or 0


@app.command()
def train(
    *,
    order: Annotated[str, typer.Option(help="Name of the order.")],
    scale: Annotated[str, _SCALE] = "pocket",
    model: Annotated[str, typer.Option(help="Preset, hub id, or folder.")] = "llama",
    seed: int = 0,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Any other setting of RunConfig, or steps; the value as JSON, else as text.",
        ),
    ] = None,
    state_minutes: Annotated[float, typer.Option(help="Time between two states.")] = 10,
    save_model: Annotated[bool, typer.Option("--save-model", help="Keep the model.")] = False,
) -> None:
    """Train a run, or read it if it is finished."""
    from tma.runs.config import RunConfig
    from tma.runs.execute import run

    given: dict[str, Any] = {"order": order, "model": model, "seed": seed}
    config = RunConfig.at(scale, **given | dict(_setting(text) for text in settings or ()))
    finished = run(config, state_minutes=state_minutes, save_model=save_model)
    from accelerate import PartialState

    if PartialState().is_main_process:  # one result, however many processes made it
        typer.echo(f"{finished.folder}\ntest loss {finished.final_loss:.4f} nats a token")


def _setting(text: str) -> tuple[str, Any]:
    """Return name and value of `--set NAME=VALUE`."""
    from dataclasses import fields

    from tma.runs.config import RunConfig

    name, mark, value = text.partition("=")
    if name in ("order", "model", "seed"):
        raise ParameterError(f"--set {text} cannot be used; write --{name} {value} instead.")
    known = {"steps", *(field.name for field in fields(RunConfig))} - {"order", "model", "seed"}
    if not mark or name not in known:
        expected = f"NAME=VALUE with a name of: {', '.join(sorted(known))}"
        raise ParameterError(f"--set {text} cannot be used; expected {expected}.")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


@_runs.command("list")
def list_runs() -> None:
    """List runs with status, last step and test loss."""
    from tma.runs.store import runs

    typer.echo(f"{'run':<21}{'status':<13}{'step':>6}{'loss':>9}  order, model, dataset")
    for entry in runs():
        step = "-" if entry.step is None else f"{entry.step}"
        loss = "-" if entry.loss is None else f"{entry.loss:.4f}"
        what = ", ".join(str(entry.config.get(n, "-")) for n in ("order", "model", "dataset"))
        why = "" if entry.error is None else f": {entry.error}"
        typer.echo(f"{entry.key:<21}{entry.status:<13}{step:>6}{loss:>9}  {what}{why}")


@_runs.command("export")
def export_runs(
    keys: Annotated[list[str], typer.Argument(metavar="KEY...", help="Names, or beginnings.")],
    folder: str,
) -> None:
    """Write finished runs into a folder, with checksums."""
    from tma.runs import published
    from tma.study import exposure

    written = published.export(keys, folder, exposure.tables)
    typer.echo(f"{len(written)} runs written to {folder}, the others were there")


@_runs.command("import")
def import_runs(folder: str) -> None:
    """Take the runs of such a folder; none is overwritten."""
    from tma.runs import published

    taken, there = published.import_runs(folder)
    typer.echo(f"{len(taken)} runs taken, {len(there)} were there")


@app.command()
def study(
    *,
    scale: Annotated[str, _SCALE] = "study",
    arms: Annotated[str | None, typer.Option(help="Arms, such as 1,2; default: all.")] = None,
    jobs: Annotated[int, typer.Option(help="Runs at a time, a core each.")] = 1,
    p3: Annotated[str, typer.Option(help="Dataset P3, such as p3:FILE for a copy.")] = "p3",
    export: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Write finished runs there.")
    ] = None,
    only_list: Annotated[bool, typer.Option("--list", help="Only say what is left.")] = False,
) -> None:
    """Make the runs of the study that are missing."""
    from tma.study import arms as plan

    check_choice("scale", scale, tuple(SCALES))
    check_count("jobs", jobs, 1)
    chosen = plan.chosen(arms)
    if only_list:
        typer.echo(plan.listing(scale, chosen, p3).to_string(index=False))
        return
    count = plan.make(scale, chosen, p3, jobs, export)
    names = ", ".join(arm.name for arm in chosen)
    typer.echo(f"{count} runs made; all of the arms {names} are finished")


@app.command()
def compare(
    train: str,
    *,
    test: Annotated[str, typer.Option(help="What the data is arranged for.")],
    evaluate: Annotated[
        str | None, typer.Option(help="What is measured; default: a half of TEST.")
    ] = None,
    orders: Annotated[str, typer.Option(help="Names, with commas.")] = "tma_nft,tma_rt,random",
    model: Annotated[str, typer.Option(help="Preset, hub id, or folder.")] = "llama",
    seeds: Annotated[int, typer.Option(help="How often each order is trained.")] = 3,
    steps: Annotated[int | None, typer.Option(help="Training steps of each run.")] = None,
    budget: Annotated[
        str | None, typer.Option(metavar="TIME", help="Time for all, such as 30m: sets the steps.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any other setting of RunConfig."),
    ] = None,
    out: Annotated[str | None, typer.Option(metavar="DIR", help="Tables and figure.")] = None,
) -> None:
    """Train in several orders of one's own data, and say which to use."""
    from tma.study.compare import compare

    given: dict[str, Any] = {"evaluate": evaluate, "model": model, "seeds": seeds}
    given |= {"steps": steps, "budget": budget, **dict(_setting(text) for text in settings or ())}
    names = [name.strip() for name in orders.split(",")]
    found = compare(train, test, orders=names, **given)
    if out is not None:
        found.save(out)
    differences = found.table[["of", "estimate", "low", "high", "detectable"]]
    typer.echo(f"{found.losses.round(3)}\n\n{differences.round(3)}\n\n{found.sentence}")


if __name__ == "__main__":
    sys.exit(main())
