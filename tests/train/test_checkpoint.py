from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

import tma
from tests.conftest import stopped
from tma.errors import OrderError, StateError
from tma.runs import store as runs
from tma.runs.config import RunConfig
from tma.store import file_digest
from tma.train.checkpoint import States

SCRIPT = """
import json, sys, tma
from tma.runs.config import RunConfig
settings, options = json.loads(sys.argv[1])
tma.run(RunConfig.from_json(settings), **options)
"""


@pytest.fixture
def config(twelve_steps: RunConfig) -> RunConfig:
    return twelve_steps


def started(config: RunConfig, prelude: str = "", **options: object) -> subprocess.Popen[str]:
    given = json.dumps([config.to_json(), {"state_steps": 1} | options])
    command = [sys.executable, "-c", prelude + SCRIPT, given]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def uninterrupted(config: RunConfig) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables of a run without any state; the run itself is forgotten."""
    run = tma.run(config, state_minutes=None)
    tables = run.losses, run.training
    (run.folder / "manifest.json").unlink()
    return tables


def states(folder: Path) -> list[Path]:
    return sorted(folder.glob("state-*"))


def interrupted(config: RunConfig, at: int) -> Path:
    """Stop a run after its step `at`; return its folder."""
    stopped(config, at)
    stored = json.loads(json.dumps(config.with_whole_paths().to_json()))
    found = [e for e in runs.runs() if e.status == "interrupted"]  # of other tests too
    (entry,) = [e for e in found if e.config == stored]
    return Path(os.environ["TMA_CACHE"]) / "runs" / entry.key


def counted_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that gets the number of each training step that is made from now on."""
    loop = sys.modules["tma.train.loop"]._Loop
    made: list[int] = []
    step = loop.step

    def noted(self: object, number: int, *given: object) -> float:
        made.append(number)
        return float(step(self, number, *given))

    monkeypatch.setattr(loop, "step", noted)
    return made


def rewritten(state: Path, **changes: object) -> None:
    """Write another history into a state, as if it had been saved so."""
    file = state / "history.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    sums = json.loads((state / "sums.json").read_text()) | {file.name: file_digest(file)}
    (state / "sums.json").write_text(json.dumps(sums))


def finish_equals(
    config: RunConfig, tables: tuple[pd.DataFrame, pd.DataFrame], state_steps: int = 100
) -> tma.Run:
    run = tma.run(config, state_steps=state_steps)
    pd.testing.assert_frame_equal(run.losses, tables[0], check_exact=True)
    pd.testing.assert_frame_equal(run.training, tables[1], check_exact=True)
    assert [p for p in states(run.folder) if p.is_dir()] == []
    assert not list(run.folder.glob(".new-*"))
    return run


def test_an_interrupted_run_goes_on_where_it_was(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, epochs=2, limit=17, seed=1)  # the last batch of an epoch has two
    tables = uninterrupted(config)
    folder = interrupted(config, at=7)
    assert [p.name for p in states(folder)] == ["state-00000006", "state-00000007"]
    (entry,) = [e for e in runs.runs() if e.key == folder.name]
    assert (entry.status, entry.step) == ("interrupted", 7)
    at_four = tables[0][tables[0]["step"] == 4]
    assert entry.loss == pytest.approx(at_four["loss"].mean())
    assert json.loads((folder / "state-00000007" / "history.json").read_text())["seconds"] > 0
    rewritten(folder / "state-00000007", seconds=1000.0)
    (folder / "state-note.txt").write_text("not ours")
    made = counted_steps(monkeypatch)
    run = finish_equals(config, tables)
    assert made == [8, 9, 10, 11, 12]
    assert run.manifest["seconds"] > 1000
    assert run.manifest["processes"] == 1
    assert run.order == run.order[:17] * 2
    (entry,) = [e for e in runs.runs() if e.key == folder.name]
    assert (entry.status, entry.step) == ("finished", 12)


