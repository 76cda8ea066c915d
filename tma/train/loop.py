"""Fine-tune all parameters in exactly the given order: one explicit loop on accelerate.

A step is `batch_size` consecutive instances of the order. Within a step they are dealt out to the
processes by stride and put together into micro-batches, which leaves the gradient the same
sum: the loss is the mean over the step's response tokens. The loop notes the ids it has put through
the model and compares them, step by step, with the order it was given.
"""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, GradientAccumulationPlugin, gather_object

from tma.errors import OrderError, ParameterError, TrainingError
from tma.progress import progress
from tma.runs.config import RunConfig
from tma.train.checkpoint import History, States
from tma.train.encode import Encoded, micro_batches
from tma.train.evaluate import (
    arithmetic,
    resolve_precision,
    response_losses,
    summed_losses,
)
from tma.train.head import in_parts, tied_on_cpu
from tma.train.models import check_positions
from tma.train.packing import packs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Answer = Callable[[Any, Sequence[Encoded]], list[dict[str, Any]]]


def train(
    model: PreTrainedModel,
    ordered: Sequence[Encoded],
    test: Sequence[Encoded],
    config: RunConfig,
    *,
    states: States | None = None,
    untrained: Sequence[dict[str, Any]] = (),
    answer: Answer | None = None,
) -> History:
    """Fine-tune a model, in place, on instances in their order, and follow its test loss.

    Args:
        model: a causal language model in float32; all its parameters are trained.
        ordered: training instances in the order wanted, gone through `epochs` times; the last step
            of an epoch may be smaller.
        test: instances whose loss is taken at step 0, every `eval_every` steps, at the steps of
            `eval_at` and `generate_at`, and at the end.
        config: settings; the fields from `batch_size` on are used.
        states: where the state is kept; training goes on from the last one. None: nowhere.
        untrained: the entries of step 0 where its losses are known; else they are taken.
        answer: given the model and test instances, their answers' entries; called at the steps
            `generate_at`, of which one past the last stands for the last.

    Raises:
        OrderError: the loop consumed other instances than the order says.
        TrainingError: a loss, a gradient or a reward is NaN or infinite; the message names the
            step and the instances.
        StateError: a state could not be written.
        ParameterError: there is nothing to train on or to test with, an instance is too long for
            the model, or the model is not split as accelerate was told.
    """
    if not ordered or not test:
        raise ParameterError(
            f"{len(ordered)} training and {len(test)} test instances; expected one of each at least"
        )
    steps = list(_steps(ordered, config))
    check_positions(model, config, ordered, test)
    loop = _Loop(model, config, states, answer)
    done = len(loop.history.steps)
    check_order(loop.history.consumed, [row.id for rows in steps[:done] for row in rows])
    loop.go_through(steps, test, untrained)
    loop.accelerator.free_memory()
    model.zero_grad()  # gives the buffers back
    return loop.history


def learning_rate(config: RunConfig, step: int, total: int) -> float:
    """Return the rate of a step counted from 0: from the peak to its final ratio."""
    passed = step / max(1, total - 1)
    share = {
        "cosine": 0.5 * (1 + math.cos(math.pi * passed)),
        "linear": 1 - passed,
        "constant": 1.0,
    }[config.schedule]
    ratio = config.final_rate_ratio + (1 - config.final_rate_ratio) * share
    return config.learning_rate * ratio


def check_order(consumed: Sequence[str], ordered: Sequence[str]) -> None:
    """Compare the ids that were consumed with the order.

    Raises:
        OrderError: they differ, or another number was consumed; the message names the first place
            and both ids.
    """
    for place in range(max(len(ordered), len(consumed))):
        got = consumed[place] if place < len(consumed) else "nothing"
        wanted = ordered[place] if place < len(ordered) else "nothing"
        if got != wanted:
            raise OrderError(f"place {place}: consumed {got}, the order says {wanted}")


def _steps(ordered: Sequence[Encoded], config: RunConfig) -> Iterator[Sequence[Encoded]]:
    for _ in range(config.epochs):
        for start in range(0, len(ordered), config.batch_size):
            yield ordered[start : start + config.batch_size]


