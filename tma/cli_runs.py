"""The commands that train: `train`, `compare`, `runs` and `study`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from tma.cli_options import Cluster, Json, Quiet, Scale, Test, Train, counted, show, silence
from tma.config import SCALES
from tma.errors import ParameterError, check_choice, check_count

app = typer.Typer()
_runs = typer.Typer(rich_markup_mode=None, no_args_is_help=True)
app.add_typer(_runs, name="runs", help="List runs, or carry them to another machine.")


@app.command()
def train(
    *,
    order: Annotated[str, typer.Option(help="Name of the order.")],
    scale: Scale = "pocket",
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
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a run, or read it if it is finished."""
    silence(quiet=quiet)
    from tma.runs.config import RunConfig
    from tma.runs.execute import run

    given: dict[str, Any] = {"order": order, "model": model, "seed": seed}
    config = RunConfig.at(scale, **given | dict(_setting(text) for text in settings or ()))
    finished = run(config, state_minutes=state_minutes, save_model=save_model)
    from accelerate import PartialState

    if PartialState().is_main_process:  # one result, however many processes made it
        told = f"{finished.folder}\ntest loss {finished.final_loss:.4f} nats a token"
        result = {"folder": str(finished.folder), "loss": finished.final_loss}
        show(result, told, as_json=as_json)


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


@app.command()
def compare(
    train: Train,
    *,
    test: Test,
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
    out: Annotated[Path | None, typer.Option(help="Folder for tables and figure.")] = None,
    cluster: Cluster = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train in several orders of your own data, and say which to use."""
    silence(quiet=quiet)
    from tma.study.compare import compare as compared

    given: dict[str, Any] = {"evaluate": evaluate, "model": model, "seeds": seeds}
    given |= {"steps": steps, "budget": budget, "cluster": cluster}
    given |= dict(_setting(text) for text in settings or ())
    names = [name.strip() for name in orders.split(",")]
    found = compared(train, test, orders=names, **given)
    if out is not None:
        found.save(out)
    differences = found.table[["of", "estimate", "low", "high", "detectable"]]
    told = f"{found.losses.round(3)}\n\n{differences.round(3)}\n\n{found.sentence}"
    result = {"sentence": found.sentence, "losses": found.losses.to_dict("index")}
    show(result | {"differences": differences.to_dict("index")}, told, as_json=as_json)


@_runs.command("list")
def list_runs(*, as_json: Json = False) -> None:
    """List runs with status, last step and test loss."""
    from tma.runs.store import runs

    lines, found = (
        [f"{'run':<21}{'status':<13}{'step':>6}{'loss':>9}  order, model, dataset"],
        runs(),
    )
    for entry in found:
        step = "-" if entry.step is None else f"{entry.step}"
        loss = "-" if entry.loss is None else f"{entry.loss:.4f}"
        what = ", ".join(str(entry.config.get(n, "-")) for n in ("order", "model", "dataset"))
        why = "" if entry.error is None else f": {entry.error}"
        lines.append(f"{entry.key:<21}{entry.status:<13}{step:>6}{loss:>9}  {what}{why}")
    show([entry._asdict() for entry in found], "\n".join(lines), as_json=as_json)


@_runs.command("export")
def export_runs(
    keys: Annotated[list[str], typer.Argument(metavar="KEY...", help="Names, or beginnings.")],
    folder: str,
    *,
    as_json: Json = False,
) -> None:
    """Write finished runs into a folder, with checksums."""
    from tma.runs import published
    from tma.study import exposure

    written = published.export(keys, folder, exposure.tables)
    told = f"{counted(len(written), 'run')} written to {folder}, the others were there"
    show({"written": list(written)}, told, as_json=as_json)


@_runs.command("import")
def import_runs(folder: str, *, as_json: Json = False) -> None:
    """Take the runs of such a folder; none is overwritten."""
    from tma.runs import published

    taken, there = published.import_runs(folder)
    told = f"{counted(len(taken), 'run')} taken, {len(there):,} already there"
    show({"taken": list(taken), "there": list(there)}, told, as_json=as_json)


@app.command()
def study(
    *,
    scale: Scale = "study",
    arms: Annotated[str | None, typer.Option(help="Arms, such as 1,2; default: all.")] = None,
    jobs: Annotated[int, typer.Option(help="Runs at a time, a core each.")] = 1,
    cluster: Cluster = None,
    p3: Annotated[str, typer.Option(help="Dataset P3, such as p3:FILE for a copy.")] = "p3",
    export: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Write finished runs there.")
    ] = None,
    only_list: Annotated[bool, typer.Option("--list", help="Only say what is left.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make the runs of the study that are missing."""
    silence(quiet=quiet)
    from tma.study import arms as plan

    check_choice("scale", scale, tuple(SCALES))
    check_count("jobs", jobs, 1)
    if cluster is not None and jobs > 1:
        raise ParameterError(
            f"--jobs {jobs} and --cluster {cluster} both say how many runs are made at a time. "
            "Leave out --jobs: a cluster makes as many as it has GPUs or CPUs."
        )
    chosen = plan.chosen(arms)
    if only_list:
        table = plan.listing(scale, chosen, p3)
        show(
            json.loads(table.to_json(orient="records")),
            table.to_string(index=False),
            as_json=as_json,
        )
        return
    count = plan.make(scale, chosen, p3, jobs, export, cluster=cluster)
    names = ", ".join(str(arm.name) for arm in chosen)
    told = f"{counted(count, 'run')} made; all of the arms {names} are finished"
    show({"made": count, "arms": [arm.name for arm in chosen]}, told, as_json=as_json)
