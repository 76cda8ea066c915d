"""A run is a folder named by what decides its numbers: settings, content of data and weights.

Where model and data lie, and which versions and hardware computed it, do not name a run; its
manifest records them. The manifest is written last, so that its existence means complete. Beside
the cache, runs are read from the folder of published ones.
"""

from __future__ import annotations

import json
import logging
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, NamedTuple

from tma.arrange.receipt import Receipt, read_receipt
from tma.data.load import fingerprint, references, sources
from tma.encoders import find_encoder
from tma.errors import AssetError, DataError, ParameterError
from tma.runs.config import RunConfig, load_aim, load_both
from tma.store import cache_dir, canonical_json, checksums, digest, is_locked

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset

log = logging.getLogger(__name__)

FORMAT = 9
"""Raised when the same settings would give other numbers than before."""
_DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError)
"""What reading a damaged run raises."""


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Key, settings, fingerprints, receipt, versions, hardware, precision, seconds, date."""
        return _read(self.folder, "manifest")

    @property
    def key(self) -> str:
        """Its name: a digest of what decides its numbers."""
        return self.folder.name

    @property
    def published(self) -> bool:
        """Whether it is a published run, neither made nor imported here."""
        return self.folder.parent == published_folder()

    @property
    def config(self) -> RunConfig:
        """The settings as they were stored; model and data may be gone."""
        return RunConfig.from_json(self.manifest["config"])

    @cached_property
    def losses(self) -> pd.DataFrame:
        """One row per (step, test instance): step, id, task, source, loss_sum, tokens, loss.

        `loss_sum` is the sum over the response tokens, in nats; `loss` is loss_sum / tokens.
        """
        return self._table("losses").assign(loss=lambda table: table["loss_sum"] / table["tokens"])

    @property
    def final_loss(self) -> float:
        """Mean test loss of the last evaluation, in nats per token."""
        return float(self.losses.groupby("step")["loss"].mean().iloc[-1])

    @cached_property
    def training(self) -> pd.DataFrame:
        """One row per step: step, loss (nats per response token), learning_rate, tokens (of
        responses), effective_tasks (exp of the entropy of the step's tasks), distinct_answers.
        """
        return self._table("training")

    @cached_property
    def answers(self) -> pd.DataFrame:
        """One row per (step, test instance) answered: step, id, task, answer, rouge1, rougeL and
        exact_match (0 to 1), reward if there was a reward model. A published run has no `answer`.

        Raises:
            ParameterError: the settings of the run ask for no answers.
        """
        if not self.manifest["config"]["generate_at"]:
            raise ParameterError(
                f"generate_at=() of run {self.key} asks for no answers. Make a run with steps in "
                "generate_at, such as [0, 10]."
            )
        return self._table("answers")

    @property
    def order(self) -> list[str]:
        """Ids of the training instances in the order in which they were consumed.

        Raises:
            DataError, OrderError: it cannot be read, or is not that of its receipt.
        """
        epochs: int = self.manifest["config"]["epochs"]
        return list(self.receipt.ids) * epochs

    @property
    def receipt(self) -> Receipt:
        """What made the order, after checking that `order` fits it."""
        return read_receipt(self.folder / "order.json")

    def _table(self, name: str) -> pd.DataFrame:
        import pandas as pd

        return pd.read_parquet(self.folder / f"{name}.parquet")


@dataclass(frozen=True)
class ResolvedRun:
    """Settings with their data, and the key that follows from both."""

    config: RunConfig
    inputs: dict[str, str]
    """Digests of the content of data, weights and encoder."""
    train: Dataset
    test: Dataset
    aim: Dataset
    """For which the order is made: mostly the test instances."""

    @cached_property
    def key(self) -> str:
        """The run's name."""
        return key(self.config, self.inputs)

    @property
    def folder(self) -> Path:
        """Where the run is made."""
        return cache_dir() / "runs" / self.key


def resolve(config: RunConfig) -> ResolvedRun:
    """Load the data of a run and take the digests that name it."""
    from tma.train import models

    config = config.with_absolute_paths()
    train, test = load_both(config)
    aim = load_aim(config, test) if config.method.embeds else test
    inputs = {
        "train": fingerprint(train),
        "test": fingerprint(test),
        "model": models.fingerprint(config.model),
    }
    if config.method.embeds:
        inputs["encoder"] = find_encoder(config.encoder).name
    if any(sources(test)):  # the tables name them
        inputs["sources"] = digest(canonical_json(sources(test)))
    if config.generate_at:  # scores depend on the references, which ids do not cover
        inputs["references"] = digest(canonical_json(references(test)))
    if config.reward_model is not None:
        inputs["reward_model"] = models.fingerprint(config.reward_model)
    if aim is not test:
        inputs["arrange_for"] = fingerprint(aim)
    return ResolvedRun(config, inputs, train, test, aim)


def resolve_or_find(config: RunConfig) -> ResolvedRun | Run:
    """Return the resolved settings or, where model or data is gone, the finished run of them."""
    try:
        resolved = resolve(config)
    except (AssetError, DataError, ParameterError) as error:
        found = _by_settings(config)
        if found is None:
            raise
        log.warning("%s The stored run of the same settings is read instead.", error)
        return found
    if not len(resolved.train) or not len(resolved.test):
        raise DataError(
            f"dataset={config.dataset!r} has {len(resolved.train)} training and "
            f"{len(resolved.test)} test instances; expected at least one of each."
        )
    return resolved


def stored(config: RunConfig) -> Run | None:
    """Return the finished run of these settings, made here or published; none is made."""
    resolved = resolve_or_find(config)
    return resolved if isinstance(resolved, Run) else find(resolved.key)


def key(config: RunConfig, inputs: Mapping[str, str]) -> str:
    """Return the name of a run: a digest of what decides its numbers."""
    deciding = {"settings": config.deciding, "inputs": dict(inputs), "format": FORMAT}
    return digest(canonical_json(deciding))[:20]


def published_folder() -> Path | None:
    """Return the folder of published runs: `TMA_PUBLISHED`, else `book/runs` of a checkout."""
    named = os.environ.get("TMA_PUBLISHED")
    found = Path(named).expanduser() if named else Path(__file__).parents[2] / "book" / "runs"
    return found.resolve() if found.is_dir() else None


def _folders() -> list[Path]:
    """Return where runs are looked up: those made here, then the published ones."""
    return [cache_dir() / "runs", *filter(None, [published_folder()])]


def find(key: str, *, with_model: bool = False) -> Run | None:
    """Return the finished run of a key, made here or published, with its model if asked for."""
    for folder in (parent / key for parent in _folders()):
        if is_complete(folder) and (not with_model or (folder / "model").is_dir()):
            return Run(folder)
    return None


def runs_in(folder: Path) -> list[Run]:
    """Return the runs of a folder that have a manifest, by key."""
    return [Run(file.parent) for file in sorted(folder.glob("*/manifest.json"))]


def _by_settings(config: RunConfig) -> Run | None:
    """Return the finished run with the same settings, paths compared by their last part."""
    settings = portable(config.to_json())
    for run in (run for folder in _folders() for run in runs_in(folder)):
        with suppress(*_DAMAGE):
            if portable(run.config.to_json()) == settings and is_complete(run.folder):
                return run
    return None


def portable(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's settings with local paths by their last part, `p3:/data/x` as `p3:x`."""
    found = dict(config)
    for setting in ("model", "dataset", "test_dataset", "arrange_for", "reward_model", "encoder"):
        name = config.get(setting) or ""
        known, colon, place = name.partition(":")
        if PurePath(name).is_absolute():  # a hub id has a slash too, but does not begin with one
            found[setting] = PurePath(name).name
        elif colon and "/" in place:
            found[setting] = f"{known}:{PurePath(place).name}"
    return found


def is_complete(folder: Path) -> bool:
    """Return whether a run's manifest is that of its settings and tables."""
    try:
        manifest = _read(folder, "manifest")
        expected = folder.name, _settings(folder), checksums(folder, manifest["sums"])
        return (manifest.get("key", folder.name), manifest["config"], manifest["sums"]) == expected
    except _DAMAGE:
        return False


class Entry(NamedTuple):
    """One line of the list of runs: `step` is the last one stored, `loss` in nats per token.

    `status` is finished, running, interrupted (goes on when asked for again), failed (`error` says
    why), or damaged (is then made again). `config` is empty if it cannot be read.
    """

    key: str
    config: dict[str, Any]
    status: str
    step: int | None = None
    loss: float | None = None
    error: str | None = None


def runs() -> list[Entry]:
    """Return all runs of the cache, finished or not, by name."""
    files = [*cache_dir().glob("runs/*/config.json"), *cache_dir().glob("runs/*/manifest.json")]
    return [_entry(folder) for folder in sorted({file.parent for file in files})]


def _entry(folder: Path) -> Entry:
    from tma.train.checkpoint import States

    entry = Entry(folder.name, {}, "damaged")
    try:
        entry = entry._replace(config=_settings(folder))
        if (folder / "manifest.json").is_file():
            run = Run(folder)
            found = {"status": "finished", "step": run.manifest["steps"], "loss": run.final_loss}
            return entry._replace(**found) if is_complete(folder) else entry
        if (folder / "failed.json").is_file():
            return entry._replace(status="failed", **_read(folder, "failed"))
        status = "running" if is_locked(folder) else "interrupted"
        history = States(folder).last()
        return entry._replace(status=status, step=len(history.steps) or None, loss=history.loss)
    except Exception:  # whatever a foreign folder holds, the other runs are listed
        return entry


def _settings(folder: Path) -> Any:
    """Return a run's settings as they are stored; an imported run has them in its manifest."""
    own = (folder / "config.json").is_file()
    return _read(folder, "config") if own else _read(folder, "manifest")["config"]


def _read(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{name}.json").read_text("utf-8"))
    return found


def hardware() -> str:
    """Return what computes, in words: the GPU's name, or the number of CPU threads."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()} (CUDA {torch.version.cuda})"
    return f"{torch.get_num_threads()} CPU threads, {platform.machine()}"
