"""A run is a folder named by what decides its numbers: the settings, the data, the weights.

The manifest is written last, so that its existence means complete. A second caller of the same run
waits for the lock and reads the result.
"""

from __future__ import annotations

import gc
import json
import platform
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tma import data
from tma.config import RunConfig
from tma.embed import MiniLM
from tma.method import Method
from tma.receipt import Receipt, arrange_dataset, read_receipt, receipt_path
from tma.store import cache_dir, canonical_json, digest, locked, new_file, write_json

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset

    from tma.train import History

FORMAT = 2
"""Raised when the same settings would give other numbers than before."""
VERSIONS = ("tma", "torch", "transformers", "accelerate", "datasets", "sentence-transformers")


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

    @property
    def order(self) -> list[str]:
        """Ids of the training instances in the order in which they were consumed."""
        found: list[str] = json.loads((self.folder / "order.json").read_text("utf-8"))["ids"]
        return found

    @property
    def receipt(self) -> Receipt:
        """What made the order; read after checking that `order` is the one it is for."""
        return read_receipt(self.folder / "order.json")


def run(config: RunConfig) -> Run:
    """Return the finished run of these settings: from the store, or made now.

    Raises:
        AssetError, DataError, ParameterError: an input cannot be had.
        OrderError, TrainingError: training went wrong; nothing is stored then.
    """
    config = _resolved(config)
    train, test = (data.load(config.dataset, split=s) for s in ("train", "test"))
    inputs = _inputs(config, train, test)
    key = digest(canonical_json({"config": config.to_json(), "inputs": inputs, "format": FORMAT}))
    folder = cache_dir() / "runs" / key[:20]
    if not (folder / "manifest.json").is_file():
        with locked(folder):
            if not (folder / "manifest.json").is_file():
                _make(folder, config, inputs, train, test)
                # The model and its optimizer hold each other in cycles; the next run of the same
                # process must not have to wait for their memory.
                gc.collect()
    return Run(folder)


def _resolved(config: RunConfig) -> RunConfig:
    if config.precision != "auto":
        return config
    from accelerate import PartialState

    from tma.evaluate import resolve_precision

    return replace(config, precision=resolve_precision("auto", PartialState().device))


def _inputs(config: RunConfig, train: Dataset, test: Dataset) -> dict[str, str]:
    from tma.models import fingerprint

    return {
        "train": data.fingerprint(train),
        "test": data.fingerprint(test),
        "model": fingerprint(config.model),
        "encoder": MiniLM().name,
    }


def _make(
    folder: Path, config: RunConfig, inputs: dict[str, str], train: Dataset, test: Dataset
) -> None:
    import torch

    from tma import encode, models
    from tma.train import train as fine_tune

    for stale in folder.glob(".new-*"):  # left by a run that was killed while it stored
        shutil.rmtree(stale)
    started = time.monotonic()
    arranged = arrange_dataset(train, test, Method(config.order, config.limit, config.seed))
    model, tokenizer = models.load(config.model)
    encoded = encode.encode(train.select(arranged.rows), tokenizer, config.max_tokens)
    held_out = encode.encode(test, tokenizer, config.max_tokens)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)  # dropout, where a model has it
        history = fine_tune(model, encoded, held_out, config)
    arranged.receipt.check(history.consumed)
    _store(folder, history, arranged.receipt)
    manifest = {
        "config": config.to_json(),
        "inputs": inputs | {"order": arranged.receipt.sha256},
        "versions": {name: version(name) for name in VERSIONS},
        "python": platform.python_version(),
        "hardware": hardware(),
        "instances": len(history.consumed),
        "steps": len(history.steps),
        "seconds": round(time.monotonic() - started, 1),
    }
    write_json(folder / "manifest.json", manifest)


def _store(folder: Path, history: History, receipt: Receipt) -> None:
    import pandas as pd

    tables: dict[str, Sequence[dict[str, Any]]] = {
        "losses": history.losses,
        "training": history.steps,
    }
    for name, entries in tables.items():
        with new_file(folder / f"{name}.parquet") as draft:
            pd.DataFrame(entries).to_parquet(draft, index=False)
    write_json(folder / "order.json", {"ids": history.consumed})
    write_json(receipt_path(folder / "order.json"), receipt.to_json())


def hardware() -> str:
    """Return what computes, in words: the GPU's name, or the number of CPU threads."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()} (CUDA {torch.version.cuda})"
    return f"{torch.get_num_threads()} CPU threads, {platform.machine()}"