@pytest.mark.parametrize("damage", ["altered", "cut", "no sums", "empty sums"])
def test_a_damaged_state_is_passed_over_with_a_warning(
    config: RunConfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    damage: str,
) -> None:
    seed = {"altered": 2, "cut": 3, "no sums": 4, "empty sums": 10}[damage]
    config = replace(config, seed=seed)
    tables = uninterrupted(config)
    newest = states(interrupted(config, at=5))[-1]
    file = newest / "optimizer.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    if damage == "no sums":
        (newest / "sums.json").unlink()
    elif damage == "empty sums":
        (newest / "sums.json").write_text("{}")
    else:
        file.write_bytes(raw if damage == "altered" else raw[:-100])
    made = counted_steps(monkeypatch)
    with caplog.at_level(logging.WARNING):
        finish_equals(config, tables, state_steps=1)  # step 5 is saved again
    named = "sums.json" if "sums" in damage else "optimizer.safetensors"
    assert f"{named} of {newest} is damaged" in caplog.text
    assert made[0] == 5


def test_damaged_states_do_not_crowd_out_those_saved_after_them(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, seed=14)
    tables = uninterrupted(config)
    folder = interrupted(config, at=5)
    for state in states(folder):
        (state / "model.safetensors").write_bytes(b"")
    interrupted(config, at=3)  # from the beginning again
    assert [p.name for p in states(folder)] == ["state-00000002", "state-00000003"]
    made = counted_steps(monkeypatch)
    finish_equals(config, tables, state_steps=1)
    assert made[0] == 4


def test_a_state_of_another_order_fails_the_run(config: RunConfig) -> None:
    config = replace(config, seed=15)
    folder = interrupted(config, at=2)
    rewritten(states(folder)[-1], consumed=["x"] * 6)
    with pytest.raises(OrderError, match="place 0: consumed x, the order says"):
        tma.run(config)
    assert {p.name for p in folder.iterdir()} == {"config.json", "failed.json"}
    tma.run(config)  # from the start


