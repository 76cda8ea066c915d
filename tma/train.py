"""Fine-tune all parameters in exactly the given order: one explicit loop.

A step is `batch_size` consecutive instances of the order. Within a step they are grouped by length
into micro-batches, which leaves the gradient the same sum: the loss is the mean over the step's
response tokens. The loop notes the ids it has put through the model and compares them, step by
step, with the order it was given.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from tqdm import tqdm

from tma.config import RunConfig
from tma.encode import Encoded, micro_batches
from tma.errors import OrderError, TrainingError
from tma.evaluate import arithmetic, resolve_precision, response_losses, summed_losses

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class History:
    """What a run measured."""

    losses: list[dict[str, Any]] = field(default_factory=list)
    """One entry a (step, test instance): step, id, task, loss_sum (nats), tokens."""
    steps: list[dict[str, Any]] = field(default_factory=list)
    """One entry a step: step, loss (nats a token), learning_rate, tokens."""
    consumed: list[str] = field(default_factory=list)
    """Ids of the training instances, in the order in which steps consumed them."""


def train(
    model: PreTrainedModel,
    ordered: Sequence[Encoded],
    test: Sequence[Encoded],
    config: RunConfig,
) -> History:
    """Fine-tune a model, in place, on instances in their order, and follow its test loss.

    Args:
        model: a causal language model in float32; all its parameters are trained.
        ordered: training instances in the order wanted; one epoch is made, and the last step may
            be smaller.
        test: instances whose loss is taken at step 0, every `eval_every` steps, and at the end.
        config: settings; the fields from `batch_size` on are used.

    Raises:
        OrderError: the loop consumed other instances than the order says.
        TrainingError: a loss is NaN or infinite.
    """
    loop, ids = _Loop(model, config), [row.id for row in ordered]
    total = math.ceil(len(ordered) / config.batch_size)
    loop.measure(0, test)
    bar = tqdm(range(1, total + 1), desc=config.order, unit="step", mininterval=5)
    for step in bar:
        start = (step - 1) * config.batch_size
        rows = ordered[start : start + config.batch_size]
        loss = loop.step(step, rows, learning_rate(config, step - 1, total))
        check_order(loop.history.consumed, ids, start, start + len(rows))
        if not math.isfinite(loss):
            raise TrainingError(f"step {step}: loss is {loss}; instances {[r.id for r in rows]}")
        if step % config.eval_every == 0 or step == total:
            loop.measure(step, test)
        bar.set_postfix(loss=f"{loss:.3f}", test=f"{loop.test_loss:.3f}", refresh=False)
    loop.accelerator.free_memory()
    _return_freed_memory()
    return loop.history


def learning_rate(config: RunConfig, step: int, total: int) -> float:
    """Return the rate of a step counted from 0: cosine decay from the peak to its final ratio."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / max(1, total - 1)))
    ratio = config.final_rate_ratio + (1 - config.final_rate_ratio) * cosine
    return config.learning_rate * ratio


def check_order(consumed: Sequence[str], ordered: Sequence[str], start: int, end: int) -> None:
    """Compare the ids that were consumed, from place `start` to before `end`, with the order.

    Raises:
        OrderError: they differ, or another number was consumed; the message names the first place
            and both ids.
    """
    for place in range(start, max(end, len(consumed))):
        got = consumed[place] if place < len(consumed) else "nothing"
        wanted = ordered[place] if place < end else "nothing"
        if got != wanted:
            raise OrderError(f"place {place}: consumed {got}, the order says {wanted}")


class _Loop:
    """The model, its optimizer and what was measured so far."""

    def __init__(self, model: PreTrainedModel, config: RunConfig) -> None:
        self.accelerator = Accelerator()
        self.config = config
        self.precision = resolve_precision(config.precision, self.accelerator.device)
        optimizer = torch.optim.AdamW(
            model.parameters(), config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.history = History()
        self.test_loss = math.nan

    def step(self, step: int, rows: Sequence[Encoded], rate: float) -> float:
        """Make one optimizer step; return the mean loss of its response tokens, in nats."""
        self.model.train()
        tokens = sum(row.response_tokens for row in rows)
        total, seen = 0.0, list[str]()
        with arithmetic(self.model, self.precision):
            for batch in micro_batches(rows, self.config.micro_tokens):
                loss = summed_losses(self.model, batch).sum() / tokens
                self.accelerator.backward(loss)
                total += float(loss.detach())
                seen += batch.ids
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        # Micro-batches go by length; within the step the order is the one given.
        places = {row.id: place for place, row in enumerate(rows)}
        self.history.consumed += sorted(seen, key=lambda name: places.get(name, len(rows)))
        entry = {"step": step, "loss": total, "learning_rate": rate, "tokens": tokens}
        self.history.steps.append(entry)
        _return_freed_memory()
        return total

    def measure(self, step: int, test: Sequence[Encoded]) -> None:
        """Take the loss of every test instance."""
        sums = response_losses(self.model, test, self.config.micro_tokens, self.precision)
        tokens = [row.response_tokens for row in test]
        for row, loss, count in zip(test, sums, tokens, strict=True):
            entry = {"step": step, "id": row.id, "task": row.task}
            self.history.losses.append(entry | {"loss_sum": float(loss), "tokens": count})
        self.test_loss = float((sums / tokens).mean())


def _return_freed_memory() -> None:
    """Give memory that is free but scattered back to the system.

    Steps of ever other lengths leave glibc's heap full of holes: after a few dozen it holds 2 GB
    that nothing uses.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # not in every C library
        if trim is not None:
            trim(0)
