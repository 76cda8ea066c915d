"""Fine-tune all parameters in exactly the given order: one explicit loop on accelerate.

A step is `batch_size` consecutive instances of the order. They are dealt out to the processes in
turn and grouped into micro-batches, which leaves the gradient the same sum: the loss is the mean
over the step's response tokens. The loop records the ids it has put through the model and compares
them, step by step, with the order it was given.
"""

from __future__ import annotations

import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedType,
    GradientAccumulationPlugin,
    broadcast_object_list,
    gather_object,
)
from tqdm import tqdm

from tma.errors import OrderError, ParameterError, TrainingError
from tma.train import TrainingSettings
from tma.train.checkpoint import History, States
from tma.train.encode import Encoded
from tma.train.evaluate import (
    arithmetic,
    evened,
    head_in_parts,
    resolve_precision,
    response_losses,
    summed_losses,
    tied_on_cpu,
)
from tma.train.packing import micro_batches, packs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Answer = Callable[[Any, Sequence[Encoded]], list[dict[str, Any]]]


def train(
    model: PreTrainedModel,
    ordered: Sequence[Encoded],
    test: Sequence[Encoded],
    config: TrainingSettings,
    *,
    states: States | None = None,
    answer: Answer | None = None,
) -> History:
    """Fine-tune a model, in place, on instances in their order, and follow its test loss.

    All parameters are trained, in float32. `states` is where the state is saved and training goes
    on from; `answer` makes the entries of test instances' answers at the steps of `generate_at`.
    """
    starts = range(0, len(ordered), config.batch_size)
    steps = [ordered[start : start + config.batch_size] for start in starts] * config.epochs
    loop = _Loop(model, config, states, answer)
    done = steps[: len(loop.history.steps)]
    check_order(loop.history.consumed, [row.id for instances in done for row in instances])
    loop.run(steps, test)
    loop.accelerator.free_memory()
    model.zero_grad()
    return loop.history


def learning_rate(config: TrainingSettings, step: int, total: int) -> float:
    """Return the rate of a step counted from 0: from the peak to its final ratio."""
    passed = step / max(1, total - 1)
    share = 1.0 if config.schedule == "constant" else 0.5 * (1 + math.cos(math.pi * passed))
    ratio = config.final_rate_ratio + (1 - config.final_rate_ratio) * share
    return config.learning_rate * ratio


def check_order(consumed: Sequence[str], ordered: Sequence[str]) -> None:
    """Refuse consumed ids that differ from the order; the message names the first place."""
    for place, (got, given) in enumerate(zip_longest(consumed, ordered, fillvalue="nothing")):
        if got != given:
            raise OrderError(f"place {place}: consumed {got}, the order says {given}")


