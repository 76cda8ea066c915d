"""A run is a folder named by what decides its numbers: the settings, the data, the weights.

The manifest is written last, so that its existence means complete. A second caller of the same run
waits for the lock and reads the result.
"""

from __future__ import annotations

import gc
import json
import platform
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tma import data
from tma.config import RunConfig
from tma.embed import MiniLM
from tma.receipt import Receipt, read_receipt
from tma.store import cache_dir, canonical_json, digest, is_locked, locked

if TYPE_CHECKING:
    import pandas as pd
    from accelerate import PartialState
    from datasets import Dataset


FORMAT = 4
"""Raised when the same settings would give other numbers than before."""


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path
    """Where it is stored."""

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Settings, fingerprints, versions, hardware, seconds."""
        found: dict[str, Any] = json.loads((self.folder / "manifest.json").read_text("utf-8"))
        return found

    @property
    def config(self) -> RunConfig:
        """The settings, with precision resolved."""
        return RunConfig.from_json(self.manifest["config"])

    @cached_property
    def losses(self) -> pd.DataFrame:
        """One row a (step, test instance): step, id, task, loss_sum, tokens, and loss.

        `loss_sum` is summed over the response tokens, in nats; `loss` is loss_sum / tokens.
        """
        import pandas as pd

        table = pd.read_parquet(self.folder / "losses.parquet")
        return table.assign(loss=table["loss_sum"] / table["tokens"])

    @cached_property
    def training(self) -> pd.DataFrame:
        """One row a step: step, loss (nats a response token), learning_rate, tokens."""
        import pandas as pd

        return pd.read_parquet(self.folder / "training.parquet")

    @cached_property
    def answers(self) -> pd.DataFrame:
        """One row a (step of `generate_at`, test instance): step, id, task, answer, scores.

        rouge1, rougeL and exact_match from 0 to 1; reward where a reward model was given.
        """
        import pandas as pd

        return pd.read_parquet(self.folder / "answers.parquet")

    @property
    def order(self) -> list[str]:
        """Ids of the training instances in the order in which they were consumed."""
        found: list[str] = json.loads((self.folder / "order.json").read_text("utf-8"))["ids"]
        return found * self.config.epochs

    @property
    def receipt(self) -> Receipt:
        """What made the order; read after checking that `order` is the one it is for."""
        return read_receipt(self.folder / "order.json")


def run(
    config: RunConfig,
    *,
    state_minutes: float | None = 10,
    state_steps: int | None = None,
    save_model: bool = False,
) -> Run:
    """Return the finished run of these settings: from the store, or made now.

    Under `accelerate launch` all processes call it with the same settings, and train together. A
    run that was interrupted goes on from its last state; on the CPU it ends with the numbers of an
    uninterrupted run, bit for bit.

    Args:
        config: the settings; they and the data name the run.
        state_minutes: time between two saved states; None: none is saved.
        state_steps: steps between two saved states, instead of `state_minutes`.
        save_model: keep the trained model in the run's folder `model`, which
            `AutoModelForCausalLM.from_pretrained` loads. A finished run without it is made again.

    Raises:
        AssetError, DataError, ParameterError: an input cannot be had.
        OrderError, TrainingError: training went wrong; the run is marked failed, and made again
            from the start when it is asked for again.
        StateError: the disk took no state; the last one is whole, and the next call goes on from
            it.
    """
    config, processes = _resolved(config), _processes()
    train, test = (data.load(config.dataset, split=s) for s in ("train", "test"))
    inputs = _inputs(config, train, test)
    key = digest(canonical_json({"config": config.to_json(), "inputs": inputs, "format": FORMAT}))
    folder = cache_dir() / "runs" / key[:20]
    if not _finished(folder, save_model):
        with locked(folder) if processes.is_main_process else nullcontext():
            processes.wait_for_everyone()  # until the main process has the lock
            if not _finished(folder, save_model):
                from tma.making import Making
                from tma.state import States

                states = States(folder, state_minutes, state_steps)
                made = Making(folder, config, inputs, train, test, states)
                made.make(save_model=save_model)
                # The model and its optimizer hold each other in cycles; the next run of the same
                # process must not have to wait for their memory.
                gc.collect()
            processes.wait_for_everyone()
    return Run(folder)


def _finished(folder: Path, save_model: bool) -> bool:
    """Return whether a run is complete, with its model if that is wanted."""
    return (folder / "manifest.json").is_file() and (not save_model or (folder / "model").is_dir())


def _processes() -> PartialState:
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available())


def _resolved(config: RunConfig) -> RunConfig:
    if config.precision != "auto":
        return config
    from tma.evaluate import resolve_precision

    return replace(config, precision=resolve_precision("auto", _processes().device))


def _inputs(config: RunConfig, train: Dataset, test: Dataset) -> dict[str, str]:
    from tma.models import fingerprint

    return {
        "train": data.fingerprint(train),
        "test": data.fingerprint(test),
        "model": fingerprint(config.model),
        "encoder": MiniLM().name,
    }


@dataclass(frozen=True)
class Entry:
    """One line of the list of runs."""

    key: str
    """Name of the run's folder."""
    config: RunConfig
    """Its settings."""
    status: str
    """finished, running, interrupted (goes on when it is asked for again), or failed."""
    step: int | None
    """Last step that is stored."""
    loss: float | None
    """Mean test loss of the last stored evaluation, in nats a token."""


def runs() -> list[Entry]:
    """Return all runs of the cache, finished or not, by name."""
    return [_entry(path.parent) for path in sorted(cache_dir().glob("runs/*/config.json"))]


def _entry(folder: Path) -> Entry:
    from tma.state import States

    config = RunConfig.from_json(json.loads((folder / "config.json").read_text("utf-8")))
    losses: list[Any] = []
    step = None
    if (folder / "manifest.json").is_file():
        status, finished = "finished", Run(folder)
        step, losses = finished.manifest["steps"], finished.losses.to_dict("records")
    elif (folder / "failed.json").is_file():
        status = "failed"
    else:
        status = "running" if is_locked(folder) else "interrupted"
        history = States(folder).last()
        if history is not None:
            step, losses = len(history.steps), history.losses
    last = [e["loss_sum"] / e["tokens"] for e in losses if e["step"] == losses[-1]["step"]]
    return Entry(folder.name, config, status, step, sum(last) / len(last) if last else None)


def hardware() -> str:
    """Return what computes, in words: the GPU's name, or the number of CPU threads."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()} (CUDA {torch.version.cuda})"
    return f"{torch.get_num_threads()} CPU threads, {platform.machine()}"
