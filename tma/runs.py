"""A run is a folder named by what decides its numbers: the settings, the data, the weights.

The manifest is written last, so that its existence means complete. A second caller of the same run
waits for the lock and reads the result.
"""

from __future__ import annotations

import gc
import json
import platform
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import Timeout

from tma import data
from tma.config import RunConfig, check_positive
from tma.embed import MiniLM
from tma.errors import DataError, ParameterError, check_count
from tma.receipt import Receipt, read_ids, read_receipt
from tma.store import cache_dir, canonical_json, digest, file_digest, is_locked, locked
from tma.turns import alone, processes, said

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset


FORMAT = 8
"""Raised when the same settings would give other numbers than before."""


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path
    """Where it is stored."""

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Settings, fingerprints, versions, hardware, processes, seconds of all sessions."""
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
        """One row a (step answered, test instance): step, id, task, answer, scores.

        rouge1, rougeL and exact_match from 0 to 1; reward where a reward model was given.

        Raises:
            ParameterError: the run was to make no answers.
        """
        import pandas as pd

        if not self.manifest["config"]["generate_at"]:
            raise ParameterError(
                f"generate_at=() of run {self.folder.name} asks for no answers. Make a run with "
                "steps in generate_at, such as [0, 10]."
            )
        return pd.read_parquet(self.folder / "answers.parquet")

    @property
    def order(self) -> list[str]:
        """Ids of the training instances in the order in which they were consumed.

        Raises:
            DataError: the order or its receipt cannot be read.
            OrderError: the stored ids are not those of the receipt.
        """
        # Not by `config`, which looks for model and data: they may be gone.
        epochs: int = self.manifest["config"]["epochs"]
        return read_ids(self.folder / "order.json") * epochs

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
        AssetError, DataError, ParameterError: an input cannot be had, or a setting not be used.
        OrderError, TrainingError: training went wrong; the run is marked failed, and made again
            from the start when it is asked for again.
        StateError: the disk took no state, no results, or nothing for the cache; the last state is
            whole, and the next call goes on from it.
    """
    if state_steps is not None:
        check_count("state_steps", state_steps, 1)
    if state_minutes is not None:
        check_positive("state_minutes", state_minutes, zero=True)
    named = _named(config)
    folder = named.folder
    if not said(_finished(folder, save_model)):
        with alone(folder):
            if not said(_finished(folder, save_model)):
                _make(named, state_minutes, state_steps, save_model)
            processes().wait_for_everyone()
    if processes().is_main_process:
        _tidy(folder)
    return Run(folder)


def stored(config: RunConfig) -> Run | None:
    """Return the finished run of these settings if it is in the store; nothing is made.

    Raises:
        AssetError, DataError, ParameterError: as `run`.
    """
    folder = _named(config).folder
    return Run(folder) if complete(folder) else None


def complete(folder: Path) -> bool:
    """Return whether a run's manifest can be read, and tables and settings are those it is of."""
    try:
        manifest, config = (
            json.loads((folder / name).read_text("utf-8"))
            for name in ("manifest.json", "config.json")
        )
        whole: bool = manifest["sums"] == sums(folder, bool(config["generate_at"]))
    except (OSError, ValueError, LookupError, TypeError):
        return False
    return whole and manifest["config"] == config


def sums(folder: Path, answered: bool) -> dict[str, str]:
    """Return the SHA-256 of a run's tables and of its order, by the names of the files.

    Raises:
        OSError: one of them is not there.
    """
    names = ["losses.parquet", "training.parquet", "order.json", "order.receipt.json"]
    names += ["answers.parquet"] if answered else []
    return {name: file_digest(folder / name) for name in names}


def last_loss(losses: Sequence[dict[str, Any]]) -> float | None:
    """Return the mean test loss of the last evaluation, in nats a token; None without one."""
    last = [e["loss_sum"] / e["tokens"] for e in losses if e["step"] == losses[-1]["step"]]
    return sum(last) / len(last) if last else None


@dataclass(frozen=True)
class _Named:
    """What decides a run's numbers, and the folder that is named by it."""

    config: RunConfig
    inputs: dict[str, str]
    train: Dataset
    test: Dataset

    @property
    def folder(self) -> Path:
        named = {"config": self.config.to_json(), "inputs": self.inputs, "format": FORMAT}
        return cache_dir() / "runs" / digest(canonical_json(named))[:20]


