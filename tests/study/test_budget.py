from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import tiny_run
from tma.errors import ParameterError
from tma.store import write_json
from tma.study.budget import seconds_of, steps_within


def test_a_budget_sets_the_steps(cache: Path, tiny_model: Path, dataset_file: Path) -> None:
    assert [seconds_of(text) for text in ("90s", "1.5m", "2h")] == [90, 90, 7200]
    given = {"order": "random", "steps": 2, "batch_size": 4, "test_limit": 6}
    configs = [tiny_run(tiny_model, dataset_file, seed=seed, **given) for seed in (0, 1)]
    before = {*cache.glob("compare/*.json")}
    steps, note = steps_within("9h", configs, 5, most=12)
    assert steps == 12
    assert note.startswith("2 runs of 12 steps, all that the rows allow, take about ")
    (file,) = {*cache.glob("compare/*.json")} - before
    costs = json.loads(file.read_text("utf-8"))
    assert [*costs] == ["setup", "load", "step", "evaluation"]
    assert min(costs.values()) > 0
    # 90% of 100 s, less 10 + 2 * (1 + 5 * 2), leave 58 s for two runs.
    write_json(file, {"setup": 10.0, "load": 1.0, "step": 2.5, "evaluation": 2.0})
    steps, note = steps_within("100s", configs, 5, most=99)
    assert steps == 11
    parts = "setup 10 s, load 1 s, step 2.5 s, evaluation 2 s"
    assert note == f"2 runs of 11 steps take about 1.4 minutes ({parts})."
    with pytest.raises(ParameterError, match=r"budget='60s' .* 2m at least: 2 runs of 8"):
        steps_within("60s", configs, 5, most=99)
