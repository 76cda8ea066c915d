"""The command `tma`: train a run, list the runs.

`accelerate launch -m tma.cli train …` trains with several processes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from tma.config import RunConfig
from tma.errors import ParameterError, TmaError
from tma.runs import run, runs
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
    listing = commands.add_parser("runs", help="list runs with status, last step and test loss")
    listing.set_defaults(function=_runs)
    return parser


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
