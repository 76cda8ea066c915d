"""The command `tma`: train a run; list, export and import runs; make those of the study.

`accelerate launch -m tma.cli train …` trains with several processes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from tma.errors import ParameterError, TmaError, check_count
from tma.runs import published
from tma.runs.config import RunConfig
from tma.runs.store import run, runs
from tma.scales import SCALES


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    options = _parser().parse_args(arguments)
    try:
        for line in options.function(options):
            sys.stdout.write(f"{line}\n")
    except TmaError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted: the same command goes on from the last saved state.\n")
        return 130  # what a shell says of a command that Ctrl-C ended
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tma", description="Arrange, train and measure.")
    commands = parser.add_subparsers(required=True)
    train = commands.add_parser("train", help="train a run, or read it if it is finished")
    train.add_argument("--order", required=True, help="name of the arrangement")
    train.add_argument("--scale", default="pocket", choices=tuple(SCALES))
    train.add_argument("--model", default="llama", help="preset, hub id, or folder")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any other setting of RunConfig, or steps; the value as JSON, else as text",
    )
    train.add_argument("--state-minutes", type=float, default=10, help="time between two states")
    train.add_argument("--save-model", action="store_true", help="keep the trained model")
    train.set_defaults(function=_train)
    _add_runs(commands.add_parser("runs", help="list runs with status, last step and test loss"))
    _add_study(commands.add_parser("study", help="make the runs of the study that are missing"))
    return parser


def _add_runs(runs: argparse.ArgumentParser) -> None:
    runs.set_defaults(function=_runs)
    commands = runs.add_subparsers()
    export = commands.add_parser("export", help="write finished runs into a folder, with checksums")
    export.add_argument("keys", nargs="+", metavar="KEY", help="names of runs, or their beginnings")
    export.add_argument("folder")
    export.set_defaults(function=_export)
    taking = commands.add_parser(
        "import", help="take the runs of such a folder; none is overwritten"
    )
    taking.add_argument("folder")
    taking.set_defaults(function=_import)


def _add_study(study: argparse.ArgumentParser) -> None:
    study.add_argument("--scale", default="study", choices=tuple(SCALES))
    study.add_argument("--arms", help="names of arms, such as 1,2; without it all")
    study.add_argument("--jobs", type=int, default=1, help="runs at a time, a core each")
    study.add_argument("--p3", default="p3", help="the dataset P3, such as p3:FILE for a copy")
    study.add_argument("--export", metavar="FOLDER", help="write runs there as they are finished")
    study.add_argument("--list", action="store_true", help="only say what is done and what is left")
    study.set_defaults(function=_study)


def _train(options: argparse.Namespace) -> list[str]:
    changes = dict(_setting(text) for text in options.set)
    config = RunConfig.at(
        options.scale, order=options.order, model=options.model, seed=options.seed, **changes
    )
    made = run(config, state_minutes=options.state_minutes, save_model=options.save_model)
    from accelerate import PartialState

    if not PartialState().is_main_process:  # one result, however many processes made it
        return []
    final = made.losses[made.losses["step"] == made.losses["step"].max()]
    return [str(made.folder), f"test loss {final['loss'].mean():.4f} nats a token"]


def _export(options: argparse.Namespace) -> list[str]:
    written = published.export(options.keys, options.folder)
    return [f"{len(written)} runs written to {options.folder}, the others were there"]


def _import(options: argparse.Namespace) -> list[str]:
    taken, there = published.import_runs(options.folder)
    return [f"{len(taken)} runs taken, {len(there)} were there"]


def _study(options: argparse.Namespace) -> list[str]:
    from tma.study import arms

    chosen = arms.chosen(options.arms)
    if options.list:
        return arms.listing(options.scale, chosen, options.p3).to_string(index=False).splitlines()
    check_count("jobs", options.jobs, 1)
    made = arms.make(options.scale, chosen, options.p3, options.jobs, options.export)
    return [f"{made} runs made; all of the arms {', '.join(a.name for a in chosen)} are finished"]


def _setting(text: str) -> tuple[str, object]:
    name, found, value = text.partition("=")
    known = {*RunConfig.__dataclass_fields__, "steps"} - {"order", "model", "seed"}
    if name in ("order", "model", "seed"):
        raise ParameterError(f"--set {text} cannot be used; write --{name} {value} instead.")
    if not found or name not in known:
        raise ParameterError(
            f"--set {text} cannot be used; expected NAME=VALUE with a name of: "
            f"{', '.join(sorted(known))}."
        )
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _runs(_: argparse.Namespace) -> list[str]:
    lines = [f"{'run':<21}{'status':<13}{'step':>6}{'loss':>9}  order, model, dataset"]
    for entry in runs():
        step = "-" if entry.step is None else f"{entry.step}"
        loss = "-" if entry.loss is None else f"{entry.loss:.4f}"
        what = ", ".join(str(entry.config.get(n, "-")) for n in ("order", "model", "dataset"))
        why = "" if entry.error is None else f": {entry.error}"
        lines.append(f"{entry.key:<21}{entry.status:<13}{step:>6}{loss:>9}  {what}{why}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
