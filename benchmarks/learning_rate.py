"""The peak learning rate of each model at scale `study`, chosen on validation data by random order.

Three source datasets are for this alone: they are neither trained on nor tested in the study. The
rate taken is the one with the lowest final loss among those whose final loss is no higher than at
any evaluation before it; more epochs are taken only where they lower it further. `python -m
benchmarks.learning_rate` prints the table; a run takes minutes, and finished ones are read.
"""

from __future__ import annotations

import argparse
import sys

import pandas as pd

from tma.runs.config import RunConfig
from tma.runs.parallel import make_runs
from tma.runs.store import stored

RATES = (5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4)
EPOCHS = (1, 2)


def settings(model: str, rate: float, epochs: int) -> RunConfig:
    given = {"fold": "validation", "learning_rate": rate, "epochs": epochs}
    return RunConfig.at("study", order="random", model=model, pool=1024, **given)


def row(model: str, rate: float, epochs: int) -> dict[str, object]:
    run = stored(settings(model, rate, epochs))
    assert run is not None
    means = run.losses.groupby("step")["loss"].mean()
    curve = {f"step {step}": round(loss, 3) for step, loss in means.items()}
    falls = bool(means.iloc[-1] <= means.min() + 1e-9)
    kept = {"falls to the end": falls, "seconds": run.manifest["seconds"]}
    return {"model": model, "rate": rate, "epochs": epochs, **curve, **kept}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["gemma", "llama"])
    parser.add_argument("--rates", nargs="+", type=float, default=RATES)
    parser.add_argument("--epochs", nargs="+", type=int, default=[1])
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    wanted = [(m, r, e) for m in options.models for e in options.epochs for r in options.rates]
    configs = [settings(*one) for one in wanted]
    for config in make_runs([c for c in configs if stored(c) is None], options.jobs):
        sys.stderr.write(f"finished: {config.model}, {config.learning_rate:g}\n")
    table = pd.DataFrame([row(*one) for one in wanted])
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
