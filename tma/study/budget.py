"""How many training steps fit a time: a step and an evaluation are measured on this machine."""

from __future__ import annotations

import gc
import json
import math
import re
import time
from collections.abc import Sequence

import numpy as np

from tma.arrange.orders import drawn
from tma.errors import wrong
from tma.runs.config import RunConfig
from tma.runs.parallel import embed_all
from tma.runs.store import ResolvedRun, hardware, resolve
from tma.store import cache_dir, digest, write_json

LEAST_STEPS = 8
MARGIN = 0.9
"""Share of the time that is planned for."""
SAMPLE = 64
"""Rows whose evaluation is timed."""


def seconds_of(budget: str) -> float:
    """Return the seconds of a time such as "90s", "30m" or "2h"."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", str(budget))
    if match is None:
        raise wrong("budget", budget, "a time such as 90s, 30m or 2h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def steps_within(
    budget: str, configs: Sequence[RunConfig], evaluations: int, most: int
) -> tuple[int, str]:
    """Return how many steps fit in runs that are made one at a time, and the estimate in words.

    `configs` are the runs at any number of steps; each evaluates so many times. What was timed
    first is stored, so that the same budget finds its runs again.

    Raises:
        ParameterError: fewer than eight fit.
    """
    begun, seconds = time.perf_counter(), seconds_of(budget)
    runs = [resolve(config) for config in configs]
    file = cache_dir() / "compare" / f"{digest(hardware(), *(run.key for run in runs))[:20]}.json"
    if file.is_file():
        costs: dict[str, float] = json.loads(file.read_text("utf-8"))
    else:
        embed_all(configs)
        costs = {"setup": time.perf_counter() - begun, **_timed(runs[-1])}
        gc.collect()  # model and optimizer refer to each other
    fixed = costs["setup"] + len(runs) * (costs["load"] + evaluations * costs["evaluation"])
    fitting = min(most, int((MARGIN * seconds - fixed) / len(runs) / costs["step"]))
    steps = max(LEAST_STEPS, fitting)
    minutes = (fixed + len(runs) * steps * costs["step"]) / 60
    parts = ", ".join(f"{name} {cost:.2g} s" for name, cost in costs.items())
    all_rows = ", all that the rows allow," if steps == most else ""
    note = f"{len(runs)} runs of {steps} steps{all_rows} take about {minutes:.1f} minutes ({parts})"
    if fitting < steps:
        least = f"{math.ceil(minutes / MARGIN)}m at least: {note}"
        remedy = "Give fewer orders, seeds or rows (test_limit), or a smaller batch_size"
        raise wrong("budget", budget, f"{least}. {remedy}")
    if not file.is_file():  # nothing is kept of a refusal: the machine may have been busy
        write_json(file, costs)
    return steps, f"{note}."


def _timed(run: ResolvedRun) -> dict[str, float]:
    """Load the model; take a step to warm up, one, three, and an evaluation of some rows.

    What one step takes beyond a third step, such as the optimizer's memory, counts as loading.
    """
    import torch

    from tma.train import models
    from tma.train.encode import encode
    from tma.train.loop import train

    config, batch, clock = run.config, run.config.batch_size, [time.perf_counter()]
    revision = run.inputs["model"].partition("@")[2] or None
    model, tokenizer = models.load(config.model, config.attention, revision)
    clock.append(time.perf_counter())
    rows, tests = (
        encode(part.select(drawn(len(part), size, config.seed)), tokenizer, config.max_tokens)
        for part, size in ((run.train, 3 * batch), (run.test, SAMPLE))
    )
    models.check_positions(model, config, rows, tests)
    with torch.random.fork_rng():
        for ordered in (rows[:batch], rows[:batch], rows, []):
            clock.append(time.perf_counter())
            train(model, ordered, tests[:1] if ordered else tests, config)
    clock.append(time.perf_counter())
    load, _, _, one, three, evaluation = np.diff(clock).tolist()
    step = (three - one) / 2 if three > one else three / 3  # unless other work came between
    whole = evaluation * len(run.test) / len(tests)
    return {"load": load + max(0, one - step), "step": step, "evaluation": whole}