class _Loop:
    """The model, its optimizer and what was measured so far."""

    def __init__(
        self,
        model: PreTrainedModel,
        config: RunConfig,
        states: States | None,
        answer: Answer | None,
    ) -> None:
        self.accelerator = _accelerator()
        self.config, self.states, self.answer = config, states, answer
        self.precision = resolve_precision(config.precision, self.accelerator.device)
        _prepare(model, config)
        self.packed = config.packs and packs(model, self.accelerator.device)
        # Several processes exchange whole gradients; compiled code has none that are sparse.
        alone = self.accelerator.num_processes == 1 and not config.compile
        self.in_place = alone and tied_on_cpu(model)
        self.model, self.optimizer = self.accelerator.prepare(model, _optimizer(model, config))
        self.history = History()
        self.answered = set[int]()
        if states is not None:
            self.history = states.restore(self.accelerator, self.model, self.optimizer)
        self.test_loss = math.nan
        self.pace = ""
        self._saved = time.monotonic()

    @property
    def rank(self) -> int:
        return int(self.accelerator.process_index)

    def _own(self, rows: Sequence[Encoded]) -> Sequence[Encoded]:
        """Return what falls to this process: every so-manieth instance."""
        return rows[self.rank :: self.accelerator.num_processes]

    def go_through(
        self,
        steps: Sequence[Sequence[Encoded]],
        test: Sequence[Encoded],
        untrained: Sequence[dict[str, Any]],
    ) -> None:
        """Make the steps that are not made yet, and measure where that is wanted."""
        done, last, config = len(self.history.steps), len(steps), self.config
        self.answered = {min(step, last) for step in config.generate_at}
        if not self.history.losses:
            self.measure(0, test, untrained)
        asked = (*config.eval_at, *self.answered, last)
        evaluated = {*range(0, last, config.eval_every), *asked}
        given: dict[str, Any] = {"desc": config.order, "unit": "step"}
        if not self.accelerator.is_main_process:  # else TQDM_DISABLE decides
            given["disable"] = True
        bar = progress(steps[done:], 5, initial=done, total=last, **given)
        for step, rows in enumerate(bar, done + 1):
            loss = self.step(step, rows, learning_rate(config, step - 1, last))
            if step in evaluated:
                self.measure(step, test)
            test_loss = f"{self.test_loss:.3f}"
            bar.set_postfix(loss=f"{loss:.3f}", test=test_loss, rate=self.pace, refresh=False)
            self.save(last=step == last)

    def step(self, step: int, rows: Sequence[Encoded], rate: float) -> float:
        """Make one optimizer step; return the mean loss of its response tokens, in nats."""
        started = time.monotonic()
        self.model.train()
        tokens = sum(row.response_tokens for row in rows)
        total, consumed = self._backward(rows, tokens)
        check_order(consumed, [row.id for row in rows])
        loss = float(self.accelerator.reduce(total, "sum"))
        if not math.isfinite(loss):
            raise TrainingError(f"step {step}: loss is {loss}; instances {[r.id for r in rows]}")
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)  # FSDP splits it
        if not math.isfinite(norm):
            raise TrainingError(
                f"step {step}: gradient norm is {norm}; instances {[r.id for r in rows]}"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        # Buffers that stay leave no holes in the heap for others to break up.
        self.optimizer.zero_grad(set_to_none=not self.in_place)
        self.history.consumed += consumed
        entry = {"step": step, "loss": loss, "learning_rate": rate, "tokens": tokens}
        self.history.steps.append(entry | variety(rows))
        self.pace = f"{len(rows) / (time.monotonic() - started):.1f} inst/s"
        return loss

    def _backward(self, rows: Sequence[Encoded], tokens: int) -> tuple[torch.Tensor, list[str]]:
        """Add up this process's gradients; return its share of the loss, and all ids consumed."""
        own = self._own(rows)
        # A process without an instance still has to take part in the exchange of gradients.
        batches = micro_batches(own or rows[:1], self.config.micro_tokens, packed=self.packed)
        scale = self.accelerator.num_processes / tokens if own else 0.0
        total, seen = torch.zeros((), device=self.accelerator.device), list[str]()
        with arithmetic(self.model, self.precision, packed=self.packed), self._head():
            for batch in batches:
                last = batch is batches[-1]
                with nullcontext() if last else self.accelerator.no_sync(self.model):
                    loss = summed_losses(self.model, batch).sum() * scale
                    self.accelerator.backward(loss)
                total += loss.detach() / self.accelerator.num_processes
                seen += batch.ids
        places = {row.id: place for place, row in enumerate(own)}
        # Micro-batches go by length; within the step the order is the one given.
        seen = sorted(seen, key=lambda name: places.get(name, len(own))) if own else []
        return total, _undealt(gather_object([seen]))

    def _head(self) -> AbstractContextManager[None]:
        return in_parts(self.model) if self.in_place else nullcontext()

    def measure(
        self, step: int, test: Sequence[Encoded], known: Sequence[dict[str, Any]] = ()
    ) -> None:
        """Take the loss of every test instance, and its answer where that is wanted."""
        own = self._own(test)
        entries = list(known) or self._losses(step, own, test)
        self.history.losses += entries
        self.test_loss = sum(e["loss_sum"] / e["tokens"] for e in entries) / len(entries)
        if self.answer is not None and step in self.answered:
            self._answer(step, own, self.answer)

    def _losses(
        self, step: int, own: Sequence[Encoded], test: Sequence[Encoded]
    ) -> list[dict[str, Any]]:
        # Several processes exchange buffers or weights in a forward pass: one without an instance
        # takes part with another's.
        rows, budget = own or test[:1], self.config.micro_tokens
        with self._head():
            losses = response_losses(self.model, rows, budget, self.precision, packed=self.packed)
        sums = losses[: len(own)]
        made: list[dict[str, Any]] = [
            {"step": step, "id": row.id, "task": row.task, "loss_sum": float(loss)}
            | {"tokens": row.response_tokens}
            for row, loss in zip(own, sums, strict=True)
        ]
        entries = _undealt(gather_object([made]))
        _check_finite(step, "test loss", "loss_sum", entries)
        return entries

    def _answer(self, step: int, own: Sequence[Encoded], answer: Answer) -> None:
        made = [{"step": step} | e for e in answer(self.accelerator.unwrap_model(self.model), own)]
        entries = _undealt(gather_object([made]))
        _check_finite(step, "reward", "reward", entries)
        self.history.answers += entries

    def save(self, *, last: bool) -> None:
        """Save the state if it is time; the main process decides for all."""
        if self.states is None:
            return
        due = False
        if last:  # a run long enough to have states must not be lost when it cannot be stored
            due = bool(self.states.found())
        elif self.states.steps is not None:
            due = len(self.history.steps) % self.states.steps == 0
        elif self.states.minutes is not None:
            due = time.monotonic() - self._saved >= 60 * self.states.minutes
        flag = torch.tensor(float(due), device=self.accelerator.device)
        if self.accelerator.num_processes > 1:
            torch.distributed.broadcast(flag, src=0)
        if bool(flag):
            self.states.save(self.accelerator, self.model, self.optimizer, self.history)
            self._saved = time.monotonic()


def variety(rows: Sequence[Encoded]) -> dict[str, float]:
    """Return how many tasks and answers a step holds.

    Returns:
        effective_tasks: exp(-Σ p ln p) over the shares p of the tasks (an instance without one is a
        task): their number where all are as frequent; distinct_answers: number of different
        responses, as tokens.
    """
    counts = Counter(row.id if row.task is None else row.task for row in rows)
    shares = [count / len(rows) for count in counts.values()]
    entropy = -sum(share * math.log(share) for share in shares)
    answers = {row.tokens[row.response_start :] for row in rows}
    return {"effective_tasks": math.exp(entropy), "distinct_answers": len(answers)}


def _accelerator() -> Accelerator:
    """Return what spreads the work; what decides numbers is in the settings of a run alone."""
    try:
        found = Accelerator(
            cpu=not torch.cuda.is_available(),
            mixed_precision="no",
            dynamo_backend="no",
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        )
    except ValueError as error:
        raise ParameterError(
            "another program of this process has set up accelerate otherwise (mixed precision, or "
            "the device); make the run in a process of its own."
        ) from error
    asked = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if asked and found.distributed_type != DistributedType.FSDP:
        raise ParameterError(
            f"use_fsdp=True, but accelerate runs as {found.distributed_type.value}, where every "
            "process holds the whole model; expected several GPUs. Launch without FSDP here."
        )
    return found


def _check_finite(step: int, what: str, key: str, entries: Sequence[dict[str, Any]]) -> None:
    """Refuse NaN and infinity in the gathered entries, so that every process stops."""
    bad = [e for e in entries if not math.isfinite(e.get(key, 0.0))]
    if bad:
        raise TrainingError(
            f"step {step}: {what} is {bad[0][key]}; instances {[e['id'] for e in bad]}"
        )


def _undealt(parts: Sequence[Sequence[Any]]) -> list[Any]:
    """Return what was dealt out by stride in its first sequence."""
    missing = object()
    return [x for turn in zip_longest(*parts, fillvalue=missing) for x in turn if x is not missing]


def _optimizer(model: PreTrainedModel, config: RunConfig) -> torch.optim.Optimizer:
    given: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    if config.optimizer == "adafactor":
        return torch.optim.Adafactor(model.parameters(), **given)
    return torch.optim.AdamW(model.parameters(), **given, fused=True)


def _prepare(model: Any, config: RunConfig) -> None:
    if config.gradient_checkpointing:
        # Older releases of transformers know the other name only.
        enable = getattr(model, "activation_checkpointing_enable", None)
        (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
    if config.compile:
        # Below the head: what the head computes depends on the batch (`evaluate`).
        model.get_decoder().compile(dynamic=True)
