"""A run is a folder named by what decides its numbers: settings, content of data and weights.

Where model and data lie, what versions and what hardware computed it does not name it; the manifest
says so. The manifest is written last, so that its existence means complete. A second caller of the
same run waits for the lock and reads the result. Runs that come with the package
(`tma.runs.published`) are looked up before anything is trained.
"""

from __future__ import annotations

import gc
import json
import logging
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import Timeout

from tma.arrange.receipt import Receipt, read_ids, read_receipt
from tma.data import load as data
from tma.embed import MiniLM
from tma.errors import AssetError, DataError, ParameterError, TmaError, check_count
from tma.runs import published
from tma.runs.config import RunConfig, check_positive, load_both
from tma.runs.turns import alone, processes, said
from tma.store import cache_dir, canonical_json, digest, file_digest, is_locked, locked

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset


log = logging.getLogger(__name__)

SEEN = ("similarity.parquet", "distances.parquet")
"""What a published run had seen (`tma.study.exposure`), in files beside its tables."""
FORMAT = 9
"""Raised when the same settings would give other numbers than before."""


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path
    """Where it is stored."""

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Key, settings, fingerprints, receipt, versions, hardware, precision, seconds of all
        sessions, and when it was finished.
        """
        found: dict[str, Any] = json.loads((self.folder / "manifest.json").read_text("utf-8"))
        return found

    @property
    def key(self) -> str:
        """Its name: a digest of what decides its numbers."""
        return self.folder.name

    @property
    def published(self) -> bool:
        """Whether it came with the package, and was not made or imported here."""
        return self.folder.parent == published.folder()

    @property
    def config(self) -> RunConfig:
        """The settings as they were stored; model and data need not be there."""
        return RunConfig.from_json(self.manifest["config"])

    @cached_property
    def losses(self) -> pd.DataFrame:
        """One row a (step, test instance): step, id, task, source, loss_sum, tokens, and loss.

        `loss_sum` is summed over the response tokens, in nats; `loss` is loss_sum / tokens.
        """
        import pandas as pd

        table = pd.read_parquet(self.folder / "losses.parquet")
        return table.assign(loss=table["loss_sum"] / table["tokens"])

    @cached_property
    def training(self) -> pd.DataFrame:
        """One row a step: step, loss (nats a response token), learning_rate, tokens (of responses),
        effective_tasks and distinct_answers.

        effective_tasks: the exponential of the entropy of the step's tasks; distinct_answers: the
        number of different responses.
        """
        import pandas as pd

        return pd.read_parquet(self.folder / "training.parquet")

    @cached_property
    def answers(self) -> pd.DataFrame:
        """One row a (step answered, test instance): step, id, task, answer, scores.

        rouge1, rougeL and exact_match from 0 to 1; reward where a reward model was given. A
        published run has the scores without the answers.

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
    try:
        named = _named(config)
    except (AssetError, DataError, ParameterError) as error:
        return Run(_kept(config, error))
    named.check()
    folder = named.folder
    if not said(_found(named.key, save_model) is not None):
        with alone(folder):
            if not said(_found(named.key, save_model) is not None):
                _make(named, state_minutes, state_steps, save_model)
            processes().wait_for_everyone()
    if processes().is_main_process:
        _tidy(folder)
    return Run(_found(named.key) or folder)


def stored(config: RunConfig) -> Run | None:
    """Return the finished run of these settings, made here or published; nothing is made.

    Raises:
        AssetError, DataError, ParameterError: as `run`.
    """
    try:
        named = _named(config)
    except (AssetError, DataError, ParameterError) as error:
        return Run(_kept(config, error))
    named.check()
    found = _found(named.key)
    return None if found is None else Run(found)


def complete(folder: Path) -> bool:
    """Return whether a run's manifest can be read, and is that of its settings and tables."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
        whole: bool = manifest.get("key", folder.name) == folder.name
        whole = whole and manifest["sums"] == sums(folder, bool(manifest["config"]["generate_at"]))
        asked = folder / "config.json"  # a published run has none
        if asked.is_file():
            whole = whole and manifest["config"] == json.loads(asked.read_text("utf-8"))
    except (OSError, ValueError, LookupError, TypeError):
        return False
    return whole


def sums(folder: Path, answered: bool) -> dict[str, str]:
    """Return the SHA-256 of a run's tables and of its order, by the names of the files.

    Raises:
        OSError: one of them is not there.
    """
    names = ["losses.parquet", "training.parquet", "order.json", "order.receipt.json"]
    names += ["answers.parquet"] if answered else []
    names += [name for name in SEEN if (folder / name).is_file()]
    return {name: file_digest(folder / name) for name in names}


def last_loss(losses: Sequence[dict[str, Any]]) -> float | None:
    """Return the mean test loss of the last evaluation, in nats a token; None without one."""
    last = [e["loss_sum"] / e["tokens"] for e in losses if e["step"] == losses[-1]["step"]]
    return sum(last) / len(last) if last else None


@dataclass(frozen=True)
class _Named:
    """What decides a run's numbers, and the name that follows from it."""

    config: RunConfig
    inputs: dict[str, str]
    train: Dataset
    test: Dataset

    @property
    def key(self) -> str:
        return key(self.config, self.inputs)

    @property
    def folder(self) -> Path:
        """Where the run is made."""
        return cache_dir() / "runs" / self.key

    def check(self) -> None:
        """Refuse data that leaves nothing to train on or to test with."""
        if not len(self.train) or not len(self.test):
            raise DataError(
                f"dataset={self.config.dataset!r} has {len(self.train)} training and "
                f"{len(self.test)} test instances; expected at least one of each."
            )


