"""The state of an unfinished run: enough to resume it, bit for bit, after any interruption.

A state is a folder of safetensors and JSON files with their SHA-256, written under another name and
then renamed. The one before it is kept, in case the disk damages the last. Nothing is pickled.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from tma.store import checksums, file_digest, new_folder

if TYPE_CHECKING:
    from accelerate import Accelerator

log = logging.getLogger(__name__)

KEPT = 2
"""States that are kept: the last one, and the one before it."""
FILES = ("model.safetensors", "optimizer.safetensors", "random.safetensors", "history.json")
"""Files of a state, beside `sums.json` with the SHA-256 of each."""


@dataclass
class History:
    """What a run measured: the rows of its tables, the ids it consumed, and how long it took."""

    losses: list[dict[str, Any]] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    consumed: list[str] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def loss(self) -> float | None:
        """Mean test loss of the last evaluation, in nats per token; None without one."""
        last = [e for e in self.losses if e["step"] == self.losses[-1]["step"]]
        return fmean(e["loss_sum"] / e["tokens"] for e in last) if last else None


class States:
    """The saved states of one run, one every so many minutes; None: none."""

    def __init__(self, folder: Path, minutes: float | None = 10) -> None:
        self.folder, self.minutes = folder, minutes
        self.history = History()  # saved or not
        self._started = self._saved = time.monotonic()

    @property
    def seconds(self) -> float:
        """Time that the run has taken, sessions before an interruption included."""
        return time.monotonic() - self._started

    def due(self, *, last: bool) -> bool:
        """Return whether it is time to save the state after a step."""
        if last:  # a run long enough to have states must survive a failure to store its results
            return bool(self.found())
        return self.minutes is not None and time.monotonic() - self._saved >= 60 * self.minutes

    def save(self, accelerator: Accelerator, model: Any, optimizer: Any, history: History) -> None:
        """Save what the next step needs; every process takes part, the main one writes."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights, moments = get_state_dict(model, optimizer.optimizer, options=options)
        random = _gathered_random(accelerator)
        self._saved = time.monotonic()
        if not accelerator.is_main_process:  # the others have parts of tensors, or none
            return
        parts: Sequence[dict[str, Any]] = weights, _flat(moments), random
        history.seconds = self.seconds
        with new_folder(self.folder / f"state-{len(history.steps):08}") as draft:
            for name, part in zip(FILES, parts, strict=False):
                save_file(_distinct(part), draft / name)
            (draft / FILES[-1]).write_text(json.dumps(asdict(history), allow_nan=False), "utf-8")
            (draft / "sums.json").write_text(json.dumps(checksums(draft, FILES)), "utf-8")
        for old in self.found()[KEPT:]:
            shutil.rmtree(old)

    def restore(self, accelerator: Accelerator, model: Any, optimizer: Any) -> History:
        """Load the last intact state, if any, into model and optimizer; return its history."""
        chosen = [self._intact() if accelerator.is_main_process else None]
        broadcast_object_list(chosen)
        if (folder := chosen[0]) is not None:
            set_state_dict(
                model,
                optimizer.optimizer,
                model_state_dict=dict[str, Any](load_file(folder / "model.safetensors")),
                optim_state_dict=_unflat(load_file(folder / "optimizer.safetensors"), optimizer),
                # Of tied weights the state has one name.
                options=StateDictOptions(full_state_dict=True, strict=False),
            )
            _set_random(load_file(folder / "random.safetensors"), accelerator.process_index)
            self.history = _read_history(folder)
            self._started -= self.history.seconds
        self._saved = time.monotonic()
        return self.history

    def last(self) -> History:
        """Return the history of the last intact state; empty without one."""
        intact = (folder for folder in self.found() if not _damaged(folder, ("history.json",)))
        return next(map(_read_history, intact), History())

    def found(self) -> list[Path]:
        """Return the folders of all states, intact or not, the last one first."""
        known = self.folder.glob("state-" + 8 * "[0-9]")
        return sorted((folder for folder in known if folder.is_dir()), reverse=True)

    def remove(self) -> None:
        """Remove all states."""
        for folder in self.found():
            shutil.rmtree(folder)

    def _intact(self) -> Path | None:
        """Return the last intact state; remove those after it, whose steps are saved again."""
        for folder in self.found():
            damaged = _damaged(folder)
            if not damaged:
                return folder
            log.warning("%s of %s is damaged; the state before it is used", damaged, folder)
            shutil.rmtree(folder)
        return None


def _flat(moments: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the optimizer's tensors by `parameter|name`."""
    return {
        f"{parameter}|{name}": tensor
        for parameter, tensors in moments["state"].items()
        for name, tensor in tensors.items()
        if isinstance(tensor, torch.Tensor)
    }


def _unflat(tensors: dict[str, torch.Tensor], optimizer: Any) -> dict[str, Any]:
    """Return the optimizer's state from its tensors; its settings are those it was made with."""
    state: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        parameter, name = key.rsplit("|", 1)
        state.setdefault(parameter, {})[name] = tensor
    (group,) = optimizer.param_groups
    settings = {name: value for name, value in group.items() if name != "params"}
    return {"state": state, "param_groups": [settings | {"params": list(state)}]}


def _distinct(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors that can be saved; tied weights have the first of their names."""
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    names = {tensors[name].data_ptr(): name for name in reversed(tensors)}
    return {name: tensors[name] for name in names.values()}


def _damaged(folder: Path, names: Sequence[str] = FILES) -> str | None:
    """Return the first file of a state that is not as it was written; None if all are."""
    try:
        sums = json.loads((folder / "sums.json").read_text("utf-8"))
        return next((n for n in names if file_digest(folder / n) != sums[n]), None)
    except (OSError, ValueError, LookupError, TypeError):
        return "sums.json"


def _read_history(folder: Path) -> History:
    return History(**json.loads((folder / "history.json").read_text("utf-8")))


def _gathered_random(accelerator: Accelerator) -> dict[str, torch.Tensor]:
    """Return the states of every process's random number generators."""
    own = {"cpu": torch.get_rng_state()}
    if accelerator.device.type == "cuda":
        own["cuda"] = torch.cuda.get_rng_state(accelerator.device)
    gathered = gather_object([own])
    return {f"{rank}/{k}": v for rank, states in enumerate(gathered) for k, v in states.items()}


def _set_random(states: dict[str, torch.Tensor], rank: int) -> None:
    if f"{rank}/cpu" in states:  # another number of processes has no state for some
        torch.set_rng_state(states[f"{rank}/cpu"])
    if f"{rank}/cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states[f"{rank}/cuda"])