def test_adafactor_goes_on_where_it_was(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(config, seed=16, optimizer="adafactor")
    tables = uninterrupted(config)
    interrupted(config, at=5)
    made = counted_steps(monkeypatch)
    finish_equals(config, tables)
    assert made[0] == 6


def test_states_are_saved_by_the_clock(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(config, seed=17)
    saved: list[int] = []
    write = States._write
    monkeypatch.setattr(
        States, "_write", lambda self, step, *given: (saved.append(step), write(self, step, *given))
    )
    folder = tma.run(config, state_minutes=1000).folder
    assert saved == []
    (folder / "manifest.json").unlink()
    tma.run(config, state_minutes=0)
    assert saved == list(range(1, 13))


def test_results_that_find_no_room_cost_no_training(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, seed=18)
    tables = uninterrupted(config)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(pd.DataFrame, "to_parquet", full)
        with pytest.raises(StateError, match=r"results could not .* training goes on from step 12"):
            tma.run(config, state_steps=5)
    made = counted_steps(monkeypatch)
    finish_equals(config, tables)
    assert made == []


FULL = """
import resource
from tma.train.checkpoint import States
save, calls = States.save, []
def full(self, *given):
    calls.append(1)
    if len(calls) == 3:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
    save(self, *given)
States.save = full
"""


def test_a_full_disk_ends_with_a_message_and_the_state_before_it(config: RunConfig) -> None:
    config = replace(config, seed=5)
    tables = uninterrupted(config)
    process = started(config, FULL)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 1
    last = said.strip().splitlines()[-1]
    assert "StateError: the state of step 3 could not be written to" in last
    assert "Free space there and run again: training goes on from step 2" in last
    stopped = [e for e in runs.runs() if e.status == "interrupted"]
    (entry,) = [e for e in stopped if e.config["seed"] == 5]
    assert entry.step == 2
    finish_equals(config, tables)


FULL_EVERYWHERE = """
import json, resource, sys
from dataclasses import replace
import tma, tma.runs.execute
from tma.runs.config import RunConfig
from tma.errors import StateError
from tma.runs.execute import RunExecutor

def sized(most):
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))

def said(call):
    try:
        call()
    except Exception as error:
        sized(-1)
        print(type(error).__name__, error, flush=True)

class Encoder:
    name = "all ones"
    def encode(self, texts):
        sized(200)
        import numpy as np
        return np.ones((len(texts), 384), dtype=np.float32)

def full(method):
    def then(self, *given):
        sized(0)
        method(self, *given)
        sized(-1)
    return then

config = RunConfig.from_json(json.loads(sys.argv[1]))
sized(50)
said(lambda: tma.load(config.dataset, split="train"))
said(lambda: tma.embed(["a", "b"], Encoder()))
begin = RunExecutor._begin
RunExecutor._begin = full(begin)
said(lambda: tma.run(config))
RunExecutor._begin = begin
RunExecutor._fail = full(RunExecutor._fail)
said(lambda: tma.run(replace(config, learning_rate=1e30), state_steps=1))
"""


def test_a_full_disk_is_one_message_wherever_it_is_met(
    config: RunConfig, cache: Path, tmp_path: Path
) -> None:
    for shared in ("assets", "models"):
        (tmp_path / shared).symlink_to(cache / shared)
    command = [sys.executable, "-c", FULL_EVERYWHERE, json.dumps(config.to_json())]
    here = os.environ | {"TMA_CACHE": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=here)
    assert done.returncode == 0, done.stderr[-2000:]
    data, embedding, settings, failed = done.stdout.splitlines()
    for line, place in ((data, "datasets"), (embedding, "embeddings"), (settings, "runs")):
        assert line.startswith(f"StateError {tmp_path}/{place}/")
        assert "Free space there, or name another folder (for the cache: TMA_CACHE)." in line
    assert failed.startswith("TrainingError step ")
    assert "the run is not marked failed: " in done.stderr
    assert not list(tmp_path.glob("*/.new-*"))


KILLED_WHILE_SAVING = """
import os, signal
import safetensors.torch
write, calls = safetensors.torch.save_file, []
def stop(*given):
    write(*given)
    calls.append(1)
    if len(calls) == 8:  # the third state, after its second file
        os.kill(os.getpid(), signal.SIGKILL)
safetensors.torch.save_file = stop
"""


def test_a_run_killed_while_it_saves_goes_on_from_the_state_before(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, seed=6)
    tables = uninterrupted(config)
    process = started(config, KILLED_WHILE_SAVING)
    process.communicate(timeout=600)
    assert process.returncode == -signal.SIGKILL
    made = counted_steps(monkeypatch)
    finish_equals(config, tables)
    assert made[0] == 3


# One process imports everything; its children train, and are killed at random moments.
DRIVER = """
import json, os, random, signal, sys, time
import torch, tma, tma.runs.execute
from tma.runs.config import RunConfig
torch.set_num_threads(1)
config, kills = RunConfig.from_json(json.loads(sys.argv[1])), int(sys.argv[2])
moments, killed = random.Random(0), 0
while True:
    child = os.fork()
    if not child:
        torch.set_num_threads(1)
        tma.run(config, state_steps=1)
        os._exit(0)
    if killed < kills:
        time.sleep(moments.uniform(0.5, 2.0))
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        killed += 1
    else:
        break
print(killed, os.waitstatus_to_exitcode(status))
"""


@pytest.mark.slow
def test_a_run_killed_at_twenty_moments_ends_with_the_same_numbers(config: RunConfig) -> None:
    config = replace(config, seed=7, batch_size=1, limit=36, epochs=25, eval_every=300)
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the children
    tables = uninterrupted(config)
    torch.set_num_threads(threads)
    command = [sys.executable, "-c", DRIVER, json.dumps(config.to_json()), "20"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.stdout.split() == ["20", "0"], done.stderr[-2000:]
    finish_equals(config, tables)


def test_a_loss_that_is_not_finite_marks_the_run_failed(config: RunConfig) -> None:
    config = replace(config, seed=8, learning_rate=1e30)
    for _ in range(2):
        with pytest.raises(
            tma.TmaError, match=r"step \d+: (test )?(loss|gradient norm) is (nan|inf)"
        ):
            tma.run(config, state_steps=1)
        (entry,) = [e for e in runs.runs() if e.config.get("seed") == 8]
        assert (entry.status, entry.step) == ("failed", 1)
        assert entry.loss is not None
        assert entry.error is not None
        assert entry.error.startswith("step 2: ")
    folder = Path(os.environ["TMA_CACHE"]) / "runs" / entry.key
    assert {p.name for p in folder.iterdir()} == {"config.json", "failed.json"}