def key(config: RunConfig, inputs: Mapping[str, str]) -> str:
    """Return the name of a run: a digest of what decides its numbers.

    Args:
        config: its settings, of which those count that `RunConfig.deciding` gives.
        inputs: what stands for the content of data, weights and encoder.
    """
    named = {"settings": config.deciding, "inputs": dict(inputs), "format": FORMAT}
    return digest(canonical_json(named))[:20]


def _named(config: RunConfig) -> _Named:
    config = config.with_whole_paths()
    train, test = load_both(config)
    return _Named(config, _inputs(config, train, test), train, test)


def _found(key: str, save_model: bool = False) -> Path | None:
    """Return the folder of a finished run, made here or published, with its model if wanted."""
    own, known = cache_dir() / "runs" / key, published.folder()
    if complete(own) and (not save_model or (own / "model").is_dir()):
        return own
    if known is not None and not save_model and complete(known / key):
        return known / key
    return None


def _kept(config: RunConfig, error: TmaError) -> Path:
    """Return the finished run of settings whose model or data cannot be had; else raise the error.

    It is found by the settings as they were stored, paths by their last part.
    """
    wanted = published.portable(config.to_json())
    folders = [cache_dir() / "runs", *filter(None, [published.folder()])]
    for file in (file for folder in folders for file in sorted(folder.glob("*/manifest.json"))):
        try:
            stored = RunConfig.from_json(json.loads(file.read_text("utf-8"))["config"])
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            continue
        if published.portable(stored.to_json()) == wanted and complete(file.parent):
            log.warning("%s The stored run of the same settings is read instead.", error)
            return file.parent
    raise error


def _make(
    named: _Named, state_minutes: float | None, state_steps: int | None, save_model: bool
) -> None:
    from tma.runs.execute import Making
    from tma.train.checkpoint import States

    states = States(named.folder, state_minutes, state_steps)
    made = Making(named.folder, named.config, named.inputs, named.train, named.test, states)
    made.make(save_model=save_model)
    # The model and its optimizer hold each other in cycles; the next run of the same process must
    # not have to wait for their memory.
    gc.collect()


def _tidy(folder: Path) -> None:
    """Remove the states that a run left when it was killed after its manifest was written.

    Younger ones are of a run that is made again for its model, and goes on from them.
    """
    if not any(folder.glob("state-*")):
        return
    from tma.train.checkpoint import States

    with suppress(Timeout), locked(folder, 0):
        states, ended = States(folder), (folder / "manifest.json").stat().st_mtime_ns
        if all(state.stat().st_mtime_ns < ended for state in states.found()):
            states.remove()


def _inputs(config: RunConfig, train: Dataset, test: Dataset) -> dict[str, str]:
    """Return what stands for the content that decides a run's tables."""
    from tma.train.models import fingerprint

    found = {
        "train": data.fingerprint(train),
        "test": data.fingerprint(test),
        "model": fingerprint(config.model),
    }
    if config.method.embeds:
        found["encoder"] = MiniLM().name
    if any(data.sources(test)):  # the tables name them
        found["sources"] = digest(canonical_json(data.sources(test)))
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
    folders = {file.parent for n in ("config", "manifest") for file in _files(f"{n}.json")}
    return [_entry(folder) for folder in sorted(folders)]


def _files(name: str) -> Iterator[Path]:
    return cache_dir().glob(f"runs/*/{name}")


def _entry(folder: Path) -> Entry:
    config = dict[str, Any]()
    try:
        # Not as RunConfig: its model or data may be gone.
        stored = next(
            folder / n for n in ("config.json", "manifest.json") if (folder / n).is_file()
        )
        found = json.loads(stored.read_text("utf-8"))
        config.update(found["config"] if stored.name == "manifest.json" else found)
        return Entry(folder.name, config, *_progress(folder))
    except Exception:  # whatever stands in a foreign folder, the others are listed
        return Entry(folder.name, config, "damaged", None, None)


def _progress(folder: Path) -> tuple[str, int | None, float | None, str | None]:
    """Return status, step, loss and error of a run."""
    from tma.train.checkpoint import States

    if (folder / "manifest.json").is_file():
        if not complete(folder):
            return "damaged", None, None, None
        run = Run(folder)
        losses = run.losses.to_dict("records")
        # pandas types the keys of records as Hashable; they are names of columns.
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
