"""How a run is made: arrange, encode, train, measure, store; the manifest comes last."""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from accelerate import PartialState

from tma import encode, models
from tma.config import RunConfig
from tma.data import references
from tma.encode import Encoded
from tma.errors import OrderError, TrainingError
from tma.generate import answers, scored
from tma.method import Method
from tma.metrics import rewards
from tma.receipt import Arranged, arrange_dataset
from tma.runs import hardware
from tma.state import History, States
from tma.store import new_file, new_folder, write_json
from tma.train import train as fine_tune

if TYPE_CHECKING:
    from datasets import Dataset

VERSIONS = ("tma", "torch", "transformers", "accelerate", "datasets", "sentence-transformers")


@dataclass(frozen=True)
class Making:
    """A run on its way: under the lock of its folder, in every process that trains."""

    folder: Path
    """Where it is stored."""
    config: RunConfig
    """Its settings, with precision resolved."""
    inputs: dict[str, str]
    """Fingerprints of data, weights and encoder."""
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
            StateError: a state could not be written.
        """
        started = time.monotonic()
        writes = PartialState().is_main_process
        if writes:
            self._begin()
        method = Method(self.config.order, self.config.limit, self.config.seed)
        arranged = arrange_dataset(self.train, self.test, method)
        try:
            history, model, tokenizer = self._trained(arranged)
        except (OrderError, TrainingError) as error:
            if writes:
                self.states.remove()
                write_json(self.folder / "failed.json", {"error": str(error)})
            raise
        if not writes:
            return
        self._store(history, arranged)
        if save_model:
            self._store_model(model, tokenizer)
        self._finish(history, arranged, time.monotonic() - started)

    def _begin(self) -> None:
        """Leave beside the run what it is, and nothing of an earlier end."""
        for stale in self.folder.glob(".new-*"):  # left by a run that was killed while it stored
            shutil.rmtree(stale)
        for name in ("failed.json", "manifest.json"):
            (self.folder / name).unlink(missing_ok=True)
        write_json(self.folder / "config.json", self.config.to_json())

    def _trained(self, arranged: Arranged) -> tuple[History, Any, Any]:
        """Return what training measured, the trained model, and its tokenizer."""
        config = self.config
        model, tokenizer = models.load(config.model, config.attention)
        ordered = self.train.select(arranged.rows)
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)  # dropout, where a model has it
            history = fine_tune(
                model,
                encode.encode(ordered, tokenizer, config.max_tokens),
                encode.encode(self.test, tokenizer, config.max_tokens),
                config,
                states=self.states,
                answer=lambda model, rows: self._answers(model, tokenizer, rows),
            )
        return history, model, tokenizer

    def _answers(self, model: Any, tokenizer: Any, rows: Sequence[Encoded]) -> list[dict[str, Any]]:
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
            precision=config.precision,
        )
        entries = scored(rows, made, references(own))
        if config.reward_model is None:
            return entries
        found = rewards(config.reward_model, list(own["prompt"]), made)
        return [entry | {"reward": float(r)} for entry, r in zip(entries, found, strict=True)]

    def _store(self, history: History, arranged: Arranged) -> None:
        arranged.receipt.check(history.consumed[: len(arranged.ids)])
        tables: dict[str, Sequence[dict[str, Any]]] = {
            "losses": history.losses,
            "training": history.steps,
            "answers": history.answers,
        }
        for name, entries in tables.items():
            if entries:
                with new_file(self.folder / f"{name}.parquet") as draft:
                    pd.DataFrame(entries).to_parquet(draft, index=False)
        arranged.save(self.folder / "order.json")

    def _store_model(self, model: Any, tokenizer: Any) -> None:
        shutil.rmtree(self.folder / "model", ignore_errors=True)
        with new_folder(self.folder / "model") as draft:
            model.save_pretrained(draft)
            tokenizer.save_pretrained(draft)

    def _finish(self, history: History, arranged: Arranged, seconds: float) -> None:
        manifest = {
            "config": self.config.to_json(),
            "inputs": self.inputs | {"order": arranged.receipt.sha256},
            "versions": {name: version(name) for name in VERSIONS},
            "python": platform.python_version(),
            "hardware": hardware(),
            "instances": len(history.consumed),
            "steps": len(history.steps),
            "seconds": round(seconds, 1),
        }
        write_json(self.folder / "manifest.json", manifest)
        self.states.remove()