def _named(config: RunConfig) -> _Named:
    config = _resolved(config)
    train, test = data.load_both(config)
    if not len(train) or not len(test):
        raise DataError(
            f"dataset={config.dataset!r} has {len(train)} training and {len(test)} test instances; "
            "expected at least one of each."
        )
    return _Named(config, _inputs(config, train, test), train, test)


def _make(
    named: _Named, state_minutes: float | None, state_steps: int | None, save_model: bool
) -> None:
    from tma.making import Making
    from tma.state import States

    states = States(named.folder, state_minutes, state_steps)
    made = Making(named.folder, named.config, named.inputs, named.train, named.test, states)
    made.make(save_model=save_model)
    # The model and its optimizer hold each other in cycles; the next run of the same process must
    # not have to wait for their memory.
    gc.collect()


def _finished(folder: Path, save_model: bool) -> bool:
    """Return whether a run is complete, with its model if that is wanted."""
    return complete(folder) and (not save_model or (folder / "model").is_dir())


def _tidy(folder: Path) -> None:
    """Remove the states that a run left when it was killed after its manifest was written.

    Younger ones are of a run that is made again for its model, and goes on from them.
    """
    if not any(folder.glob("state-*")):
        return
    from tma.state import States

    with suppress(Timeout), locked(folder, 0):
        states, ended = States(folder), (folder / "manifest.json").stat().st_mtime_ns
        if all(state.stat().st_mtime_ns < ended for state in states.found()):
            states.remove()


def _resolved(config: RunConfig) -> RunConfig:
    """Return the settings with precision settled, and with local paths that hold everywhere."""
    from tma.evaluate import resolve_precision

    config = config.with_whole_paths()
    return replace(config, precision=resolve_precision(config.precision, processes().device))


def _inputs(config: RunConfig, train: Dataset, test: Dataset) -> dict[str, str]:
    from tma.models import fingerprint

    found = {
        "train": data.fingerprint(train),
        "test": data.fingerprint(test),
        "model": fingerprint(config.model),
        "encoder": MiniLM().name,
    }
    if config.generate_at:  # ids do not hold what else is right, which the scores depend on
        found["references"] = digest(canonical_json(data.references(test)))
    if config.reward_model is not None:
        found["reward_model"] = fingerprint(config.reward_model)
    return found


@dataclass(frozen=True)
class Entry:
    """One line of the list of runs."""

    key: str
    """Name of the run's folder."""
    config: dict[str, Any]
    """Its settings as they are stored; empty if they cannot be read."""
    status: str
    """finished, running, interrupted (goes on when it is asked for again), failed, or damaged (is
    made again then)."""
    step: int | None
    """Last step that is stored, or of a failed run the last whole one."""
    loss: float | None
    """Mean test loss of the last stored evaluation, in nats a token."""
    error: str | None = None
    """Why a run failed."""


def runs() -> list[Entry]:
    """Return all runs of the cache, finished or not, by name."""
    return [_entry(path.parent) for path in sorted(cache_dir().glob("runs/*/config.json"))]


def _entry(folder: Path) -> Entry:
    config = dict[str, Any]()
    try:
        # Not as RunConfig: its model or data may be gone.
        config.update(json.loads((folder / "config.json").read_text("utf-8")))
        return Entry(folder.name, config, *_progress(folder))
    except (OSError, ValueError, LookupError, TypeError):
        return Entry(folder.name, config, "damaged", None, None)


def _progress(folder: Path) -> tuple[str, int | None, float | None, str | None]:
    """Return status, step, loss and error of a run."""
    from tma.state import States

    if (folder / "manifest.json").is_file():
        if not complete(folder):
            return "damaged", None, None, None
        run = Run(folder)
        losses = run.losses.to_dict("records")
        return "finished", run.manifest["steps"], last_loss(losses), None  # type: ignore[arg-type]
    if (folder / "failed.json").is_file():
        found = json.loads((folder / "failed.json").read_text("utf-8"))
        return "failed", found.get("step"), found.get("loss"), found["error"]
    status = "running" if is_locked(folder) else "interrupted"
    history = States(folder).last()
    if history is None:
        return status, None, None, None
    return status, len(history.steps), last_loss(history.losses), None


def hardware() -> str:
    """Return what computes, in words: the GPU's name, or the number of CPU threads."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()} (CUDA {torch.version.cuda})"
    return f"{torch.get_num_threads()} CPU threads, {platform.machine()}"
