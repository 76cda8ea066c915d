"""Make a run: arrange, encode, train, measure, store; the manifest comes last.

The processes of one job do the same in the same sequence: the main one decides and tells the
others. A second caller of the same run waits for its lock and reads the result.
"""

from __future__ import annotations

import gc
import logging
import math
import platform
import shutil
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from tma.data.load import references, sources
from tma.errors import OrderError, StateError, TrainingError, counted, wrong
from tma.runs.config import RunConfig
from tma.runs.store import ResolvedRun, Run, find, hardware, is_complete, resolve_or_find
from tma.store import checksums, is_locked, locked, new_file, new_folder, write_json

if TYPE_CHECKING:
    from accelerate import PartialState

    from tma.arrange.receipt import Arranged
    from tma.train.checkpoint import History
    from tma.train.encode import Encoded

log = logging.getLogger(__name__)

VERSIONS = ("tma", "torch", "transformers", "accelerate", "datasets", "sentence-transformers")


def run(config: RunConfig, *, state_minutes: float | None = 10, save_model: bool = False) -> Run:
    """Return the finished run of these settings: from the store, or made now.

    Args:
        config: everything that decides the numbers.
        state_minutes: time between two saved states, from which an interrupted run goes on; 0: one
            after every step; None: none.
        save_model: whether to keep the trained model, in the run's folder `model`.

    Raises:
        ParameterError, DataError, AssetError: settings, model or data cannot be used; or model or
            data is gone, and no finished run has these settings.
        OrderError, TrainingError: training went wrong; the run is marked failed, and starts again
            when it is asked for again.
        StateError: a state, the results or the cache could not be written; the next call goes on
            from the last state.
    """
    if not isinstance(config, RunConfig):
        raise wrong("config", config, "a RunConfig, such as tma.RunConfig.at('pocket', …)")
    if state_minutes is not None and (
        not isinstance(state_minutes, int | float) or not 0 <= state_minutes < math.inf
    ):
        raise wrong("state_minutes", state_minutes, "a finite number of at least 0, or None")
    resolved = resolve_or_find(config)
    if isinstance(resolved, Run):
        return resolved
    from accelerate.utils import broadcast_object_list

    def finished() -> bool:
        """Return, in every process, whether the main one finds the run."""
        found = [find(resolved.key, with_model=save_model) is not None]
        broadcast_object_list(found)
        return found[0]

    processes = _processes()  # begins the exchange, on the CPU where there is no GPU
    if not finished():
        main = processes.is_main_process
        if main and is_locked(resolved.folder):
            log.warning("waiting for another process that makes the run %s", resolved.key)
        with locked(resolved.folder) if main else nullcontext():
            if not finished():
                RunExecutor(resolved, state_minutes).execute(save_model=save_model)
                gc.collect()  # model and optimizer refer to each other: free their memory now
            processes.wait_for_everyone()
    return find(resolved.key) or Run(resolved.folder)


def _processes() -> PartialState:
    """Return what knows the processes of this job."""
    import torch
    from accelerate import PartialState

    # The others wait for the main one, which may wait for another job that makes the same run.
    return PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=30))


