"""Runs of several processes, by `accelerate launch` as a user would start them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

import tma
from tests.train.test_checkpoint import interrupted, uninterrupted
from tma.runs import store as runs
from tma.runs.config import RunConfig


@pytest.fixture
def config(twelve_steps: RunConfig) -> RunConfig:
    return twelve_steps


def launched(config: RunConfig, processes: int) -> tma.Run:
    """Make a run by several processes, as a user would."""
    done = launch(config, processes, ["-m", "tma.cli"])
    assert done.returncode == 0, done.stderr[-3000:]
    run = tma.run(config)
    assert done.stdout.count(str(run.folder)) == 1  # one process says it
    return run


def launch(
    config: RunConfig, processes: int, program: list[str], port: int = 20000 + os.getpid() % 9999
) -> subprocess.CompletedProcess[str]:
    launcher = str(Path(sys.executable).with_name("accelerate"))
    given = {k: v for k, v in config.to_json().items() if k not in ("order", "model", "seed")}
    settings = [f"--set={name}={json.dumps(value)}" for name, value in given.items()]
    command = [launcher, "launch", "--multi_gpu", "--num_processes", str(processes)]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += [*program, "train", "--order", config.order, "--model", config.model]
    return subprocess.run(
        [*command, f"--seed={config.seed}", *settings],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ
        | {"OMP_NUM_THREADS": "1", "MASTER_PORT": str(port)}
        | {"PYTHONPATH": str(Path(tma.__file__).parents[1])},  # for a program that is a file
    )


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_several_processes_give_the_steps_and_losses_of_one(
    config: RunConfig, processes: int
) -> None:
    # Batches of 5, 5, 5, 1: the last leaves processes without an instance.
    config = replace(
        config, seed=20 + processes, batch_size=5, limit=16, epochs=2, learning_rate=1e-3
    )
    config = replace(config, generate_at=[0, 8] if processes == 2 else (), max_new_tokens=3)
    several = launched(config, processes)
    answers = several.answers if config.generate_at else None
    order, losses, training = several.order, several.losses, several.training
    assert several.manifest["steps"] == 8
    assert several.manifest["processes"] == processes
    (several.folder / "manifest.json").unlink()
    one = tma.run(config)
    assert one.order == order
    keys = ["step", "id", "task", "tokens"]
    pd.testing.assert_frame_equal(losses[keys], one.losses[keys])
    assert (losses["loss"] - one.losses["loss"]).abs().max() < 1e-4
    assert (training["loss"] - one.training["loss"]).abs().max() < 1e-4
    if answers is not None:
        pd.testing.assert_frame_equal(answers, one.answers, check_exact=False)


def test_two_processes_go_on_and_test_with_one_instance(config: RunConfig, tmp_path: Path) -> None:
    rows = [json.loads(row) for row in Path(config.dataset).read_text().splitlines()[:13]]
    alone = tmp_path / "alone.jsonl"  # without tasks, one in ten is held out
    alone.write_text("".join(json.dumps(row | {"task": None}) + "\n" for row in rows))
    config = replace(config, dataset=str(alone), seed=31, learning_rate=1e-3, limit=12)
    tables = uninterrupted(config)
    assert set(tables[0].groupby("step").size()) == {1}
    interrupted(config, at=2)
    run = launched(config, 2)
    assert run.manifest["steps"] == 4
    assert run.training["loss"][:2].tolist() == tables[1]["loss"][:2].tolist()
    assert (run.losses["loss"] - tables[0]["loss"]).abs().max() < 1e-4


SPOILT_ON_THE_SECOND = """
import sys
import numpy as np
from accelerate import PartialState
import tma.train.loop
losses = tma.train.loop.response_losses
def spoilt(*given, **named):
    return losses(*given, **named) * (np.nan if PartialState().process_index else 1)
tma.train.response_losses = spoilt
from tma.cli import main
sys.exit(main())
"""


@pytest.mark.slow
def test_a_loss_spoilt_in_another_process_marks_the_run_failed(
    config: RunConfig, tmp_path: Path
) -> None:
    config = replace(config, seed=32)
    script = tmp_path / "spoilt.py"
    script.write_text(SPOILT_ON_THE_SECOND)
    done = launch(config, 2, [str(script)])
    assert done.returncode == 1
    assert "TrainingError: step 0: test loss is nan; instances [" in done.stderr
    (entry,) = [e for e in runs.runs() if e.config.get("seed") == 32]
    assert (entry.status, entry.step) == ("failed", 0)


@pytest.mark.slow
def test_jobs_of_two_processes_that_want_one_run_make_it_once(config: RunConfig) -> None:
    config = replace(config, seed=33, epochs=20)
    with ThreadPoolExecutor() as pool:
        jobs = [pool.submit(launch, config, 2, ["-m", "tma.cli"], port) for port in (20001, 20002)]
    ended = [job.result() for job in jobs]
    assert [done.returncode for done in ended] == [0, 0]
    assert ended[0].stdout == ended[1].stdout
    assert sorted("waiting for another process" in done.stderr for done in ended) == [False, True]
