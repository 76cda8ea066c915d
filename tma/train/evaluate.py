"""Micro-batches → response losses: only the logits that predict response tokens are computed.

With a large vocabulary, the largest blocks of memory of a step stand between head and loss. They
are computed in parts: losses from a few rows of logits at a time, and, on the CPU, a head that
shares its weights with the embedding from a few rows of weights. The loss is the same sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from tma.train.encode import Encoded
from tma.train.packing import MicroBatch, borders, micro_batches, packed_attention

Batch = TypeVar("Batch")

LOGIT_ROWS = 16
"""Rows of logits that are turned into float32 losses at once."""
WEIGHT_ROWS = 16_384
"""Rows of the head's weights that are cast, or get their gradient, at once."""


def response_losses(
    model: Any,
    encoded: Sequence[Encoded],
    micro_tokens: int,
    precision: str,
    *,
    packed: bool = False,
) -> NDArray[np.float64]:
    """Return the summed response loss of every instance, (len(encoded),), in nats.

    Each of several processes must call this, with one instance or more.
    """
    out = np.full(len(encoded), np.nan)
    model.train(False)
    # Not in inference_mode: there autocast casts the weights anew in every micro-batch.
    with torch.no_grad(), arithmetic(model, precision, packed=packed):
        for batch in evened(micro_batches(encoded, micro_tokens, packed=packed)):
            out[list(batch.members)] = summed_losses(model, batch).cpu().numpy()
    return out


def evened(batches: list[Batch]) -> list[Batch]:
    """Return batches, the last one repeated until every process has equally many."""
    # FSDP gathers the weights in each forward pass, and would wait for a process that makes fewer.
    most: int = max(gather_object([len(batches)]))
    return batches + batches[-1:] * (most - len(batches))


def summed_losses(model: Any, batch: MicroBatch) -> torch.Tensor:
    """Return each instance's summed response loss, (instances,) float32, in nats."""
    device = next(model.parameters()).device
    row, position = (places.to(device) for places in batch.places)
    lengths = [len(instance.tokens) for instance in batch.instances]
    given = borders(lengths, device) if batch.packed else {}
    with _head_only_at(model, row, position):
        logits = model(input_ids=batch.tokens.to(device), use_cache=False, **given).logits
    # torch declares no types for `apply`; so below.
    losses = _Losses.apply(logits, batch.targets.to(device))  # type: ignore[no-untyped-call]
    sums = torch.zeros(len(lengths), device=device)
    return sums.index_add(0, batch.owners.to(device), losses)


def resolve_precision(precision: str, device: torch.device) -> str:
    """Return "bf16" or "fp32"; "auto" is bf16 where the machine computes in it."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    backend: Any = torch.backends.mkldnn
    onednn = device.type == "cpu" and backend.is_available()
    fast = onednn and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "bf16" if fast else "fp32"


@contextmanager
def arithmetic(model: Any, precision: str, *, packed: bool = False) -> Iterator[None]:
    """Let a model compute in "bf16" (autocast, which casts the weights once inside) or "fp32"."""
    device = next(model.parameters()).device
    attention = packed_attention(_unwrapped(model)) if packed else nullcontext()
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"), attention:
        yield


def _unwrapped(model: Any) -> Any:
    return getattr(model, "module", model)  # several processes wrap it


@contextmanager
def _head_only_at(model: Any, row: torch.Tensor, position: torch.Tensor) -> Iterator[None]:
    """Let the output head see only these hidden states; the logits are then (k, vocabulary)."""
    # Unlike a call of the head, a hook leaves in what a model does to its logits (soft caps).
    head: torch.nn.Module = _unwrapped(model).get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _head, args: (args[0][row, position],))
    try:
        yield
    finally:
        handle.remove()


def tied_on_cpu(model: Any) -> bool:
    """Return whether head and embedding share all their weights, and the CPU computes."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    return (
        type(head) is torch.nn.Linear
        and getattr(head, "bias", None) is None
        and isinstance(embedding, torch.nn.Embedding)
        and head.weight is embedding.weight
        and head.weight.device.type == "cpu"
    )


@contextmanager
def head_in_parts(model: Any) -> Iterator[None]:
    """Let a model that is `tied_on_cpu` add up the gradient of the tied weights in place."""
    # The head adds its share to `.grad`; autograd adds the rows looked up in the embedding.
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    before = embedding.sparse
    head.forward = lambda hidden: _Head.apply(hidden, head.weight)  # type: ignore[no-untyped-call]
    embedding.sparse = True
    try:
        yield
    finally:
        del head.forward  # uncovers the method of its class
        embedding.sparse = before


class _Losses(torch.autograd.Function):
    """Cross-entropy that keeps the logits as they are, and no probabilities in float32."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        parts = zip(torch.split(logits, LOGIT_ROWS), torch.split(targets, LOGIT_ROWS), strict=True)
        losses = torch.cat([cross_entropy(z.float(), to, reduction="none") for z, to in parts])
        ctx.save_for_backward(logits, targets, losses)
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        logits, targets, losses = ctx.saved_tensors
        out = torch.empty_like(logits)
        columns = (targets[:, None], losses[:, None], grads[0][:, None])
        parts = (torch.split(rows, LOGIT_ROWS) for rows in (out, logits, *columns))
        for to, z, target, loss, grad in zip(*parts, strict=True):
            # Softmax from the loss: the target's logit plus its loss is the log of the sum.
            share = z.float() - (z.gather(1, target).float() + loss)
            share.exp_().scatter_add_(1, target, -torch.ones_like(loss))
            to.copy_(share.mul_(grad))
        return out, None


class _Head(torch.autograd.Function):
    """Hidden states times weights, in the precision of autocast where that is on."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if torch.is_autocast_enabled("cpu"):
            hidden = hidden.to(torch.get_autocast_dtype("cpu"))
        ctx.save_for_backward(hidden)
        ctx.weight = weight
        out = hidden.new_empty(len(hidden), len(weight))
        parts = (torch.split(out, WEIGHT_ROWS, dim=1), torch.split(weight, WEIGHT_ROWS))
        for part, rows in zip(*parts, strict=True):
            part.copy_(hidden @ rows.to(hidden.dtype).T)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        (hidden,), weight = ctx.saved_tensors, ctx.weight
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        back = torch.zeros(hidden.shape, device=hidden.device)
        columns = torch.split(grads[0], WEIGHT_ROWS, dim=1)
        parts = (columns, *(torch.split(w, WEIGHT_ROWS) for w in (weight, weight.grad)))
        for part, rows, total in zip(*parts, strict=True):
            back.add_(part @ rows.to(hidden.dtype))
            total.add_(part.T @ hidden)
        return back.to(hidden.dtype), None
