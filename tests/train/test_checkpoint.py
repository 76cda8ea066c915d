from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

import tma
from tests.conftest import stopped
from tma.errors import OrderError, StateError
from tma.runs import store as runs
from tma.runs.config import RunConfig
from tma.store import file_digest
from tma.train import checkpoint, loop
from tma.train.checkpoint import History, States
from tma.train.encode import Encoded


def uninterrupted(config: RunConfig) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables of a run without any state; the run itself is forgotten."""
    run = tma.run(config, state_minutes=None)
    tables = run.losses, run.training
    (run.folder / "manifest.json").unlink()
    return tables


def interrupted(config: RunConfig, at: int) -> Path:
    """Stop a run after its step `at`; return its folder."""
    stopped(config, at)
    return runs.resolve(config).folder


def entry(config: RunConfig) -> runs.Entry:
    (found,) = [e for e in runs.runs() if e.key == runs.resolve(config).key]
    return found


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of each training step from now on; to be cleared."""
    made: list[int] = []
    step = loop._Loop.step

    def noted(self: loop._Loop, number: int, *given: object) -> float:
        made.append(number)
        return float(step(self, number, *given))

    monkeypatch.setattr(loop._Loop, "step", noted)
    return made


def rewrite(state: Path, **changes: object) -> None:
    """Write another history into a state, as if it had been saved so."""
    file = state / "history.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    sums = json.loads((state / "sums.json").read_text()) | {file.name: file_digest(file)}
    (state / "sums.json").write_text(json.dumps(sums))


def finish_equals(
    config: RunConfig, tables: tuple[pd.DataFrame, pd.DataFrame], state_minutes: float = 10
) -> tma.Run:
    run = tma.run(config, state_minutes=state_minutes)
    pd.testing.assert_frame_equal(run.losses, tables[0], check_exact=True)
    pd.testing.assert_frame_equal(run.training, tables[1], check_exact=True)
    assert not [p for p in run.folder.iterdir() if p.is_dir()]  # neither state nor draft
    return run


def test_an_interrupted_run_goes_on_where_it_was(config: RunConfig, steps: list[int]) -> None:
    # The last batch of an epoch has two instances.
    config = replace(config, epochs=2, limit=17, seed=101)
    tables = uninterrupted(config)
    folder = interrupted(config, at=7)
    assert sorted(p.name for p in folder.glob("state-*")) == ["state-00000006", "state-00000007"]
    assert (entry(config).status, entry(config).step) == ("interrupted", 7)
    at_four = tables[0][tables[0]["step"] == 4]
    assert entry(config).loss == pytest.approx(at_four["loss"].mean())
    assert json.loads((folder / "state-00000007" / "history.json").read_text())["seconds"] > 0
    rewrite(folder / "state-00000007", seconds=1000.0)
    (folder / "state-note.txt").write_text("not ours")
    steps.clear()
    run = finish_equals(config, tables)
    assert steps == [8, 9, 10, 11, 12]
    assert run.manifest["seconds"] > 1000
    assert run.manifest["processes"] == 1
    assert run.order == run.order[:17] * 2
    assert (entry(config).status, entry(config).step) == ("finished", 12)