class _Loop:
    """The model, its optimizer and what was measured so far."""

    def __init__(
        self,
        model: PreTrainedModel,
        config: TrainingSettings,
        states: States | None,
        answer: Answer | None,
    ) -> None:
        self.accelerator = _accelerator()
        self.processes: int = self.accelerator.num_processes
        self.config, self.states, self.answer = config, states, answer
        self.precision = resolve_precision(config.precision, self.accelerator.device)
        if config.gradient_checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        packable = config.attention in ("auto", "flash_attention_2")
        self.packed = packable and packs(model, self.accelerator.device)
        # Several processes exchange whole gradients, not sparse ones.
        self.in_parts = self.processes == 1 and tied_on_cpu(model)
        optimizer = torch.optim.AdamW(
            model.parameters(), config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.history, self.answered = History(), set[int]()
        if states is not None:
            self.history = states.restore(self.accelerator, self.model, self.optimizer)

    def run(self, steps: Sequence[Sequence[Encoded]], test: Sequence[Encoded]) -> None:
        """Take the steps that are left, with the evaluations that are due."""
        done, last, config = len(self.history.steps), len(steps), self.config
        self.answered = {min(step, last) for step in config.generate_at}
        evaluated = {*range(0, last, config.eval_every), *config.eval_at, *self.answered, last}
        if not self.history.losses:
            self.evaluate(0, test)
        # Only the main process shows its progress, unless TQDM_DISABLE is set.
        given: dict[str, Any] = {} if self.accelerator.is_main_process else {"disable": True}
        given["mininterval"] = 0.1 if sys.stderr.isatty() else 30
        bar = tqdm(steps[done:], desc="training", unit="step", initial=done, total=last, **given)
        for step, instances in enumerate(bar, done + 1):
            loss = self.step(step, instances, learning_rate(config, step - 1, last))
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            if step in evaluated:
                self.evaluate(step, test)
            if self.states is not None:
                due = [self.states.due(last=step == last)]
                broadcast_object_list(due)  # the main process decides for all
                if due[0]:
                    self.states.save(self.accelerator, self.model, self.optimizer, self.history)

    def step(self, step: int, instances: Sequence[Encoded], rate: float) -> float:
        """Take one optimizer step; return the mean loss of its response tokens, in nats."""
        self.model.train()
        tokens = sum(instance.response_tokens for instance in instances)
        share, consumed = self._backward(instances, tokens)
        ids = [instance.id for instance in instances]
        check_order(consumed, ids)
        loss = float(self.accelerator.reduce(share, "sum"))
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)  # FSDP splits it
        _check_finite(step, "loss", dict.fromkeys(ids, loss))
        _check_finite(step, "gradient norm", dict.fromkeys(ids, norm))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        # The head in parts adds to buffers in place: kept, they do not fragment the heap.
        self.optimizer.zero_grad(set_to_none=not self.in_parts)
        self.history.consumed += consumed
        entry = {"step": step, "loss": loss, "learning_rate": rate, "tokens": tokens}
        self.history.steps.append(entry | variety(instances))
        return loss

    def _backward(
        self, instances: Sequence[Encoded], tokens: int
    ) -> tuple[torch.Tensor, list[str]]:
        """Add up this process's gradients; return its share of the loss, and all ids consumed."""
        own = self._own(instances)
        batches = micro_batches(own or instances[:1], self.config.micro_tokens, packed=self.packed)
        counted = len(batches) if own else 0  # the others only keep step with other processes
        batches = evened(batches)
        share, seen = torch.zeros((), device=self.accelerator.device), list[str]()
        with arithmetic(self.model, self.precision, packed=self.packed), self._head():
            for place, batch in enumerate(batches, 1):
                scale = self.processes / tokens if place <= counted else 0.0
                last = place == len(batches)
                with nullcontext() if last else self.accelerator.no_sync(self.model):
                    loss = summed_losses(self.model, batch).sum() * scale
                    self.accelerator.backward(loss)
                share += loss.detach() / self.processes
                seen += [instance.id for instance in batch.instances] if place <= counted else []
        # Micro-batches go by length; within the step the order is the one given.
        places = {instance.id: place for place, instance in enumerate(own)}
        seen.sort(key=lambda name: places.get(name, len(own)))
        return share, _gathered(seen)

    def _own(self, instances: Sequence[Encoded]) -> Sequence[Encoded]:
        """Return the share of this process: of n processes, every n-th instance."""
        return instances[self.accelerator.process_index :: self.processes]

    def _head(self) -> AbstractContextManager[None]:
        return head_in_parts(self.model) if self.in_parts else nullcontext()

    def evaluate(self, step: int, test: Sequence[Encoded]) -> None:
        """Take the loss of every test instance, and its answer where one is asked for."""
        # A process without an instance keeps step with the others; what it finds is cut off.
        own, count = self._own(test) or test[:1], len(test)
        with self._head():
            sums = response_losses(
                self.model, own, self.config.micro_tokens, self.precision, packed=self.packed
            )
        found = [
            {"step": step, "id": instance.id, "task": instance.task, "loss_sum": float(loss)}
            | {"tokens": instance.response_tokens}
            for instance, loss in zip(own, sums, strict=True)
        ]
        losses = _gathered(found)[:count]
        _check_finite(step, "test loss", {e["id"]: e["loss_sum"] for e in losses})
        self.history.losses += losses
        if self.answer is not None and step in self.answered:
            found = self.answer(self.accelerator.unwrap_model(self.model), own)
            answers = _gathered([{"step": step} | entry for entry in found])[:count]
            _check_finite(step, "reward", {e["id"]: e.get("reward", 0.0) for e in answers})
            self.history.answers += answers


def variety(instances: Sequence[Encoded]) -> dict[str, float]:
    """Return how many tasks a step holds, exp(-Σ p ln p) of their shares p, and answers."""
    # An instance without a task is a task of its own.
    counts = Counter(i.id if i.task is None else i.task for i in instances)
    shares = [count / len(instances) for count in counts.values()]
    entropy = -sum(share * math.log(share) for share in shares)
    answers = {instance.tokens[instance.response_start :] for instance in instances}
    return {"effective_tasks": math.exp(entropy), "distinct_answers": len(answers)}


def _accelerator() -> Accelerator:
    """Return what spreads the work, without settings of accelerate that change numbers."""
    found = Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision="no",
        dynamo_backend="no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
    )
    asked = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if asked and found.distributed_type != DistributedType.FSDP:
        raise ParameterError(
            f"use_fsdp=True, but accelerate runs as {found.distributed_type.value}, where every "
            "process holds the whole model; expected several GPUs. Launch without FSDP here."
        )
    return found


def _check_finite(step: int, name: str, values: Mapping[str, float]) -> None:
    """Refuse NaN and infinity in the gathered values by id, so that every process stops."""
    bad = {key: value for key, value in values.items() if not math.isfinite(value)}
    if bad:
        value = next(iter(bad.values()))
        raise TrainingError(f"step {step}: {name} is {value}; instances {[*bad]}")


def _gathered(own: list[Any]) -> list[Any]:
    """Return what all processes have, in the order in which `_Loop._own` dealt it out."""
    missing = object()
    turns = zip_longest(*gather_object([own]), fillvalue=missing)
    return [entry for turn in turns for entry in turn if entry is not missing]
