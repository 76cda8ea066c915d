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

# accelerate splits models over GPUs alone; torch's FSDP2 itself also runs on CPUs.
SHARDED = """
import sys
import torch
from accelerate import Accelerator
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from tma.cli import main

prepare = Accelerator.prepare

def sharded(self, model, optimizer):
    mesh = init_device_mesh("cpu", (self.num_processes,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model, prepare(self, torch.optim.AdamW(model.parameters(), weight_decay=0.0))

Accelerator.prepare = sharded
sys.argv.append("--state-minutes=0")
sys.exit(main())
"""
NAN_IN_THE_SECOND = """
import sys
import numpy as np
from accelerate import PartialState
from tma.cli import main
from tma.train import loop

losses = loop.response_losses
loop.response_losses = lambda *given, **named: (
    losses(*given, **named) * (np.nan if PartialState().process_index else 1)
)
sys.exit(main())
"""


@pytest.fixture
def config(config: RunConfig) -> RunConfig:
    return replace(config, learning_rate=1e-3)


def launch(
    config: RunConfig, processes: int, program: str | Path = "", port: int = 0
) -> subprocess.CompletedProcess[str]:
    given = {k: v for k, v in config.to_json().items() if k not in ("order", "model", "seed")}
    settings = [f"--set={name}={json.dumps(value)}" for name, value in given.items()]
    command = [str(Path(sys.executable).with_name("accelerate")), "launch", "--multi_gpu"]
    command += ["--num_processes", str(processes), "--num_machines", "1"]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    command += [str(program)] if program else ["-m", "tma.cli"]
    command += ["train", "--order", config.order, "--model", config.model]
    return subprocess.run(
        [*command, f"--seed={config.seed}", *settings],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ
        | {"OMP_NUM_THREADS": "1", "MASTER_PORT": str(port or 20000 + os.getpid() % 9999)}
        | {"PYTHONPATH": str(Path(tma.__file__).parents[1])},  # for a program that is a file
    )


def launched(config: RunConfig, processes: int, program: str | Path = "") -> tma.Run:
    """Make a run by several processes."""
    done = launch(config, processes, program)
    assert done.returncode == 0, done.stderr[-3000:]
    run = tma.run(config)
    assert done.stdout.count(str(run.folder)) == 1  # one process says it
    return run


@pytest.mark.parametrize(
    ("processes", "program"),
    [(2, ""), (2, SHARDED), pytest.param(3, "", marks=pytest.mark.slow)],
    ids=["copies of the model", "shards of the model", "three processes"],
)
def test_several_processes_give_the_steps_and_losses_of_one(
    config: RunConfig, tmp_path: Path, processes: int, program: str
) -> None:
    # Batches of 5, 5, 5 and 1: processes have unequal numbers of micro-batches, some no instance.
    config = replace(config, seed=20 + processes + len(program), batch_size=5, limit=16, epochs=2)
    config = replace(config, max_tokens=32, micro_tokens=32, generate_at=(0, 8), max_new_tokens=3)
    script = tmp_path / "program.py"
    script.write_text(program)
    several = launched(config, processes, script if program else "")
    order, losses, training = several.order, several.losses, several.training
    answers = several.answers
    assert (several.manifest["steps"], several.manifest["processes"]) == (8, processes)
    (several.folder / "manifest.json").unlink()
    one = tma.run(config)
    assert one.order == order
    keys = ["step", "id", "task", "tokens"]
    pd.testing.assert_frame_equal(losses[keys], one.losses[keys])
    assert (losses["loss"] - one.losses["loss"]).abs().max() < 1e-4
    assert (training["loss"] - one.training["loss"]).abs().max() < 1e-4
    pd.testing.assert_frame_equal(answers, one.answers, check_exact=False)


def test_two_processes_go_on_and_test_with_one_instance(config: RunConfig, tmp_path: Path) -> None:
    rows = [json.loads(row) for row in Path(config.dataset).read_text().splitlines()[:13]]
    alone = tmp_path / "alone.jsonl"  # without tasks, one in ten is held out
    alone.write_text("".join(json.dumps(row | {"task": None}) + "\n" for row in rows))
    config = replace(config, dataset=str(alone), seed=31, limit=12)
    tables = uninterrupted(config)
    assert set(tables[0].groupby("step").size()) == {1}
    interrupted(config, at=2)
    run = launched(config, 2)
    assert run.manifest["steps"] == 4
    assert run.training["loss"][:2].tolist() == tables[1]["loss"][:2].tolist()
    assert (run.losses["loss"] - tables[0]["loss"]).abs().max() < 1e-4


@pytest.mark.slow
def test_a_nan_loss_in_another_process_marks_the_run_failed(
    config: RunConfig, tmp_path: Path
) -> None:
    config = replace(config, seed=32)
    script = tmp_path / "nan.py"
    script.write_text(NAN_IN_THE_SECOND)
    done = launch(config, 2, script)
    assert done.returncode == 1
    assert "TrainingError: step 0: test loss is nan; instances [" in done.stderr
    (entry,) = [e for e in runs.runs() if e.config.get("seed") == 32]
    assert (entry.status, entry.step) == ("failed", 0)


@pytest.mark.slow
def test_jobs_of_two_processes_that_want_one_run_make_it_once(config: RunConfig) -> None:
    config = replace(config, seed=33, epochs=20)
    with ThreadPoolExecutor() as pool:
        jobs = [pool.submit(launch, config, 2, "", port) for port in (20001, 20002)]
    ended = [job.result() for job in jobs]
    assert [done.returncode for done in ended] == [0, 0]
    assert ended[0].stdout == ended[1].stdout
    assert any("waiting for another process" in done.stderr for done in ended)