@pytest.mark.parametrize("damage", ["altered", "cut", "no sums", "empty sums"])
def test_a_damaged_state_is_passed_over_with_a_warning(
    config: RunConfig, steps: list[int], caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    config = replace(config, seed=110 + len(damage))
    tables = uninterrupted(config)
    newest = interrupted(config, at=5) / "state-00000005"
    file = newest / ("sums.json" if "sums" in damage else "optimizer.safetensors")
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    if damage == "no sums":
        file.unlink()
    else:
        file.write_bytes({"altered": raw, "cut": raw[:-100], "empty sums": b"{}"}[damage])
    steps.clear()
    with caplog.at_level(logging.WARNING):
        finish_equals(config, tables, state_minutes=0)  # step 5 is saved again
    assert f"{file.name} of {newest} is damaged" in caplog.text
    assert steps[0] == 5


def test_a_state_of_another_order_fails_the_run(config: RunConfig) -> None:
    config = replace(config, seed=15)
    folder = interrupted(config, at=2)
    rewrite(folder / "state-00000002", consumed=["x"] * 6)
    with pytest.raises(OrderError, match="place 0: consumed x, the order says"):
        tma.run(config)
    assert {p.name for p in folder.iterdir()} == {"config.json", "failed.json"}
    tma.run(config)  # from the start


def test_states_are_due_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states, never = States(tmp_path, minutes=10), States(tmp_path, minutes=None)
    assert not states.due(last=False)
    later = time.monotonic() + 601
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert states.due(last=False)
    assert not never.due(last=False)
    assert not states.due(last=True)
    (tmp_path / "state-00000003").mkdir()
    assert states.due(last=True)


def test_tied_weights_are_saved_once_and_restored(tmp_path: Path, config: RunConfig) -> None:
    rows = [Encoded(str(k), None, tuple(range(k, k + 9)), 4) for k in range(6)]

    def trained() -> History:
        torch.manual_seed(0)
        shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
        heads = {"num_attention_heads": 2, "tie_word_embeddings": True}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=64, **shape, **heads))
        return loop.train(model, rows, rows[:1], config, states=States(tmp_path, minutes=0))

    without_a_stop = trained()
    weights = load_file(tmp_path / "state-00000001" / "model.safetensors")
    assert weights["model.embed_tokens.weight"].shape == (64, 16)
    assert "lm_head.weight" not in weights
    shutil.rmtree(tmp_path / "state-00000002")
    again = trained()
    assert (again.steps, again.losses) == (without_a_stop.steps, without_a_stop.losses)


def test_results_that_find_no_room_cost_no_training(
    config: RunConfig, steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, seed=18)
    tables = uninterrupted(config)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(pd.DataFrame, "to_parquet", full)
        with pytest.raises(StateError, match=r"losses\.parquet could not .*: No space left on"):
            tma.run(config, state_minutes=0)
    steps.clear()
    finish_equals(config, tables)
    assert steps == []


def test_a_full_disk_ends_with_a_message_and_the_state_before_it(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, seed=5)
    tables = uninterrupted(config)
    save, written = checkpoint.save_file, list[int]()

    def full(*given: Any) -> None:
        written.append(1)
        if len(written) > 7:  # the third state, after its first file
            raise OSError(28, "No space left on device")
        save(*given)

    message = r"state-00000003 could not be written: No space left on device\. Free space there"
    with monkeypatch.context() as patched, pytest.raises(StateError, match=message):
        patched.setattr(checkpoint, "save_file", full)
        tma.run(config, state_minutes=0)
    assert (entry(config).status, entry(config).step) == ("interrupted", 2)
    finish_equals(config, tables)


# One process imports everything; its children train, and are killed at random moments.
DRIVER = """
import json, os, random, signal, sys, time
import torch, tma, tma.train.loop
from tma.runs.config import RunConfig
torch.set_num_threads(1)
config, kills = RunConfig.from_json(json.loads(sys.argv[1])), int(sys.argv[2])
moments, killed = random.Random(0), 0
while True:
    child = os.fork()
    if not child:
        torch.set_num_threads(1)
        tma.run(config, state_minutes=0)
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
    message = r"step \d+: (test )?(loss|gradient norm) is (nan|inf)"
    for _ in range(2):
        with pytest.raises(tma.TmaError, match=message):
            tma.run(config, state_minutes=0)
        failed = entry(config)
        assert (failed.status, failed.step) == ("failed", 1)
        assert failed.loss is not None
        assert (failed.error or "").startswith("step 2: ")
    folder = runs.resolve(config).folder
    assert {p.name for p in folder.iterdir()} == {"config.json", "failed.json"}
