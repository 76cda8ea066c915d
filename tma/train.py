"""Fine-tune all parameters in exactly the given order: one explicit loop.

A step is `batch_size` consecutive instances of the order. Within a step they are grouped by length
into micro-batches, which leaves the gradient the same sum: the loss is the mean over the step's
response tokens. The loop notes the ids it has put through the model and compares them, step by
step, with the order it was given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from tqdm import tqdm

from tma.config import RunConfig
from tma.encode import Encoded, micro_batches
from tma.errors import OrderError, TrainingError
from tma.evaluate import resolve_precision, response_losses, summed_losses

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
    accelerator = Accelerator()
    precision = resolve_precision(config.precision, accelerator.device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    model, optimizer = accelerator.prepare(model, optimizer)
    total = math.ceil(len(ordered) / config.batch_size)
    history = History()
    _measure(history, 0, model, test, config, precision)
    for step in (bar := tqdm(range(1, total + 1), desc=config.order, unit="step")):
        rows = ordered[(step - 1) * config.batch_size : step * config.batch_size]
        rate = learning_rate(config, step - 1, total)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss, tokens = _step(model, optimizer, rows, config, precision, accelerator, history)
        _check_order(history.consumed, ordered, step)
        if not math.isfinite(loss):
            raise TrainingError(f"step {step}: loss is {loss}; instances {[r.id for r in rows]}")
        history.steps.append({"step": step, "loss": loss, "learning_rate": rate, "tokens": tokens})
        if step % config.eval_every == 0 or step == total:
            _measure(history, step, model, test, config, precision)
        bar.set_postfix(loss=f"{loss:.3f}", test=f"{_last_mean(history):.3f}")
    return history


def learning_rate(config: RunConfig, step: int, total: int) -> float:
    """Return the rate of a step counted from 0: cosine decay from the peak to its final ratio."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / max(1, total - 1)))
    ratio = config.final_rate_ratio + (1 - config.final_rate_ratio) * cosine
    return config.learning_rate * ratio


def _step(
    model: PreTrainedModel,
    optimizer: Any,
    rows: Sequence[Encoded],
    config: RunConfig,
    precision: str,
    accelerator: Accelerator,
    history: History,
) -> tuple[float, int]:
    """Make one optimizer step; return the mean loss of its response tokens and their number."""
    model.train()
    tokens = sum(row.response_tokens for row in rows)
    total, seen = 0.0, []
    for batch in micro_batches(rows, config.micro_tokens):
        loss = summed_losses(model, batch, precision).sum() / tokens
        accelerator.backward(loss)
        total += loss.item()
        seen += batch.members
    accelerator.clip_grad_norm_(model.parameters(), config.clip_norm)
    optimizer.step()
    optimizer.zero_grad()
    # Micro-batches go by length; within the step the order is the one given.
    history.consumed += [rows[member].id for member in sorted(seen)]
    return total, tokens


def _check_order(consumed: Sequence[str], ordered: Sequence[Encoded], step: int) -> None:
    expected = [row.id for row in ordered[: len(consumed)]]
    for place, (got, wanted) in enumerate(zip(consumed, expected, strict=True)):
        if got != wanted:
            raise OrderError(f"step {step}, place {place}: consumed {got}, the order says {wanted}")


def _measure(
    history: History,
    step: int,
    model: PreTrainedModel,
    test: Sequence[Encoded],
    config: RunConfig,
    precision: str,
) -> None:
    sums = response_losses(model, test, config.micro_tokens, precision)
    for row, loss in zip(test, sums, strict=True):
        entry = {"step": step, "id": row.id, "task": row.task}
        history.losses.append(entry | {"loss_sum": float(loss), "tokens": row.response_tokens})


def _last_mean(history: History) -> float:
    last = [entry for entry in history.losses if entry["step"] == history.losses[-1]["step"]]
    return sum(entry["loss_sum"] / entry["tokens"] for entry in last) / len(last)