class RunExecutor:
    """Makes one run, under the lock of its folder, in every process that trains."""

    def __init__(self, resolved: ResolvedRun, state_minutes: float | None) -> None:
        from tma.train.checkpoint import States
        from tma.train.evaluate import resolve_precision

        self.resolved, self.config, self.folder = resolved, resolved.config, resolved.folder
        self.states = States(self.folder, state_minutes)
        self.precision = resolve_precision(self.config.precision, _processes().device)

    def execute(self, *, save_model: bool) -> None:
        """Train and store the run; raises what `run` does."""
        from tma.arrange.receipt import arrange_dataset

        main = _processes().is_main_process
        config, train = self.config, self.resolved.train
        aim = self.resolved.aim
        arranged = arrange_dataset(train, aim, config.method, encoder=config.encoder)
        self._load(arranged)  # whatever cannot be used ends here, before any writing
        if main:
            self._begin()
        try:
            history = self._train(arranged)
        except (OrderError, TrainingError) as error:
            if main:
                self._fail(error)
            raise
        if main:
            self._store(history, arranged, save_model=save_model)

    def _load(self, arranged: Arranged) -> None:
        """Load models and encode the data."""
        from tma.train import encode, metrics, models

        config, judge = self.config, self.config.reward_model
        self.judge = None if judge is None else metrics.RewardModel(judge)
        revision = self.resolved.inputs["model"].partition("@")[2] or None
        self.model, self.tokenizer = models.load(config.model, config.attention, revision)
        self.ordered, self.test = (
            encode.encode(data, self.tokenizer, config.max_tokens)
            for data in (self.resolved.train.select(arranged.rows), self.resolved.test)
        )
        models.check_positions(self.model, config, self.ordered, self.test)
        available = min(len(self.resolved.train), config.pool or len(self.resolved.train))
        if config.limit is not None and available < config.limit:
            there = counted(available, "instance")
            log.warning("limit=%d, but the order chooses from %s", config.limit, there)

    def _begin(self) -> None:
        """Write the settings, and remove what a failed or killed attempt left."""
        for stale in self.folder.glob(".new-*"):
            shutil.rmtree(stale)
        if (self.folder / "failed.json").is_file():
            self.states.remove()
            (self.folder / "failed.json").unlink()
        if not is_complete(self.folder):  # made again for its model, a run keeps its results
            (self.folder / "manifest.json").unlink(missing_ok=True)
        write_json(self.folder / "config.json", self.config.to_json())

    def _fail(self, error: Exception) -> None:
        history = self.states.history
        found = {"error": str(error), "step": len(history.steps), "loss": history.loss}
        self.states.remove()  # first: it makes room for the note
        with suppress(StateError):  # the error of training is the one to raise
            write_json(self.folder / "failed.json", found)

    def _train(self, arranged: Arranged) -> History:
        import torch

        from tma.train import loop

        with torch.random.fork_rng():
            torch.manual_seed(self.config.seed)  # for dropout, if the model has it
            given = self.model, self.ordered, self.test, self.config
            history = loop.train(*given, states=self.states, answer=self._answer)
        loop.check_order(history.consumed, arranged.ids * self.config.epochs)
        return history

    def _answer(self, model: Any, rows: Sequence[Encoded]) -> list[dict[str, Any]]:
        """Answer test instances and score the answers; one entry each."""
        from tma.train import generate

        place = {name: row for row, name in enumerate(self.resolved.test["id"])}
        own = self.resolved.test.select([place[row.id] for row in rows])
        settings = {name: getattr(self.config, name) for name in ("max_new_tokens", "micro_tokens")}
        answers = generate.answers(
            model, self.tokenizer, rows, precision=self.precision, **settings
        )
        entries = generate.scored(rows, answers, references(own))
        if self.judge is None:
            return entries
        rewards = self.judge.scores(list(own["prompt"]), answers)
        return [entry | {"reward": reward} for entry, reward in zip(entries, rewards, strict=True)]

    def _store(self, history: History, arranged: Arranged, *, save_model: bool) -> None:
        """Write model and results, the manifest last, and remove the states."""
        if save_model:
            shutil.rmtree(self.folder / "model", ignore_errors=True)
            with new_folder(self.folder / "model") as draft:
                self.model.save_pretrained(draft)
                self.tokenizer.save_pretrained(draft)
        # Its tables are replaced one by one from here on.
        (self.folder / "manifest.json").unlink(missing_ok=True)
        files = [*self._store_tables(history), "order.json"]
        arranged.save(self.folder / "order.json")
        manifest = self._manifest(history, arranged) | {"sums": checksums(self.folder, files)}
        write_json(self.folder / "manifest.json", manifest)
        self.states.remove()

    def _store_tables(self, history: History) -> list[str]:
        """Write the tables; return the names of their files."""
        import pandas as pd

        test = self.resolved.test
        source = dict(zip(test["id"], sources(test), strict=True))  # intervals cluster by it
        losses = pd.DataFrame(history.losses)
        losses.insert(3, "source", losses["id"].map(source))
        tables = {"losses.parquet": losses, "training.parquet": pd.DataFrame(history.steps)}
        if history.answers:
            tables["answers.parquet"] = pd.DataFrame(history.answers)
        for name, table in tables.items():
            with new_file(self.folder / name) as draft:
                table.to_parquet(draft, index=False)
        return [*tables]

    def _manifest(self, history: History, arranged: Arranged) -> dict[str, Any]:
        return {
            "key": self.folder.name,
            "config": self.config.to_json(),
            "inputs": self.resolved.inputs | {"order": arranged.receipt.sha256},
            "receipt": arranged.receipt.to_json(),
            "versions": {name: version(name) for name in VERSIONS},
            "python": platform.python_version(),
            "hardware": hardware(),
            "precision": self.precision,
            "processes": _processes().num_processes,
            "instances": len(history.consumed),
            "steps": len(history.steps),
            "seconds": round(self.states.seconds, 1),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }
