"""How a run is made: arrange, encode, train, measure, store; the manifest comes last."""

from __future__ import annotations

import logging
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from accelerate import PartialState

from tma.arrange.receipt import Arranged, arrange_dataset
from tma.data.load import references, sources
from tma.errors import OrderError, StateError, TrainingError
from tma.runs import untrained
from tma.runs.config import RunConfig
from tma.runs.store import complete, hardware, last_loss, sums
from tma.store import new_file, new_folder, write_json
from tma.train import encode, models
from tma.train.checkpoint import History, States
from tma.train.encode import Encoded
from tma.train.evaluate import resolve_precision
from tma.train.generate import answers, scored
from tma.train.loop import check_order
from tma.train.loop import train as fine_tune
from tma.train.metrics import RewardModel

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

VERSIONS = ("tma", "torch", "transformers", "accelerate", "datasets", "sentence-transformers")


@dataclass(frozen=True)
class _Work:
    """What is loaded to make a run."""

    model: Any
    """The model; training changes it in place."""
    tokenizer: Any
    """Its tokenizer."""
    ordered: Sequence[Encoded]
    """Training instances in the order wanted."""
    test: Sequence[Encoded]
    """Test instances."""


@dataclass(frozen=True)
class Making:
    """A run on its way: under the lock of its folder, in every process that trains."""

    folder: Path
    """Where it is stored."""
    config: RunConfig
    """Its settings."""
    inputs: dict[str, str]
    """What stands for the content of data, weights and encoder."""
    train: Dataset
    """Training instances, in their stored order."""
    test: Dataset
    """Test instances."""
    states: States
    """Where the state is kept."""

    def make(self, *, save_model: bool) -> None:
        """Train and store the run.

        Raises:
            OrderError, TrainingError: training went wrong; the run is marked failed.
            ParameterError: a model or the length of an instance cannot be used.
            StateError: a state or the results could not be written.
        """
        writes = PartialState().is_main_process
        method = self.config.method
        arranged = arrange_dataset(self.train, self.test, method)
        # What can be wrong is loaded or checked before anything is written or trained.
        named = self.config.reward_model
        judge = None if named is None else RewardModel(named)
        work = self._loaded(arranged)
        if writes:
            self._warn_of_few()
            self._begin()
        try:
            history = self._trained(arranged, work, judge)
        except (OrderError, TrainingError) as error:
            if writes:
                self._fail(error)
            raise
        except KeyboardInterrupt:
            if writes:
                log.warning("stopped; the same call goes on from %s", self.states.newest())
            raise
        if writes:
            self._store(history, arranged, work if save_model else None)

    def _begin(self) -> None:
        """Leave beside the run what it is, and nothing of an earlier end.

        A finished run that is made again for its model keeps its results until then.
        """
        for stale in self.folder.glob(".new-*"):  # left by a run that was killed while it stored
            shutil.rmtree(stale)
        if (self.folder / "failed.json").is_file():
            self.states.remove()
            (self.folder / "failed.json").unlink()
        if not complete(self.folder):
            (self.folder / "manifest.json").unlink(missing_ok=True)
        write_json(self.folder / "config.json", self.config.to_json())

    def _fail(self, error: Exception) -> None:
        history = self.states.history
        found = {"error": str(error), "step": len(history.steps), "loss": last_loss(history.losses)}
        try:
            self.states.remove()  # first: it makes room for the note
            write_json(self.folder / "failed.json", found)
        except OSError as problem:  # which is not why the run failed
            log.warning("the run is not marked failed: %s", problem)

    def _warn_of_few(self) -> None:
        """Say where the data does not hold as many instances as wanted.

        The two halves of an order may share some, which is no want of data.
        """
        wanted, there = self.config.limit, len(self.train)
        there = min(there, self.config.pool or there)
        if wanted is not None and there < wanted:
            log.warning("limit=%d, but there are %d instances to train on", wanted, there)

    def _loaded(self, arranged: Arranged) -> _Work:
        """Return the model before training, and what it is trained on and tested with."""
        config = self.config
        revision = models.revision(self.inputs["model"])
        model, tokenizer = models.load(config.model, config.attention, revision)
        ordered, test = (
            encode.encode(data, tokenizer, config.max_tokens)
            for data in (self.train.select(arranged.rows), self.test)
        )
        models.check_positions(model, config, ordered, test)
        return _Work(model, tokenizer, ordered, test)

    def _trained(self, arranged: Arranged, work: _Work, judge: RewardModel | None) -> History:
        """Train the model; return what was measured."""
        shared = untrained.place(self.config, self.inputs["model"], work.test)
        # What an earlier session measured, it may have measured on other hardware.
        measured = not self.states.found()
        with torch.random.fork_rng():
            torch.manual_seed(self.config.seed)  # dropout, where a model has it
            history = fine_tune(
                work.model,
                work.ordered,
                work.test,
                self.config,
                states=self.states,
                answer=lambda model, rows: self._answers(model, work.tokenizer, judge, rows),
            )
        check_order(history.consumed, arranged.ids * self.config.epochs)
        if measured:
            untrained.keep(shared, history.losses)
        return history

    def _answers(
        self, model: Any, tokenizer: Any, judge: RewardModel | None, rows: Sequence[Encoded]
    ) -> list[dict[str, Any]]:
        """Answer test instances and score the answers; one entry each."""
        config, test = self.config, self.test
        at = {name: place for place, name in enumerate(test["id"])}
        own = test.select([at[row.id] for row in rows])
        made = answers(
            model,
            tokenizer,
            rows,
            max_new_tokens=config.max_new_tokens,
            micro_tokens=config.micro_tokens,
            precision=resolve_precision(config.precision, PartialState().device),
        )
        entries = scored(rows, made, references(own))
        if judge is None:
            return entries
        found = judge.scores(list(own["prompt"]), made)
        return [entry | {"reward": float(r)} for entry, r in zip(entries, found, strict=True)]

    def _store(self, history: History, arranged: Arranged, kept: _Work | None) -> None:
        """Write model and results, the manifest last; then no state is needed any more."""
        try:
            if kept is not None:
                self._store_model(kept)
            # Its tables are about to be replaced one by one.
            (self.folder / "manifest.json").unlink(missing_ok=True)
            self._store_tables(history)
            arranged.save(self.folder / "order.json")
            self._finish(history, arranged)
        except OSError as error:
            raise StateError(
                f"the results could not be written to {self.folder}: {error.__cause__ or error}. "
                f"Free space there and run again: training goes on from {self.states.newest()}."
            ) from error
        self.states.remove()

    def _store_tables(self, history: History) -> None:
        tables: dict[str, Sequence[dict[str, Any]]] = {
            "losses": history.losses,
            "training": history.steps,
            "answers": history.answers,
        }
        for name, entries in tables.items():
            if entries:
                table = pd.DataFrame(entries)
                if name == "losses":
                    table.insert(3, "source", table["id"].map(self._sources()))
                with new_file(self.folder / f"{name}.parquet") as draft:
                    table.to_parquet(draft, index=False)

    def _sources(self) -> dict[str, str | None]:
        """Return the source dataset of each test instance; intervals are clustered by it."""
        return dict(zip(self.test["id"], sources(self.test), strict=True))

    def _store_model(self, work: _Work) -> None:
        shutil.rmtree(self.folder / "model", ignore_errors=True)
        with new_folder(self.folder / "model") as draft:
            work.model.save_pretrained(draft)
            work.tokenizer.save_pretrained(draft)

    def _finish(self, history: History, arranged: Arranged) -> None:
        precision = resolve_precision(self.config.precision, PartialState().device)
        manifest = {
            "key": self.folder.name,
            "config": self.config.to_json(),
            "inputs": self.inputs | {"order": arranged.receipt.sha256},
            "receipt": arranged.receipt.to_json(),
            "versions": {name: version(name) for name in VERSIONS},
            "python": platform.python_version(),
            "hardware": hardware(),
            "precision": precision,
            "processes": PartialState().num_processes,
            "instances": len(history.consumed),
            "steps": len(history.steps),
            "seconds": round(self.states.seconds, 1),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "sums": sums(self.folder, bool(self.config.generate_at)),
        }
        write_json(self.folder / "manifest.json", manifest)
